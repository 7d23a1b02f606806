package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc"
)

// rig is a fake controller that listens, and a folder with what hlctl needs to
// speak to it.
type rig struct {
	*fake
	t       *testing.T
	dir     string
	address string
	ca      *rpc.CA
	lets    []ssh.PublicKey // whom all machines let in; nil before there is one
	ready   readiness
	goesBy  *rpc.Credentials // the controller's that listens last
}

// patient waits for hosts that get well, however busy this machine is.
var patient = readiness{limit: 30 * time.Second, poll: time.Millisecond, looks: 2, release: 5 * time.Second}

var allow = rpc.AllowOf(controllerv1.ControllerService_ServiceDesc.ServiceName)

func newRig(t *testing.T) *rig {
	t.Helper()
	// The certificates are of the real present: what verifies them knows no other.
	ca, err := rpc.NewCA("homelab", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{fake: &fake{clock: &clock{t: noon}, plan: new(homelabv1.Plan), status: new(controllerv1.StatusResponse)}, t: t, dir: t.TempDir(), ca: ca, ready: patient}
	r.write("ca.pem", string(ca.Cert()))
	r.issue("controller", rpc.Identity{Role: rpc.RoleController, Name: "controller-1"}, time.Hour)
	r.issue("admin", rpc.Identity{Role: rpc.RoleAdmin, Name: "laptop"}, time.Hour)
	r.issue("viewer", rpc.Identity{Role: rpc.RoleViewer, Name: "tv"}, time.Hour)
	spec, err := os.ReadFile("testdata/homelab.yaml")
	if err != nil {
		t.Fatal(err)
	}
	r.write("homelab.yaml", string(spec))

	r.write("server.pem", string(ca.Cert()))
	r.address = r.serve("controller", r.fake)
	r.configure(r.address)
	return r
}

// serve has a controller listen with the certificate of that file.
func (r *rig) serve(file string, is controllerv1.ControllerServiceServer) (address string) {
	t := r.t
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	creds, err := rpc.LoadTLS(r.path("server.pem"), r.path(file+".pem"), r.path(file+".key"))
	if err != nil {
		t.Fatal(err)
	}
	creds.Log = quiet
	r.goesBy = creds
	server, err := rpc.Listen(t.Context(), rpc.ServerConfig{Address: "127.0.0.1:0", Credentials: creds, Allow: allow, Log: quiet, Grace: time.Millisecond},
		func(s grpc.ServiceRegistrar) { controllerv1.RegisterControllerServiceServer(s, is) })
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		// A server that is ended before it began to serve says so.
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return server.Addr().String()
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

func (r *rig) write(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(r.path(name), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) issue(name string, id rpc.Identity, lifetime time.Duration) {
	r.t.Helper()
	pair, err := r.ca.Issue(id, lifetime, time.Now())
	if err == nil {
		err = pair.Write(r.path(name+".pem"), r.path(name+".key"))
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// configure writes the client configuration, its paths relative.
func (r *rig) configure(controllers ...string) {
	list := `["` + strings.Join(controllers, `", "`) + `"]`
	r.write("hlctl.yaml", fmt.Sprintf(`current: admin
contexts:
  admin: {controllers: %s, ca: ca.pem, cert: admin.pem, key: admin.key}
  viewer: {controllers: %s, ca: ca.pem, cert: viewer.pem, key: viewer.key}
`, list, list))
}

// ran is what one command line did.
type ran struct {
	code     int
	out, err string
}

// app is hlctl without a terminal.
func (r *rig) app(in io.Reader, out, errw io.Writer) *app {
	return &app{in: in, out: out, errw: errw, now: r.clock.now, columns: 80, ready: r.ready}
}

func (r *rig) run(args ...string) ran {
	return r.runWith(r.t.Context(), strings.NewReader(""), nil, args...)
}

func (r *rig) runWith(ctx context.Context, in io.Reader, change func(*app), args ...string) ran {
	r.t.Helper()
	r.t.Chdir(r.dir) // messages name files as they were typed
	var out, errw buffer
	a := r.app(in, &out, &errw)
	if change != nil {
		change(a)
	}
	code := a.main(ctx, append([]string{"--config", r.path("hlctl.yaml")}, args...))
	return ran{code, r.mask(out.String()), r.mask(errw.String())}
}

// mask takes out what differs from run to run.
func (r *rig) mask(text string) string {
	return strings.NewReplacer(r.dir, "DIR", r.address, "127.0.0.1:8401").Replace(text)
}

// buffer is written by one goroutine and read by another.
type buffer struct {
	mu   sync.Mutex
	text strings.Builder
	tell func(all string)
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	b.text.Write(p)
	all := b.text.String()
	b.mu.Unlock()
	if b.tell != nil {
		b.tell(all)
	}
	return len(p), nil
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
