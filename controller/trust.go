package controller

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/rpc"
)

// revocationAttempts bounds how often a list is made anew because another
// controller made one in between.
const revocationAttempts = 8

// revocationTimeout bounds taking certificates back, whose caller may be gone.
const revocationTimeout = 10 * time.Second

// loadIssuing reads this controller's issuing CA; nil when it has none, as in fleets
// that were made before there were any.
func loadIssuing(cfg Config, fleet string) (*rpc.CA, error) {
	if _, err := os.Stat(cfg.IssuingCA); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	ca, err := rpc.LoadCA(cfg.IssuingCA, cfg.IssuingKey, nil)
	if err != nil {
		return nil, err
	}
	if ca.IsRoot() || ca.Fleet() != fleet {
		return nil, rpc.Errorf(rpc.ErrInvalid, "%s is no issuing CA of fleet %s; correct issuingCA in the configuration", cfg.IssuingCA, fleet)
	}
	return ca, nil
}

// trustService tells agents the trust that is in force.
type trustService struct {
	trustv1.UnimplementedTrustServiceServer
	c *Controller
}

// Present tells the trust that is in force.
func (s *trustService) Present(context.Context, *trustv1.PresentRequest) (*trustv1.PresentResponse, error) {
	t, err := s.c.trust()
	if err != nil {
		return nil, err
	}
	return &trustv1.PresentResponse{Trust: t}, nil
}

// trust is what this controller goes by, and tells others.
func (c *Controller) trust() (*trustv1.Trust, error) {
	roots, err := c.creds.Roots()
	if err != nil {
		return nil, err
	}
	t := &trustv1.Trust{
		Revocations: c.creds.Revocations().PEM(), Roots: roots,
		Controller: &trustv1.ControllerAddress{Name: c.creds.Identity().Name, Address: c.listening(), Enrol: c.enrolAddress()},
	}
	if c.cfg.GossipKeys != "" {
		if t.GossipKeys, err = gossip.ReadKeys(c.cfg.GossipKeys); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// takenBack is why this controller must end: it was removed. It could sign itself another
// certificate, which is on no list yet, and must not: where the store's list is newer than
// ours, it counts here before it is ours, which waits for the roots of the same time.
func (c *Controller) takenBack(ctx context.Context) error {
	lists := []*rpc.Revocations{c.creds.Revocations()}
	if text, _, err := c.store.Revocations(ctx); err == nil {
		if list, err := parseList(text); err == nil {
			lists = append(lists, list)
		}
	}
	return c.removedBy(func(serial string) bool {
		return slices.ContainsFunc(lists, func(list *rpc.Revocations) bool { return list.Has(serial) })
	})
}

func (c *Controller) removedBy(revoked func(serial string) bool) error {
	own := []*x509.Certificate{c.creds.Leaf()}
	if ca := c.issuing.inUse(); ca != nil {
		own = append(own, ca.Certificate())
	}
	for _, cert := range own {
		if revoked(rpc.Serial(cert)) {
			return rpc.Errorf(rpc.ErrInvalid, "the certificate of %s (%s, %q) was taken back: this controller is removed, and serves nobody; if it is to come back, on your machine: hlctl hosts remove HOST --purge, then hlctl hosts add --controller root@HOST",
				c.creds.Identity(), rpc.Serial(cert), cert.Subject.CommonName)
		}
	}
	return nil
}

// mayGo refuses to take back what this controller itself stands on. The list would be
// signed by who is on it: nobody could take it, and nobody another one after it.
func (c *Controller) mayGo(serial string) error {
	roots, err := c.roots()
	if err != nil {
		return err
	}
	for _, root := range roots {
		if rpc.Serial(root) == serial {
			return rpc.Errorf(rpc.ErrRefused, "%s is the root %q, and all certificates with it; another root takes its place with: hlctl trust rotate-ca", serial, root.Subject.CommonName)
		}
	}
	ca := c.issuing.inUse()
	if rpc.Serial(c.creds.Leaf()) != serial && (ca == nil || rpc.Serial(ca.Certificate()) != serial) {
		return nil
	}
	return rpc.Errorf(rpc.ErrRefused, "%s is of %s itself, which you are asking; another controller takes it back (hlctl hosts remove HOST does), and the only one cannot be removed", serial, c.creds.Identity())
}

// RevokeCertificate takes a certificate back. It is carried out to its end also when the
// caller goes away, as does one whose own certificate is among them.
func (s *service) RevokeCertificate(ctx context.Context, req *controllerv1.RevokeCertificateRequest) (*controllerv1.RevokeCertificateResponse, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), revocationTimeout)
	defer cancel()
	added, err := s.c.takeBack(ctx, req.GetSerial(), req.GetHolder())
	if err != nil {
		return nil, err
	}
	return &controllerv1.RevokeCertificateResponse{Serials: added, Number: s.c.creds.Revocations().Number()}, nil
}

