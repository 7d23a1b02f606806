package guest_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/homeiac/homelab/agent/guest"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// inShell is a guest agent that runs its commands on this machine, with a folder
// of the test's own for /run, and passes on 64 kB of each output, 1 MiB with base64.
func inShell(t *testing.T) (*agent, string) {
	t.Helper()
	run := t.TempDir()
	return &agent{exec: func(req *driverv1.ExecRequest) (*driverv1.ExecResponse, error) {
		argv := make([]string, 0, len(req.GetArgv()))
		for _, a := range req.GetArgv() {
			argv = append(argv, strings.ReplaceAll(a, "/run/hl.", run+"/hl."))
		}
		cmd := exec.Command(argv[0], argv[1:]...)
		var out, errs bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(req.GetStdin()), &out, &errs
		err := cmd.Run()
		var ee *exec.ExitError
		if err != nil && !errors.As(err, &ee) {
			return nil, err
		}
		r := &driverv1.ExecResponse{Stdout: bytes.ReplaceAll(out.Bytes(), []byte(run), []byte("/run")), Stderr: errs.Bytes(), Exit: int32(cmd.ProcessState.ExitCode())}
		if len(r.GetStdout()) > 1<<20 {
			r.Stdout, r.Truncated = r.GetStdout()[:1<<20], true
		}
		return r, nil
	}}, run
}

func TestLongOutputIsFetchedThroughTheGuestAgent(t *testing.T) {
	a, run := inShell(t)
	sh, err := guest.OpenAgent(t.Context(), a, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("0123456789abcde\x00"), 100_000) // 1.6 MB, not text
	file := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(file, want, 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	exit, err := sh.Command(t.Context(), []string{"sh", "-c", `cat "$1"; cat >&2; exit 7`, "x", file}, strings.NewReader("to stderr"), &out, &errs)
	if err != nil || exit != 7 || !bytes.Equal(out.Bytes(), want) || errs.String() != "to stderr" {
		t.Errorf("exit %d, %d bytes, %q: %v", exit, out.Len(), errs.String(), err)
	}
	for _, argv := range a.calls {
		if strings.Contains(strings.Join(argv, " "), "to stderr") {
			t.Errorf("standard input in argv: %q", argv)
		}
	}
	if left, _ := os.ReadDir(run); len(left) != 0 {
		t.Errorf("left in the guest: %v", left)
	}
	// Such an output of a plain script is an error, not a part of it.
	if _, err := sh.Run(t.Context(), "cat "+file, nil); !errors.Is(err, rpc.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
}

func TestArgumentsAndExitCodesGoThroughTheGuestAgentAsTheyAre(t *testing.T) {
	a, _ := inShell(t)
	sh, err := guest.OpenAgent(t.Context(), a, nil)
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	exit, err := sh.Command(t.Context(), []string{"printf", "%s|", "two words", "it's", "$HOME;rm *", ""}, nil, &out, &errs)
	if err != nil || exit != 0 || out.String() != "two words|it's|$HOME;rm *||" {
		t.Errorf("exit %d, %q: %v", exit, out.String(), err)
	}
	out.Reset()
	exit, err = sh.Command(t.Context(), []string{"/no/such/program"}, nil, &out, &errs)
	if err != nil || exit != 127 || !strings.Contains(errs.String(), "/no/such/program") {
		t.Errorf("exit %d, %q: %v", exit, errs.String(), err)
	}
}
