package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/guest"
	"github.com/homeiac/homelab/agent/host"
	"github.com/homeiac/homelab/agent/image"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/rpc"
)

// Service answers controllers. Its steps are carried out while Work runs.
type Service struct {
	agentv1.UnimplementedAgentServiceServer

	name, fleet, root, pauseFile string
	sshPort                      int

	driver  driver.Full
	host    *host.Host
	images  *image.Store
	files   image.Roots
	peers   peers  // nil asks nobody
	trust   *trust // nil is told nothing
	liars   *liars
	keys    *guest.Keys
	fence   *fence
	intents *intents
	flights *flights
	now     func() time.Time

	saved     string // folder of saved configurations
	snapshots *snapshots
	// How long another machine that answers SSH is taken for a guest that has not
	// put its host key in yet, and how long a guest that soaks may be unwell.
	wrongFor, soakGrace time.Duration
}

// NewService opens the agent's state, and makes it at the first start: its SSH
// key, fence and intents.
func NewService(cfg Config, fleet string, d driver.Full, log *slog.Logger) (*Service, error) {
	if err := os.MkdirAll(cfg.State, 0o700); err != nil {
		return nil, err
	}
	keys, err := guest.OpenKeys(cfg.State, cfg.Name)
	if err != nil {
		return nil, err
	}
	fence, err := openFence(filepath.Join(cfg.State, "fence.json"))
	if err != nil {
		return nil, err
	}
	intents, err := openIntents(filepath.Join(cfg.State, "intents"))
	if err != nil {
		return nil, err
	}
	files := image.Roots(cfg.FileRoots)
	return &Service{
		saved: filepath.Join(cfg.State, "saved"), snapshots: &snapshots{dir: filepath.Join(cfg.State, "snapshots"), host: cfg.Name},
		wrongFor: wrongFor, soakGrace: soakGrace,
		name: cfg.Name, fleet: fleet, root: cfg.Root, pauseFile: cfg.PauseFile, sshPort: cfg.SSHPort,
		driver: outlasting{d, stopGrace}, host: host.New(cfg.Root), images: image.New(files), files: files, liars: new(liars), keys: keys,
		fence: fence, intents: intents, flights: newFlights(cfg.Name, log), now: clock(cfg.Clock),
	}, nil
}

// Work carries out steps until ctx ends, and ends them with it (see flights.run).
func (s *Service) Work(ctx context.Context) error { return s.flights.run(ctx) }

// Run is the rpc: one step, followed to its end.
func (s *Service) Run(req *agentv1.RunRequest, stream grpc.ServerStreamingServer[agentv1.RunResponse]) error {
	fl, err := s.begin(stream.Context(), req)
	if err != nil {
		return err
	}
	result, err := fl.follow(stream.Context(), func(e *homelabv1.Event) error {
		return stream.Send(&agentv1.RunResponse{Part: &agentv1.RunResponse_Event{Event: e}})
	})
	if err != nil {
		return err
	}
	return stream.Send(&agentv1.RunResponse{Part: &agentv1.RunResponse_Result{Result: result}})
}

func (s *Service) begin(ctx context.Context, req *agentv1.RunRequest) (*flight, error) {
	if err := s.checkRun(req); err != nil {
		return nil, err
	}
	if why := s.paused(); why != "" {
		return nil, rpc.Errorf(rpc.ErrRefused, "host %s is paused: %s", s.name, why)
	}
	if err := s.fence.admit(req.GetFence()); err != nil {
		return nil, err
	}
	fl := &flight{
		step: req.GetStep(), run: req.GetFence().GetRun(), limit: deadline(req),
		carry: func(ctx context.Context, e emit) (*agentv1.StepResult, error) { return s.carry(ctx, req, e) },
	}
	return fl, s.flights.begin(ctx, flightKey(req), fl)
}

