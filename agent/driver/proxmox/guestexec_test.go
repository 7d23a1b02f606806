package proxmox_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/drivertest"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

func guestExec(ctx context.Context, d driver.Driver, limit time.Duration, argv ...string) (*driverv1.ExecResponse, error) {
	return d.Exec(ctx, &driverv1.ExecRequest{Identity: drivertest.Identity(201), Argv: argv, Stdin: []byte("from stdin\n"), Deadline: durationpb.New(limit)})
}

func TestACommandInTheGuestKeepsItsArgumentsAndItsExitCode(t *testing.T) {
	h := newHost(t)
	h.side("clean-201", "yes")
	d := started(t, h)
	out, err := guestExec(t.Context(), d, 20*time.Second, "/bin/sh", "-c", `printf '<%s>' "$@"; cat >&2; exit 3`, "sh", "a b", "$x;'\"", "--timeout", "é", "")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(out.GetStdout()), `<a b><$x;'"><--timeout><é><>`; got != want {
		t.Errorf("arguments %q, want %q", got, want)
	}
	if string(out.GetStderr()) != "from stdin\n" || out.GetExit() != 3 || out.GetTruncated() {
		t.Errorf("%v", out)
	}
}

func TestACommandMayTakeLongerThanQMWaits(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.side("clean-201", "yes")
	d := started(t, h)
	d.SetExecWait(time.Second)
	out, err := guestExec(t.Context(), d, 30*time.Second, "/bin/sh", "-c", "sleep 1.3; echo done; exit 7")
	if err != nil || string(out.GetStdout()) != "done\n" || out.GetExit() != 7 {
		t.Errorf("%v, %v", out, err)
	}
	if !h.ran("qm guest exec-status 201 1") {
		t.Errorf("calls %v", h.calls())
	}
}

func TestACommandThatDoesNotEndInTimeSaysWhereItIs(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := started(t, h)
	h.wrap("qm", `if [ "$1" = guest ]; then echo '{"pid":152}'; exit 0; fi`)
	d.SetExecWait(time.Second)
	_, err := guestExec(t.Context(), d, 1500*time.Millisecond, "/bin/sleep", "1000")
	if !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "process 152") {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	_, err = guestExec(ctx, d, time.Hour, "/bin/sleep", "1000")
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "process 152") {
		t.Errorf("error %v", err)
	}
}

func TestAnAgentThatIsSilentForAWhileIsAskedAgain(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := started(t, h)
	h.wrap("qm", `if [ "$2" = exec ]; then echo '{"pid":152}'; exit 0; fi
if [ "$2" = exec-status ] && [ ! -e $HOST/again ]; then touch $HOST/again; echo "QEMU guest agent is not running" >&2; exit 255; fi
if [ "$2" = exec-status ]; then printf '{"exited":1,"exitcode":0,"out-data":"\351\303\251"}'; exit 0; fi`)
	out, err := guestExec(t.Context(), d, 30*time.Second, "/bin/true")
	if err != nil || string(out.GetStdout()) != "\xe9\xc3\xa9" {
		t.Errorf("%v, %v", out, err)
	}
}

// TestOutputThatIsNotUTF8ComesThrough as a plugin, whose answers are messages.
func TestOutputThatIsNotUTF8ComesThrough(t *testing.T) {
	h := newHost(t)
	started(t, h)
	h.wrap("qm", `if [ "$1" = guest ]; then printf '{"exited":1,"exitcode":1,"out-data":"caf\351\\n","err-data":"\377\376","out-truncated":1}'; exit 0; fi`)
	out, err := guestExec(t.Context(), h.plugin(), 20*time.Second, "/bin/true")
	if err != nil || string(out.GetStdout()) != "caf\xe9\n" || string(out.GetStderr()) != "\xff\xfe" || out.GetExit() != 1 || !out.GetTruncated() {
		t.Errorf("%v, %v", out, err)
	}
}
