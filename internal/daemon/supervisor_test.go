package daemon_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/homeiac/homelab/internal/daemon"
)

// systemd listens as the service manager does, and gives what it is told.
func systemd(t *testing.T) (hears func() string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	t.Setenv("NOTIFY_SOCKET", socket)
	return func() string {
		t.Helper()
		buf := make([]byte, 4096)
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
}

func TestSystemdIsToldWhenADaemonIsReadyLivesAndEnds(t *testing.T) {
	hears := systemd(t)
	t.Setenv("WATCHDOG_USEC", "20000")
	s := daemon.Supervised(slog.New(slog.DiscardHandler))
	s.Ready("host pve1")
	beat, stop := s.Beat()
	defer stop()
	<-beat
	s.Alive()
	s.Ending("waits for qm")
	for _, want := range []string{"READY=1\nSTATUS=host pve1", "WATCHDOG=1", "STOPPING=1\nSTATUS=waits for qm"} {
		if got := hears(); got != want {
			t.Errorf("it hears %q, want %q", got, want)
		}
	}
}

func TestTheWatchdogOfAnotherProcessIsNotFed(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", "1")
	if beat, _ := daemon.Supervised(slog.New(slog.DiscardHandler)).Beat(); beat != nil {
		t.Error("it beats")
	}
}

func TestWithoutSystemdNobodyIsTold(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	for _, s := range []*daemon.Supervisor{nil, daemon.Supervised(slog.New(slog.DiscardHandler))} {
		s.Ready("x")
		s.Alive()
		s.Ending("x")
		if beat, stop := s.Beat(); beat != nil {
			t.Error("it beats")
		} else {
			stop()
		}
	}
}

func TestTheLogSaysWhyADaemonStopped(t *testing.T) {
	var log strings.Builder
	cmd := daemon.Command("hl-x", "An example", "x.yaml", func(ctx context.Context, _ string, _ *slog.Logger) error {
		<-ctx.Done()
		return nil
	})
	cmd.SetErr(&log)
	cmd.SetArgs([]string{})
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("terminated signal received"))
	if err := cmd.ExecuteContext(ctx); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	i := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, "msg=stopping") })
	if len(lines) != 2 || i != 0 || !strings.Contains(lines[0], `reason="terminated signal received"`) || !strings.Contains(lines[0], "version=") ||
		!strings.Contains(lines[1], "msg=stopped") {
		t.Errorf("log:\n%s", log.String())
	}
}

// What a daemon was started with and cannot use does not mend itself: systemd is not
// to try again and again.
func TestAnUnusableConfigurationHasAnExitCodeOfItsOwn(t *testing.T) {
	if os.Getenv("HL_X") != "" {
		cmd := daemon.Command("hl-x", "An example", "x.yaml", unusable)
		cmd.SetArgs([]string{})
		daemon.Main(cmd)
		return
	}
	exit := runAgain(t, "TestAnUnusableConfigurationHasAnExitCodeOfItsOwn")
	if exit != 78 {
		t.Errorf("exit code %d, want 78", exit)
	}
}