// Exec runs one command in a guest, as root, as qm guest exec does.
func (s *Service) Exec(req *agentv1.ExecRequest, stream grpc.ServerStreamingServer[agentv1.ExecResponse]) error {
	ctx := stream.Context()
	if len(req.GetArgv()) == 0 {
		return rpc.Errorf(rpc.ErrInvalid, "no command")
	}
	if err := checkFields(req.GetWant()); err != nil {
		return err
	}
	sh, err := s.open(ctx, req.GetWant())
	if err != nil {
		return err
	}
	defer sh.Close()
	// Both streams of a command write at once; a gRPC stream takes one at a time.
	out := newSender(stream)
	exit, err := sh.Command(ctx, req.GetArgv(), strings.NewReader(string(req.GetStdin())), out.stdout(), out.stderr())
	if err != nil {
		return err
	}
	return stream.Send(&agentv1.ExecResponse{Part: &agentv1.ExecResponse_Exit{Exit: int32(exit)}})
}

// Credentials reads the join token or the kubeconfig in a server guest.
func (s *Service) Credentials(ctx context.Context, req *agentv1.CredentialsRequest) (*agentv1.CredentialsResponse, error) {
	var file string
	switch req.GetKind() {
	case agentv1.CredentialsKind_CREDENTIALS_KIND_TOKEN:
		file = k3s.ServerToken
	case agentv1.CredentialsKind_CREDENTIALS_KIND_KUBECONFIG:
		file = k3s.Kubeconfig
	default:
		return nil, rpc.Errorf(rpc.ErrInvalid, "credentials of kind %s", req.GetKind())
	}
	if err := checkFields(req); err != nil {
		return nil, err
	}
	sh, err := s.openServer(ctx, req)
	if err != nil {
		return nil, err
	}
	defer sh.Close()
	res, err := sh.Run(ctx, k3s.ReadFileScript(file), nil)
	if err != nil {
		return nil, err
	}
	if res.Exit != 0 {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "%w", res.Check("read "+file))
	}
	answer := &agentv1.CredentialsResponse{Secret: res.Stdout, At: timestamppb.New(s.now())}
	if req.GetExternalServer() != "" {
		probe, err := sh.Run(ctx, k3s.ProbeScript, nil)
		if err != nil {
			return nil, err
		}
		p, err := k3s.ParseProbe(probe.Stdout)
		if err != nil {
			return nil, rpc.Errorf(rpc.ErrUnavailable, "%w", err)
		}
		answer.Nodes = nodesView(p.Nodes)
	}
	return answer, nil
}

// openServer reaches the server that is asked: a guest of ours, or user@address
// of a cluster that was made elsewhere.
func (s *Service) openServer(ctx context.Context, req *agentv1.CredentialsRequest) (*guest.Shell, error) {
	external := req.GetExternalServer()
	if external == "" {
		return s.open(ctx, req.GetWant())
	}
	user, address, port, err := splitServer(external)
	if err != nil {
		return nil, err
	}
	sh, err := guest.Open(ctx, guest.Target{
		User: user, Addresses: []string{address}, Port: port,
		HostKeys: []string{req.GetExternalHostKey()}, Key: s.keys.Agent(),
	}, nil, nil, guest.Who{})
	var refused *guest.SSHError
	switch {
	case errors.As(err, &refused) && refused.Why == guest.Auth:
		return nil, fmt.Errorf("server %s: %w\n  let this agent in: add to its authorized_keys: %s", external, err, s.keys.AgentLine())
	case err != nil:
		return nil, fmt.Errorf("server %s: %w", external, err)
	}
	return sh, nil
}

// splitServer reads user@address or user@address:port; SSH's own port is 22, also
// where the guests' is another one.
func splitServer(s string) (user, address string, port int, err error) {
	user, at, _ := strings.Cut(s, "@")
	host, err := netip.ParseAddrPort(at)
	if err != nil {
		ip, err := netip.ParseAddr(at)
		if err != nil || user == "" {
			return "", "", 0, rpc.Errorf(rpc.ErrInvalid, "server %q is not user@address or user@address:port", s)
		}
		return user, ip.String(), 22, nil
	}
	if user == "" {
		return "", "", 0, rpc.Errorf(rpc.ErrInvalid, "server %q names no user", s)
	}
	return user, host.Addr().String(), int(host.Port()), nil
}
