package controller

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The tests that are not of this one have no NOTIFY_SOCKET, and tell nobody.
func TestSystemdHearsThatAControllerIsReadyAndLives(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "20000")
	f := newFleet(t, hostNames(1)...)
	f.up()
	for _, want := range []string{"READY=1\nSTATUS=controller ", "WATCHDOG=1", "WATCHDOG=1"} {
		buf := make([]byte, 4096)
		_ = systemd.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, err := systemd.Read(buf)
		if err != nil || !strings.HasPrefix(string(buf[:n]), want) {
			t.Fatalf("it hears %q, %v; want %q", buf[:n], err, want)
		}
	}
}
