package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/agent/guest"
	"github.com/homeiac/homelab/agent/guest/guesttest"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/sshexec/sshtest"
)

// impostor is a machine that answers SSH at the guest's address with another host
// key, beside a guest whose agent answers. Nothing may run on it.
func impostor(t *testing.T, w *world, in *inside) {
	t.Helper()
	vm := running(w)
	vm.GuestAgent = factYes("")
	w.hyp.vms[201] = vm
	if _, err := w.svc.keys.MakeHostKey("home", "k3s-1", 1); err != nil {
		t.Fatal(err)
	}
	srv := sshtest.Start(t)
	srv.Lock()
	srv.User, srv.Authorized = "ubuntu", []ssh.PublicKey{w.svc.keys.Agent().PublicKey()}
	srv.Run = func(c sshtest.Command) int { t.Errorf("ran on the wrong machine: %s", c.Line); return 0 }
	srv.Unlock()
	w.svc.sshPort = srv.Port()
	w.svc.wrongFor = 50 * time.Millisecond
	w.hyp.exec = func(req *driverv1.ExecRequest) (*driverv1.ExecResponse, error) {
		if req.GetIdentity().GetUuid() != w.want().GetIdentity().GetUuid() {
			t.Errorf("identity %v", req.GetIdentity())
		}
		argv := req.GetArgv()
		var out, errs strings.Builder
		exit := 0
		switch {
		case argv[0] == "/bin/rm":
		case strings.Contains(argv[2], "mktemp"):
			_, _ = io.WriteString(&out, "/run/hl.12345678\n")
		case argv[2] == k3s.ReadFileScript(k3s.ServerToken):
			_, _ = io.WriteString(&out, fullToken+"\n")
		case strings.Contains(argv[2], "base64"):
			_, _ = io.WriteString(&out, "aGVsbG8K\n")
		case strings.HasPrefix(argv[2], `exec "$@"`):
			exit = 42
		case argv[2] == ":":
		default:
			exit = in.answer(sshtest.Command{Line: "sudo -n sh -c '" + strings.ReplaceAll(argv[2], "'", `'\''`) + "'", Stdout: &out, Stderr: &errs})
		}
		return &driverv1.ExecResponse{Stdout: []byte(out.String()), Stderr: []byte(errs.String()), Exit: int32(exit)}, nil
	}
}

func TestWhenAnotherMachineAnswersSSHTheGuestAgentIsTheWayIn(t *testing.T) {
	w := newWorld(t)
	in := goodInside()
	impostor(t, w, in)
	s := w.must(bootStep)
	if !strings.Contains(s.result.GetText(), "guest agent only") || !strings.Contains(s.result.GetText(), "host key") {
		t.Errorf("result %q", s.result.GetText())
	}
	r, err := w.svc.Credentials(t.Context(), &agentv1.CredentialsRequest{Want: w.want(), Kind: agentv1.CredentialsKind_CREDENTIALS_KIND_TOKEN})
	if err != nil || string(r.GetSecret()) != fullToken+"\n" {
		t.Errorf("token: %v", err)
	}
	out := &execStream{ctx: t.Context()}
	if err := w.svc.Exec(&agentv1.ExecRequest{Want: w.want(), Argv: []string{"hello"}}, out); err != nil || out.exit != 42 || out.out.String() != "hello\n" {
		t.Errorf("exec: %v, exit %d, %q", err, out.exit, out.out.String())
	}
	// etcd has no other way than SSH, and says so.
	req := w.request(snapshotStep)
	req.Through, req.Want, req.Step.Guest = w.want(), nil, ""
	if _, err := w.do(req); !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "etcd is asked through SSH only") || !strings.Contains(err.Error(), "another machine answers there") {
		t.Errorf("snapshot: %v", err)
	}
	// The agent's guest is compared as well.
	in.machineID = "ffff"
	want := w.want()
	want.MachineId = "0123456789abcdef"
	if err := w.svc.Exec(&agentv1.ExecRequest{Want: want, Argv: []string{"hello"}}, out); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("another machine-id: %v", err)
	}
	// Without it there is no way.
	w.hyp.vms[201].GuestAgent = factNo("no answer")
	if _, err := w.do(w.request(bootStep)); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("its agent mute: %v", err)
	}
}

