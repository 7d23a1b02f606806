package controller

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/homeiac/homelab/controller/store"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

const (
	// personSoon and authoritySoon are how long before their end people's certificates and
	// CAs are told of. Nobody renews those but people.
	personSoon    = 14 * 24 * time.Hour
	authoritySoon = 365 * 24 * time.Hour
)

// ending are the certificates that should have been renewed by now.
func (c *Controller) ending(ctx context.Context) ([]*controllerv1.CertificateStatus, error) {
	roots, err := c.roots()
	if err != nil {
		return nil, err
	}
	now, latest := c.now(), roots[len(roots)-1] // the others are about to go
	var list []*controllerv1.CertificateStatus
	authority := func(ca *x509.Certificate, role string) {
		if now.Add(authoritySoon).After(ca.NotAfter) {
			list = append(list, authorityStatus(ca, role))
		}
	}
	authority(latest, "root")
	issuing, err := c.allIssuing(ctx)
	if err != nil {
		return nil, err
	}
	revoked := c.creds.Revocations()
	for _, ca := range issuing {
		if ca.CheckSignatureFrom(latest) == nil && !revoked.Has(rpc.Serial(ca)) {
			authority(ca, "issuing")
		}
	}
	issued, err := c.issued(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range overdue(issued, revoked.Has, now) {
		list = append(list, certificateStatus(i, roots))
	}
	return list, nil
}

// overdue finds those of the certificates, which are by role and name, that should have
// been renewed: the one of each holder that ends last.
func overdue(issued []store.Issued, revoked func(serial string) bool, now time.Time) []store.Issued {
	var last []store.Issued
	for _, i := range issued {
		n := len(last)
		switch {
		case revoked(i.Serial):
		case n == 0 || last[n-1].Role != i.Role || last[n-1].Name != i.Name:
			last = append(last, i)
		case i.NotAfter.After(last[n-1].NotAfter):
			last[n-1] = i
		}
	}
	var late []store.Issued
	for _, i := range last {
		at := rpc.OverdueAt(i.NotBefore, i.NotAfter)
		if i.Role != rpc.RoleAgent && i.Role != rpc.RoleController {
			if !now.Before(i.NotAfter) {
				continue // nobody's any more
			}
			// One that was made for a day is not told of all day long.
			if soon := i.NotAfter.Add(-personSoon); soon.After(at) {
				at = soon
			}
		}
		if !now.Before(at) {
			late = append(late, i)
		}
	}
	return late
}
