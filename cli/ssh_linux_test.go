package cli

import (
	"context"
	"errors"
	"io"
	"runtime"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

func TestCtrlCAtAPassphraseLeavesATerminalThatShowsWhatIsTyped(t *testing.T) {
	terminal, tty, err := pty.Open()
	if err != nil {
		t.Skipf("no terminal can be had here: %v", err)
	}
	defer terminal.Close() // which ends the reading of it, too
	shows := func() bool {
		state, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		return state.Lflag&unix.ECHO != 0
	}
	a := &app{in: tty, inIsTerm: true, errw: io.Discard}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := a.secret()(ctx, "Passphrase: ")
		done <- err
	}()
	for shows() {
		runtime.Gosched()
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if !shows() {
		t.Error("what is typed in the shell afterwards is not seen")
	}
}
