package rpc_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/homeiac/homelab/internal/rpc"
)

// fleetMethods are the full names of all methods of the fleet's own services.
func fleetMethods() []string {
	var methods []string
	for _, pkg := range []protoreflect.FullName{"homelab.agent.v1", "homelab.controller.v1", "homelab.trust.v1"} {
		protoregistry.GlobalFiles.RangeFilesByPackage(pkg, func(f protoreflect.FileDescriptor) bool {
			for i := range f.Services().Len() {
				s := f.Services().Get(i)
				if s.FullName() == "homelab.trust.v1.EnrolService" {
					continue // for strangers, and on a listener of its own: see enrol.go
				}
				for j := range s.Methods().Len() {
					methods = append(methods, "/"+string(s.FullName())+"/"+string(s.Methods().Get(j).Name()))
				}
			}
			return true
		})
	}
	return methods
}

func TestEveryMethodOfTheFleetHasARule(t *testing.T) {
	methods := fleetMethods()
	if len(methods) < 20 {
		t.Fatalf("only %d methods were found: %v", len(methods), methods)
	}
	for _, m := range methods {
		if len(rpc.Rules[m].Roles) == 0 {
			t.Errorf("%s has no rule: say in roles.go who may call it", m)
		}
	}
	for m := range rpc.Rules {
		if !slices.Contains(methods, m) {
			t.Errorf("there is a rule for %s, and no such method", m)
		}
	}
}

func TestAViewerGetsNoSecretAndNothingOutOfAGuest(t *testing.T) {
	for _, m := range fleetMethods() {
		name := m[strings.LastIndexByte(m, '/')+1:]
		for _, word := range []string{"Kubeconfig", "Exec", "Token", "Credential", "Log", "Secret", "Enrol", "Renew", "Audit"} {
			if strings.Contains(name, word) && slices.Contains(rpc.Rules[m].Roles, rpc.RoleViewer) {
				t.Errorf("a viewer may call %s", m)
			}
		}
		if rpc.Rules[m].Audited && slices.Contains(rpc.Rules[m].Roles, rpc.RoleViewer) {
			t.Errorf("a viewer may call %s, which changes something or reveals a secret", m)
		}
	}
}

func TestPeopleReachAgentsOnlyThroughAController(t *testing.T) {
	for m, rule := range rpc.Rules {
		for _, role := range rule.Roles {
			people := role == rpc.RoleAdmin || role == rpc.RoleViewer
			if people != strings.HasPrefix(m, "/homelab.controller.v1.") {
				t.Errorf("%s may call %s", role, m)
			}
		}
	}
}