// revoke makes a list with these certificates too, has it remembered, and applies
// it; from then on it is told to everybody. It returns those that were not on it.
func (c *Controller) revoke(ctx context.Context, serials ...string) ([]string, error) {
	more := make(map[string]time.Time, len(serials))
	for _, s := range serials {
		more[s] = c.now().UTC().Truncate(time.Second)
	}
	return c.extend(ctx, more, -1)
}

// extend is revoke with the times, and a number that the list must exceed.
func (c *Controller) extend(ctx context.Context, more map[string]time.Time, above int64) ([]string, error) {
	ca := c.issuing.inUse()
	if ca == nil {
		return nil, rpc.Errorf(rpc.ErrUnsupported, "this controller has no issuing CA, and cannot sign a list of revoked certificates")
	}
	for range revocationAttempts {
		text, version, err := c.store.Revocations(ctx)
		if err != nil {
			return nil, err
		}
		stored, err := parseList(text)
		if err != nil {
			return nil, err
		}
		mine := c.creds.Revocations()
		all := mine.Serials()
		maps.Copy(all, stored.Serials())
		var added []string
		for serial, at := range more {
			if _, ok := all[serial]; !ok {
				all[serial] = at
				added = append(added, serial)
			}
		}
		// A list signed by who is on it could be taken by nobody, and none after it.
		if err := c.removedBy(func(serial string) bool { _, is := all[serial]; return is }); err != nil {
			return nil, err
		}
		slices.Sort(added)
		number := max(mine.Number(), stored.Number(), above)
		if len(added) == 0 && number == stored.Number() && number == mine.Number() && above < number {
			return nil, nil
		}
		list, err := ca.SignRevocations(number+1, all, c.now())
		if err != nil {
			return nil, err
		}
		ok, err := c.store.PutRevocations(ctx, list.PEM(), version)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if _, err := c.creds.Revoke(list.PEM()); err != nil {
			return nil, err
		}
		c.log.Info("certificates revoked", "serials", added, "list", list.Number())
		c.pusher.wake()
		return added, nil
	}
	return nil, rpc.Errorf(rpc.ErrBusy, "other controllers keep revoking certificates; try again")
}

func parseList(text []byte) (*rpc.Revocations, error) {
	if len(text) == 0 {
		return nil, nil
	}
	return rpc.ParseRevocations(text)
}

// learn takes a list of revoked certificates that others go by. What is on it and
// not on ours, and the other way round, is on the next: a controller that lost what
// it remembered must not make anybody count again.
func (c *Controller) learn(ctx context.Context, text []byte) error {
	mine := c.creds.Revocations()
	theirs, err := parseList(text)
	if err != nil {
		return err
	}
	if theirs.Number() < mine.Number() || theirs.Number() == mine.Number() && maps.EqualFunc(theirs.Serials(), mine.Serials(), time.Time.Equal) {
		return nil
	}
	if err := c.creds.VerifyRevocations(theirs); err != nil {
		return err
	}
	for serial := range mine.Serials() {
		if !theirs.Has(serial) || theirs.Number() == mine.Number() {
			_, err := c.extend(ctx, theirs.Serials(), theirs.Number())
			return err
		}
	}
	_, err = c.creds.Revoke(text)
	if err == nil {
		c.pusher.wake()
	}
	return err
}

// syncTrust makes what we go by and what the store remembers the same, the newer of
// both lists: the store may be new, or another controller's word.
func (c *Controller) syncTrust(ctx context.Context) error {
	if err := c.syncRing(ctx); err != nil {
		return err
	}
	if err := c.syncRoots(ctx); err != nil {
		return err
	}
	for range revocationAttempts {
		text, version, err := c.store.Revocations(ctx)
		if err != nil {
			return err
		}
		if err := c.learn(ctx, text); err != nil {
			return fmt.Errorf("the list of revoked certificates in the store: %w", err)
		}
		stored, err := parseList(text)
		if err != nil {
			return err
		}
		mine := c.creds.Revocations()
		if stored.Number() >= mine.Number() {
			return nil
		}
		if ok, err := c.store.PutRevocations(ctx, mine.PEM(), version); ok || err != nil {
			return err
		}
	}
	return nil // somebody else is at it; the watch tells
}

// watchTrust applies what controllers decide, until ctx ends. After each new list all
// hosts are asked, so that whoever is revoked is shown so, and not as last seen.
func (c *Controller) watchTrust(ctx context.Context) error {
	var asking sync.WaitGroup
	defer asking.Wait()
	number := c.creds.Revocations().Number()
	for range c.store.WatchTrust(ctx) {
		if err := c.syncTrust(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("trust", "error", err)
		}
		if err := c.takenBack(ctx); err != nil {
			return err
		}
		c.pusher.wake()
		if now := c.creds.Revocations().Number(); now != number {
			number = now
			asking.Go(func() { c.background(ctx, nil, false) })
		}
	}
	return nil
}

// listening is the IP:PORT of our services, and enrolAddress that of the service for
// those without a certificate; empty while there is none.
func (c *Controller) listening() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.address
}

func (c *Controller) enrolAddress() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.enrolAt
}
