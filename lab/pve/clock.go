package pve

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// clock tells the time and waits. Everything simulated that takes time goes
// through it, so that tests need not wait.
type clock interface {
	Now() time.Time
	// Sleep returns early, with the context's cause, when ctx ends.
	Sleep(ctx context.Context, d time.Duration) error
}

// wallClock is the machine's, and ahead of it on a host whose clock is off.
type wallClock struct{ ahead time.Duration }

func (c wallClock) Now() time.Time { return time.Now().Add(c.ahead) }

func (wallClock) Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func randomUUID() string { return uuid.NewString() }

// randomMAC is an address with Proxmox's own prefix, the default since PVE 8.
func randomMAC() string {
	var b [3]byte
	_, _ = rand.Read(b[:])
	return fmt.Sprintf("BC:24:11:%02X:%02X:%02X", b[0], b[1], b[2])
}
