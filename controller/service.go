package controller

import (
	"context"
	"errors"
	"io"
	"sync"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/rpc"
)

// service is what hlctl calls. Who may call what is in the table allow.
type service struct {
	controllerv1.UnimplementedControllerServiceServer
	c *Controller
}

// Plan observes all live hosts and plans; it changes nothing. Of a Spec that is not
// the one that was applied nothing is remembered either.
func (s *service) Plan(ctx context.Context, req *controllerv1.PlanRequest) (*controllerv1.PlanResponse, error) {
	sp, ask, last, err := s.c.wanted(ctx, req.GetSpecName(), req.GetSpec(), req.GetOperation(), req.GetDestroy())
	if err != nil {
		return nil, err
	}
	w, err := s.c.look(ctx, sp, ask, last)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := known(sp, w); err != nil {
		return nil, err
	}
	return &controllerv1.PlanResponse{
		Plan: s.c.plan(sp, w), Hosts: hostStatuses(w.sights), Guests: s.c.guestStatuses(sp, w),
	}, nil
}

// Apply carries out the plan that was confirmed. It goes on to the end of its
// running steps when the caller goes away.
func (s *service) Apply(req *controllerv1.ApplyRequest, stream controllerv1.ControllerService_ApplyServer) error {
	id, err := rpc.PeerIdentity(stream.Context())
	if err != nil {
		return err
	}
	sp, ask, _, err := s.c.wanted(stream.Context(), req.GetSpecName(), req.GetSpec(), req.GetOperation(), req.GetDestroy())
	if err != nil {
		return err
	}
	s.c.runs.Add(1)
	defer s.c.runs.Done()
	var mu sync.Mutex // events and parts come from two goroutines
	return s.c.apply(stream.Context(), request{
		sp: sp, name: req.GetSpecName(), text: req.GetSpec(), digest: req.GetDigest(), yes: req.GetYes(), by: id.String(), asked: ask,
	}, func(part *controllerv1.ApplyResponse) error {
		mu.Lock()
		defer mu.Unlock()
		return stream.Send(part)
	})
}

// Status tells hosts, guests and the cluster.
func (s *service) Status(ctx context.Context, req *controllerv1.StatusRequest) (*controllerv1.StatusResponse, error) {
	return s.c.status(ctx, req.GetFresh(), req.GetLooks())
}

// ListRuns tells the latest runs.
func (s *service) ListRuns(ctx context.Context, req *controllerv1.ListRunsRequest) (*controllerv1.ListRunsResponse, error) {
	limit := int(req.GetLimit())
	if limit <= 0 {
		limit = 20
	}
	runs, err := s.c.store.Runs(ctx, limit)
	if err != nil {
		return nil, err
	}
	return &controllerv1.ListRunsResponse{Runs: runs}, nil
}

// FollowRun tells a run's events and at the end its record.
func (s *service) FollowRun(req *controllerv1.FollowRunRequest, stream controllerv1.ControllerService_FollowRunServer) error {
	ctx := stream.Context()
	run := req.GetRun()
	if run == 0 {
		latest, err := s.c.store.Runs(ctx, 1)
		if err != nil {
			return err
		}
		if len(latest) == 0 {
			return rpc.Errorf(rpc.ErrNotFound, "there was no run yet; begin one with: hlctl apply -f homelab.yaml")
		}
		run = latest[0].GetRun()
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	defer context.AfterFunc(s.c.life, end)() // a follower must not hold up the controller's end
	send := func(part *controllerv1.FollowRunResponse) error { return stream.Send(part) }
	record, err := s.c.store.Follow(ctx, run, req.GetFollow(), func(e *homelabv1.Event) error {
		return send(&controllerv1.FollowRunResponse{Part: &controllerv1.FollowRunResponse_Event{Event: e}})
	})
	if err != nil {
		if s.c.life.Err() != nil {
			return rpc.Errorf(rpc.ErrUnavailable, "%w", errEnding)
		}
		return err
	}
	return send(&controllerv1.FollowRunResponse{Part: &controllerv1.FollowRunResponse_Record{Record: record}})
}

// Exec runs one command in a guest, through the agent of its host.
func (s *service) Exec(req *controllerv1.ExecRequest, stream controllerv1.ControllerService_ExecServer) error {
	ctx, end := context.WithCancel(stream.Context())
	defer end()
	defer context.AfterFunc(s.c.life, end)()
	if len(req.GetArgv()) == 0 {
		return rpc.Errorf(rpc.ErrInvalid, "no command; give it after --: hlctl exec %s -- CMD", req.GetGuest())
	}
	want, host, client, err := s.c.guestAgent(ctx, req.GetGuest())
	if err != nil {
		return err
	}
	from, err := client.Exec(ctx, &agentv1.ExecRequest{Want: want, Argv: req.GetArgv(), Stdin: req.GetStdin()})
	if err != nil {
		return s.c.unreached(ctx, host, req.GetGuest(), err)
	}
	for {
		part, err := from.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return s.c.unreached(ctx, host, req.GetGuest(), err)
		}
		out := new(controllerv1.ExecResponse)
		switch p := part.GetPart().(type) {
		case *agentv1.ExecResponse_Stdout:
			out.Part = &controllerv1.ExecResponse_Stdout{Stdout: p.Stdout}
		case *agentv1.ExecResponse_Stderr:
			out.Part = &controllerv1.ExecResponse_Stderr{Stderr: p.Stderr}
		case *agentv1.ExecResponse_Exit:
			out.Part = &controllerv1.ExecResponse_Exit{Exit: p.Exit}
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
}

// Kubeconfig reads the admin kubeconfig from a healthy server and makes it
// point at the endpoint, or at that server.
func (s *service) Kubeconfig(ctx context.Context, _ *controllerv1.KubeconfigRequest) (*controllerv1.KubeconfigResponse, error) {
	c := s.c
	sp, err := c.lastSpec(ctx)
	if err != nil {
		return nil, err
	}
	if sp == nil || sp.K3s == nil {
		return nil, rpc.Errorf(rpc.ErrNotFound, "no Spec with a k3s section was applied yet; begin with: hlctl apply -f homelab.yaml")
	}
	w, err := c.present(ctx, sp, true, true)
	if err != nil {
		return nil, err
	}
	err = rpc.Errorf(rpc.ErrUnavailable, "no healthy server was seen; look at them with: hlctl k3s status")
	d := &dispatch{c: c, sp: sp, world: w, guests: w.guests}
	for _, sv := range d.healthyServers("") {
		var secret k3s.Secret
		if secret, err = c.credentials(ctx, sp, sv, agentv1.CredentialsKind_CREDENTIALS_KIND_KUBECONFIG); err != nil {
			continue
		}
		url := k3s.ServerURL(sv.address)
		if sp.K3s.Endpoint != "" {
			url = endpointURL(sp.K3s.Endpoint)
		}
		text, err := k3s.RewriteKubeconfig([]byte(secret.Reveal()), url, sp.Name)
		if err != nil {
			return nil, err
		}
		return &controllerv1.KubeconfigResponse{Kubeconfig: text}, nil
	}
	return nil, err
}

// Version tells the controller's version: what every hlctl asks first.
func (s *service) Version(ctx context.Context, req *controllerv1.VersionRequest) (*controllerv1.VersionResponse, error) {
	c := s.c
	c.noteCaller(ctx)
	resp := &controllerv1.VersionResponse{Version: c.version, Name: c.cfg.Name}
	if list := c.creds.Revocations(); list.Number() > req.GetRevocations() {
		resp.Revocations = list.PEM()
	}
	return resp, nil
}
