package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/homeiac/homelab/internal/daemon"
	"github.com/homeiac/homelab/internal/rpc"
)

func TestACommandLineOfADaemon(t *testing.T) {
	errRun := errors.New("the address is taken")
	for _, c := range []struct {
		name, args, out, log string
		err                  error
	}{
		{"its usual file", "", "", "msg=runs file=/etc/homelab/x.yaml\n", nil},
		{"another file", "--config y.yaml", "", "msg=runs file=y.yaml\n", nil},
		{"every call", "-v --config y.yaml", "", "level=DEBUG msg=called\n", nil},
		{"it cannot run", "--config bad.yaml", "", "", errRun},
		{"its version", "version", "\n", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := daemon.Command("hl-x", "An example", "/etc/homelab/x.yaml", func(_ context.Context, file string, log *slog.Logger) error {
				if file == "bad.yaml" {
					return errRun
				}
				log.Info("runs", "file", file)
				log.Debug("called")
				return nil
			})
			var out, log bytes.Buffer
			cmd.SetOut(&out)
			cmd.SetErr(&log)
			cmd.SetArgs(strings.Fields(c.args))
			if err := cmd.ExecuteContext(t.Context()); !errors.Is(err, c.err) {
				t.Error(err)
			}
			if !strings.HasSuffix(out.String(), c.out) || !strings.Contains(log.String(), c.log) {
				t.Errorf("stdout %q, log %q", out.String(), log.String())
			}
			if strings.Contains(log.String(), "DEBUG") != strings.Contains(c.args, "-v") {
				t.Errorf("calls are logged only when asked for: %q", log.String())
			}
		})
	}
}

func unusable(context.Context, string, *slog.Logger) error {
	return rpc.Errorf(rpc.ErrInvalid, "/etc/homelab/x.crt is not there")
}

// runAgain runs one test of this binary in a process of its own, with HL_X set, and
// gives its exit code.
func runAgain(t *testing.T, name string) int {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^"+name+"$")
	cmd.Env = append(os.Environ(), "HL_X=1")
	_ = cmd.Run()
	return cmd.ProcessState.ExitCode()
}