func TestALookSaysHowSSHFailed(t *testing.T) {
	w := newWorld(t)
	in := goodInside()
	impostor(t, w, in)
	look := func(want *homelabv1.GuestWant) *homelabv1.GuestLook {
		t.Helper()
		o, err := w.svc.Observe(t.Context(), &agentv1.ObserveRequest{Looks: []*agentv1.LookRequest{{Want: want}}})
		if err != nil || len(o.GetObservation().GetLooks()) != 1 {
			t.Fatal(o, err)
		}
		return o.GetObservation().GetLooks()[0]
	}
	if l := look(w.want()); l.GetSshWhy() != "host key" || !isNo(l.GetSsh()) {
		t.Errorf("another host key: %q %v", l.GetSshWhy(), l.GetSsh())
	}
	w.svc.sshPort = 1
	if l := look(w.want()); l.GetSshWhy() != "refused" {
		t.Errorf("refused: %q", l.GetSshWhy())
	}
	w.guestOS(func(c sshtest.Command) int { return in.answer(c) })
	if l := look(w.want()); l.GetSshWhy() != "" || !isYes(l.GetSsh()) {
		t.Errorf("well: %q %v", l.GetSshWhy(), l.GetSsh())
	}
	clone := w.want()
	clone.MachineId = "ffff"
	if l := look(clone); l.GetSshWhy() != "machine" || !isNo(l.GetSsh()) {
		t.Errorf("another machine-id: %q", l.GetSshWhy())
	}
	in.hostname = "ubuntu"
	if l := look(w.want()); l.GetSshWhy() != "machine" || !strings.Contains(l.GetBooted().GetReason(), "its hostname is ubuntu") {
		t.Errorf("another hostname: %q %v", l.GetSshWhy(), l.GetBooted())
	}
	in.cloudInit = `{"status":"running"}`
	if l := look(w.want()); l.GetSshWhy() != "" {
		t.Errorf("cloud-init has not set it yet: %q", l.GetSshWhy())
	}
}

// TestALookAtAServerTellsItsCertificateAndConfig: the certificate is etcd's here,
// at the port where the API's would be.
func TestALookAtAServerTellsItsCertificateAndConfig(t *testing.T) {
	w := newWorld(t)
	c := newCluster(t, w, 1)
	srv := w.guestOS(func(cmd sshtest.Command) int {
		if script, _ := guesttest.Script(cmd); script == k3s.ProbeScript {
			c.inside.probe(cmd.Stdout)
			fmt.Fprint(cmd.Stdout, "@@hl begin config\ntls-san:\n- vip\ntoken: hunter2\n@@hl end config 0\n")
			return 0
		}
		return c.answer(cmd)
	})
	srv.Lock()
	srv.Forward = map[string]string{"127.0.0.1": c.etcd[0].client}
	srv.Unlock()
	k := w.observe(true).GetLooks()[0].GetK3S()
	if want := []string{"127.0.0.1", "127.79.0.1", "127.79.0.2", "127.79.0.3", "server"}; !slices.Equal(k.GetServingNames(), want) {
		t.Errorf("names %q", k.GetServingNames())
	}
	if k.GetConfigYaml() != "tls-san:\n    - vip\n" {
		t.Errorf("config %q", k.GetConfigYaml())
	}
	if k = w.observe(false).GetLooks()[0].GetK3S(); len(k.GetServingNames()) != 0 {
		t.Errorf("names without the cluster: %q", k.GetServingNames())
	}
}

// TestAFileOfAnySizeGoesThroughTheGuestAgent with the scripts run by this machine's
// own shell.
func TestAFileOfAnySizeGoesThroughTheGuestAgent(t *testing.T) {
	w := newWorld(t)
	most := 0
	w.hyp.exec = func(req *driverv1.ExecRequest) (*driverv1.ExecResponse, error) {
		most = max(most, len(req.GetStdin()))
		cmd := exec.Command(req.GetArgv()[0], req.GetArgv()[1:]...)
		cmd.Stdin = bytes.NewReader(req.GetStdin())
		out, err := cmd.Output()
		return &driverv1.ExecResponse{Stdout: out}, err
	}
	sh, err := guest.OpenAgent(t.Context(), w.hyp, w.want().GetIdentity())
	if err != nil {
		t.Fatal(err)
	}
	j := &joining{s: w.svc, sh: sh, e: func(*homelabv1.Event) {}}
	file := filepath.Join(t.TempDir(), "it's", "binary")
	for _, size := range []int{0, 10, agentPiece, agentPiece + 1, 2 * agentPiece, 3*agentPiece - 7} {
		want := bytes.Repeat([]byte("0123456\x00"), size/8+1)[:size]
		if err := j.write(t.Context(), "binary", file, 0o755, bytes.NewReader(want)); err != nil {
			t.Fatal(size, err)
		}
		got, err := os.ReadFile(file)
		st, _ := os.Stat(file)
		if err != nil || !bytes.Equal(got, want) || st.Mode().Perm() != 0o755 {
			t.Errorf("%d bytes: %d came, %v", size, len(got), err)
		}
		if left, _ := os.ReadDir(filepath.Dir(file)); len(left) != 1 {
			t.Errorf("%d bytes: left %v", size, left)
		}
	}
	if most > agentPiece {
		t.Errorf("%d bytes at once", most)
	}
}
