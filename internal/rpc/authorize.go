package rpc

import (
	"context"
	"log/slog"
	"net"
	"path"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/tap"
)

// Allow says which roles may call which method: full names
// ("/homelab.agent.v1.AgentService/Observe", the generated
// AgentService_Observe_FullMethodName) to roles. A method that is not in the
// table may be called by nobody.
type Allow map[string][]string

// check decides on values alone.
func (a Allow) check(method string, id Identity) error {
	// The liveness check of dial.go tells nothing but that the process runs.
	if method == grpc_health_v1.Health_Check_FullMethodName {
		return nil
	}
	may := a[method]
	if slices.Contains(may, id.Role) {
		return nil
	}
	if len(may) == 0 {
		return Errorf(ErrDenied, "%s may not call %s: nobody may", id, shortName(method))
	}
	return Errorf(ErrDenied, "%s may not call %s: only %s may; use a certificate of that role",
		id, shortName(method), strings.Join(may, ", "))
}

// shortName is a method as people know it: Apply of
// /homelab.controller.v1.ControllerService/Apply.
func shortName(method string) string { return path.Base(method) }

// unknown lists the table's methods that no service has: a misspelt name would
// otherwise deny quietly.
func (a Allow) unknown(services map[string]grpc.ServiceInfo) []string {
	have := make(map[string]bool)
	for name, s := range services {
		for _, m := range s.Methods {
			have["/"+name+"/"+m.Name] = true
		}
	}
	var missing []string
	for m := range a {
		if !have[m] {
			missing = append(missing, m)
		}
	}
	slices.Sort(missing)
	return missing
}

// admit says whether the caller may call the method, and leaves who it is in the
// context for PeerIdentity.
func (a Allow) admit(ctx context.Context, creds *Credentials, method string) (context.Context, error) {
	id, err := PeerIdentity(ctx)
	if err != nil {
		return ctx, err
	}
	// The connection of one that is revoked is cut; this is for what came in before.
	if p, ok := peer.FromContext(ctx); ok {
		if err := creds.revokedIn(chainOf(p.AuthInfo)); err != nil {
			return ctx, Errorf(ErrDenied, "%w", err)
		}
	}
	if err := a.check(method, id); err != nil {
		return ctx, err
	}
	return WithIdentity(ctx, id), nil
}

// gate turns callers away by the table before a byte of their message is read: what
// is too large or makes no sense must not be looked at for somebody who may not call.
type gate struct {
	table  Allow
	creds  *Credentials
	log    *slog.Logger
	audit  *Auditor // may be nil
	denied Repeats
}

// enter is called with the connection's lock held, so it waits for nothing.
func (g *gate) enter(ctx context.Context, info *tap.Info) (context.Context, error) {
	ctx, err := g.table.admit(ctx, g.creds, info.FullMethodName)
	if err == nil {
		return ctx, nil
	}
	who, _ := PeerIdentity(ctx) // unknown is empty
	from, method := Source(ctx), info.FullMethodName
	if _, known := g.table[method]; !known {
		method = "unknown" // whoever calls chooses the name
	}
	// Both lie under the caller's hand no further than its certificate reaches.
	go g.denied.Note(from+" "+who.String()+" "+method, func(n int) {
		g.log.Warn("call denied", "peer", who.String(), "address", from, "method", method, "reason", err, "count", n)
		if g.audit != nil && g.audit.Denied != nil && Rules[method].Audited {
			g.audit.Denied(Call{Who: who, Method: method}, err, n)
		}
	}, func(n int) { g.log.Warn("calls denied", "count", n) })
	return ctx, ToStatus(err)
}

func hostOf(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return host
}

// Authorize gives the interceptors that hold calls to the table and to the list of
// revoked certificates. Listen uses them already; they are for servers built
// otherwise. They identify the caller once and leave it in the context for
// PeerIdentity.
func Authorize(table Allow, creds *Credentials) (grpc.UnaryServerInterceptor, grpc.StreamServerInterceptor) {
	unary := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		ctx, err := table.admit(ctx, creds, info.FullMethod)
		if err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
	stream := func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		ctx, err := table.admit(ss.Context(), creds, info.FullMethod)
		if err != nil {
			return err
		}
		return next(srv, &contextStream{ServerStream: ss, ctx: ctx})
	}
	return unary, stream
}

// contextStream is a server stream with another context.
type contextStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *contextStream) Context() context.Context { return s.ctx }
