package rpc

import (
	"strings"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
)

// Rule is what the fleet says of one method.
type Rule struct {
	// Roles may call it; all others may not.
	Roles []string
	// Audited methods change something or reveal a secret: who called one, and what
	// came of it, is kept.
	Audited bool
}

var (
	looks     = Rule{Roles: []string{RoleAdmin, RoleViewer}}
	adminSees = Rule{Roles: []string{RoleAdmin}}
	adminActs = Rule{Roles: []string{RoleAdmin}, Audited: true}
	asked     = Rule{Roles: []string{RoleController}}
	told      = Rule{Roles: []string{RoleController}, Audited: true}
	shared    = Rule{Roles: []string{RoleAgent}}
)

// Rules are all methods of the fleet's services. A method without one may be called
// by nobody, and a test fails. A viewer gets no secret, nothing out of a guest (a
// command's output, a log), and not the audit, which names what others ran.
var Rules = map[string]Rule{
	controllerv1.ControllerService_Plan_FullMethodName:          looks,
	controllerv1.ControllerService_Status_FullMethodName:        looks,
	controllerv1.ControllerService_ListRuns_FullMethodName:      looks,
	controllerv1.ControllerService_FollowRun_FullMethodName:     looks,
	controllerv1.ControllerService_Version_FullMethodName:       looks,
	controllerv1.ControllerService_Why_FullMethodName:           looks,
	controllerv1.ControllerService_Orphans_FullMethodName:       looks,
	controllerv1.ControllerService_ListSnapshots_FullMethodName: looks,
	controllerv1.ControllerService_ListAudit_FullMethodName:     adminSees,
	controllerv1.ControllerService_Apply_FullMethodName:         adminActs,
	controllerv1.ControllerService_Exec_FullMethodName:          adminActs,
	controllerv1.ControllerService_Kubeconfig_FullMethodName:    adminActs,
	controllerv1.ControllerService_Pause_FullMethodName:         adminActs,
	controllerv1.ControllerService_Resume_FullMethodName:        adminActs,

	controllerv1.ControllerService_RevokeCertificate_FullMethodName: adminActs,
	controllerv1.ControllerService_CreateToken_FullMethodName:       adminActs,
	controllerv1.ControllerService_ListTokens_FullMethodName:        adminSees,
	controllerv1.ControllerService_RevokeToken_FullMethodName:       adminActs,
	controllerv1.ControllerService_RotateGossip_FullMethodName:      adminActs,
	controllerv1.ControllerService_Trust_FullMethodName:             adminSees,
	controllerv1.ControllerService_OfferRoot_FullMethodName:         adminActs,
	controllerv1.ControllerService_AddRoot_FullMethodName:           adminActs,
	controllerv1.ControllerService_DropRoots_FullMethodName:         adminActs,
	trustv1.TrustService_Present_FullMethodName:                     shared,

	agentv1.AgentService_Observe_FullMethodName:       asked,
	agentv1.AgentService_Orphans_FullMethodName:       asked,
	agentv1.AgentService_ListSnapshots_FullMethodName: asked,
	agentv1.AgentService_ResolveImage_FullMethodName:  asked,
	agentv1.AgentService_Run_FullMethodName:           told,
	agentv1.AgentService_Exec_FullMethodName:          told,
	agentv1.AgentService_Credentials_FullMethodName:   told,
	agentv1.AgentService_SetTrust_FullMethodName:      told,
	agentv1.PeerService_Pull_FullMethodName:           shared,
}

// AllowOf is the part of Rules for some services, by their full names.
func AllowOf(services ...string) Allow {
	table := make(Allow)
	for _, service := range services {
		for method, rule := range Rules {
			if strings.HasPrefix(method, "/"+service+"/") {
				table[method] = rule.Roles
			}
		}
	}
	return table
}
