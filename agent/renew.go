package agent

import (
	"context"
	"errors"
	"time"

	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// renewTimeout bounds asking one controller for a new certificate.
const renewTimeout = 3 * time.Second

// begin is what comes before anything is served or called: the list of revoked
// certificates, and a new certificate when ours has expired while this host was off.
func (t *trust) begin(ctx context.Context) {
	if !t.creds.Now().After(t.creds.NotAfter()) {
		t.ask(ctx)
		return
	}
	bounded, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := t.renew(bounded); err != nil {
		// It is tried again while we serve, to nobody until then.
		t.log.Warn("the certificate has expired and is not renewed yet", "ended", t.creds.NotAfter(), "error", err)
	}
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
	if err := t.take(&trustv1.Trust{Roots: resp.GetTrust().GetRoots()}); err != nil {
		return err
	}
	if err := t.creds.SetCertificate(resp.GetCertificate()); err != nil {
		return err
	}
	return t.take(resp.GetTrust())
}
