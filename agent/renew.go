package agent

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"time"

	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
)

// renewTimeout bounds asking one controller for a new certificate.
const renewTimeout = 3 * time.Second

// askAgain is how long an agent goes by what it was told before it asks again by itself:
// one that was cut off from the network may have missed that there is another root, and
// would be told no more. askSoon is how soon one asks whom nobody told yet.
const (
	askAgain = 5 * time.Minute
	askSoon  = 5 * time.Second
	// wayPoll is how often one asks who has no network yet.
	wayPoll = 200 * time.Millisecond
	// settleTimeout bounds one round of it, with a few controllers that are off.
	settleTimeout = 30 * time.Second
)

// begin is what comes before anything is served or called: the list of revoked
// certificates, and a new certificate when ours has expired while this host was off.
func (t *trust) begin(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*askTimeout)
	defer cancel()
	if err := onceThereIsANetwork(ctx, t.settle); err != nil {
		// It is tried again while we serve.
		t.log.Warn("no controller told who is trusted now, what was known before holds", "ends", t.creds.NotAfter(), "error", err)
	}
}

// onceThereIsANetwork asks again for askTimeout as long as there is no way to those who are
// asked: a host that boots may be faster than its bridge or the switch. Whoever is there and
// does not answer is no reason to wait.
func onceThereIsANetwork(ctx context.Context, ask func(context.Context) error) error {
	patient, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil || !noWay(err) || !pause.For(patient, wayPoll) {
			return err
		}
	}
}

// noWay says whether the kernel knows no way to an address. gRPC hands on the text alone.
func noWay(err error) bool {
	for _, e := range []syscall.Errno{syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EADDRNOTAVAIL} {
		if strings.Contains(err.Error(), e.Error()) {
			return true
		}
	}
	return false
}

// settle asks who is trusted. Where our certificate has expired, or a controller and we
// do not know each other, there may be another root: then a renewal tells both.
func (t *trust) settle(ctx context.Context) error {
	if !t.creds.Now().After(t.creds.NotAfter()) {
		err := t.ask(ctx)
		if !errors.Is(err, rpc.ErrDenied) && !errors.Is(err, rpc.ErrRefused) {
			return err
		}
	}
	return t.renew(ctx)
}

// keepAsking asks again and again until ctx ends, so that nothing is missed for long.
func (t *trust) keepAsking(ctx context.Context) error {
	for {
		wait := askAgain
		if !t.wasTold() {
			wait = askSoon
		}
		if !pause.For(ctx, wait) {
			return nil
		}
		bounded, cancel := context.WithTimeout(ctx, settleTimeout)
		if err := t.settle(bounded); err != nil && ctx.Err() == nil {
			t.log.Debug("no controller told who is trusted now", "error", err)
		}
		cancel()
	}
}

func (t *trust) wasTold() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.told
}

// renew asks the controllers, one after the other, for a new certificate. What comes
// along is taken as when it is told: roots and gossip keys may have changed since.
func (t *trust) renew(ctx context.Context) error {
	controllers, err := t.remembered()
	if err != nil {
		return err
	}
	err = rpc.Errorf(rpc.ErrUnavailable, "no controller is known that renews certificates")
	var errs []error
	for _, c := range controllers {
		if c.Enrol == "" {
			continue
		}
		if err = t.renewAt(ctx, c); err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	return err
}

func (t *trust) renewAt(ctx context.Context, c known) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	conn, err := rpc.DialEnrol(c.Enrol, nil, t.creds)
	if err != nil {
		return err
	}
	defer conn.Close()
	resp, err := trustv1.NewEnrolServiceClient(conn).Renew(ctx, &trustv1.RenewRequest{})
	if err != nil {
		return err
	}
	// The new one may be below a new root.
	changed, err := t.creds.Adopt(resp.GetCertificate(), resp.GetTrust().GetRoots())
	if err != nil {
		return err
	}
	if changed {
		t.log.Info("the bundle of roots changed", "number", rpc.BundleNumber(resp.GetTrust().GetRoots()))
	}
	return t.take(resp.GetTrust())
}
