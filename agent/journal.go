package agent

import (
	"context"
	"log/slog"
	"path"
	"strings"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// allow says who may call what: controllers, and other agents for image files.
func allow() rpc.Allow {
	return rpc.AllowOf(agentv1.AgentService_ServiceDesc.ServiceName, agentv1.PeerService_ServiceDesc.ServiceName)
}

// journal logs who asked for what changes something here or reveals a secret, and
// what came of it. What is kept of it is the controller's audit.
func journal(log *slog.Logger) *rpc.Auditor {
	return &rpc.Auditor{Begin: func(ctx context.Context, call rpc.Call) (func(rpc.Outcome), error) {
		facts := append([]any{"who", call.Who.String(), "method", strings.ToLower(path.Base(call.Method))}, askedFor(call.Request)...)
		log.InfoContext(ctx, "audit", append(facts, "result", "running")...)
		return func(o rpc.Outcome) {
			level, text := slog.LevelInfo, ""
			if o.Err != nil {
				level, text = slog.LevelWarn, o.Err.Error()
			}
			log.Log(ctx, level, "audit", append(facts, "result", rpc.KindName(o.Err), "text", text)...)
		}, nil
	}}
}

// askedFor are the facts of a request that may be told: never a script, an argument,
// an input or a secret.
func askedFor(request any) []any {
	switch req := request.(type) {
	case *agentv1.RunRequest:
		return []any{"step", req.GetStep().GetId(), "guest", req.GetStep().GetGuest(), "run", req.GetFence().GetRun(), "epoch", req.GetFence().GetEpoch()}
	case *agentv1.ExecRequest:
		return []any{"guest", req.GetWant().GetIdentity().GetGuest(), "program", rpc.Program(req.GetArgv())}
	case *agentv1.CredentialsRequest:
		return []any{"guest", req.GetWant().GetIdentity().GetGuest(), "kind", req.GetKind().String()}
	}
	return nil
}
