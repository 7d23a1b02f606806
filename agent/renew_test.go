package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/homeiac/homelab/internal/rpc"
)

func TestAnAgentThatIsThereBeforeItsNetworkAsksAgain(t *testing.T) {
	unreachable := func(e syscall.Errno) error {
		return rpc.Errorf(rpc.ErrUnavailable, "%s", (&net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", e)}).Error())
	}
	for name, c := range map[string]struct {
		fails error
		until int           // it fails that often
		asked int           // and is asked that often
		took  time.Duration // in all
	}{
		"the network comes":       {unreachable(syscall.EHOSTUNREACH), 3, 4, 3 * wayPoll},
		"the network never comes": {unreachable(syscall.ENETUNREACH), 1000, 1 + int(askTimeout/wayPoll), askTimeout},
		"nobody listens there":    {unreachable(syscall.ECONNREFUSED), 1000, 1, 0},
		"it was revoked":          {fmt.Errorf("%w: its certificate was revoked", rpc.ErrDenied), 1000, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, asked := time.Now(), 0
				err := onceThereIsANetwork(t.Context(), func(context.Context) error {
					asked++
					if asked > c.until {
						return nil
					}
					return c.fails
				})
				if took := time.Since(began); took != c.took || (asked > c.until) != (err == nil) || err != nil && !errors.Is(err, c.fails) {
					t.Errorf("%v after %s", err, took)
				}
				if asked < c.asked-1 || asked > c.asked {
					t.Errorf("asked %d times", asked)
				}
			})
		})
	}
}
