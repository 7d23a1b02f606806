package controller

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	"github.com/homeiac/homelab/internal/rpc"
)

// revokeHolder revokes all certificates of a name but one, and returns them. It looks
// again until there is no other: one may be renewed at the same moment.
func (c *Controller) revokeHolder(ctx context.Context, role, name, but string) ([]string, error) {
	var all []string
	for {
		held, err := c.valid(ctx, role, name)
		if err != nil {
			return nil, err
		}
		var serials []string
		for _, i := range held {
			if i.Serial != but {
				serials = append(serials, i.Serial)
			}
		}
		if len(serials) == 0 {
			return all, nil
		}
		added, err := c.revoke(ctx, serials...)
		if err != nil {
			return nil, err
		}
		all = append(all, added...)
	}
}

// takeBack carries out what RevokeCertificate asks for.
func (c *Controller) takeBack(ctx context.Context, serial, holder string) ([]string, error) {
	if holder == "" {
		serial, err := c.serialMeant(ctx, serial)
		if err != nil {
			return nil, err
		}
		if err := c.mayGo(serial); err != nil {
			return nil, err
		}
		return c.revoke(ctx, serial)
	}
	role, name, ok := strings.Cut(holder, "@")
	if !ok || serial != "" {
		return nil, rpc.Errorf(rpc.ErrInvalid, "%q: a serial number or ROLE@NAME, and one of both", holder)
	}
	if own := c.creds.Identity(); role == own.Role && name == own.Name {
		return nil, c.mayGo(rpc.Serial(c.creds.Leaf()))
	}
	// First those with which it would get in again.
	if err := c.dropOpenTokens(ctx, role, name); err != nil {
		return nil, err
	}
	serials, err := c.revokeHolder(ctx, role, name, "")
	if err == nil && role == rpc.RoleController {
		var ca []string
		var needed string
		ca, needed, err = c.revokeIssuing(ctx, name)
		serials = append(serials, ca...)
		if err == nil && len(serials) == 0 && needed != "" {
			return nil, rpc.Errorf(rpc.ErrNotFound, "the certificates of %s were taken back before; %s", holder, needed)
		}
	}
	if err == nil && len(serials) == 0 {
		err = rpc.Errorf(rpc.ErrNotFound, "no certificate of %s is known that is not revoked; see: hlctl trust", holder)
	}
	return serials, err
}

// wholeSerial is from how many hex digits on a serial number is taken for a whole one: ours
// have 128 random bits.
const wholeSerial = 24

// serialMeant is the serial number that a person typed, of which the beginning is enough
// where one certificate alone has it. Whoever mistypes one must not believe that somebody is
// locked out now: one that is not known counts only when it is whole, as of a certificate
// that was never shown to us.
func (c *Controller) serialMeant(ctx context.Context, typed string) (string, error) {
	serial := rpc.TypedSerial(typed)
	if serial == "" || strings.Trim(serial, "0123456789abcdef") != "" {
		return "", rpc.Errorf(rpc.ErrInvalid, "%q is no serial number of a certificate, nor ROLE@NAME; see: hlctl trust", typed)
	}
	issued, err := c.issued(ctx)
	if err != nil {
		return "", err
	}
	authorities, err := c.allIssuing(ctx)
	if err != nil {
		return "", err
	}
	roots, err := c.roots()
	if err != nil {
		return "", err
	}
	known := make(map[string]string) // who it is of
	for _, i := range issued {
		known[i.Serial] = i.Role + "@" + i.Name
	}
	for _, ca := range append(authorities, roots...) {
		known[rpc.Serial(ca)] = ca.Subject.CommonName
	}
	var meant, names []string
	for k, of := range known {
		if k == serial {
			return serial, nil
		}
		if strings.HasPrefix(k, serial) {
			meant, names = append(meant, k), append(names, k+" ("+of+")")
		}
	}
	switch {
	case len(meant) == 1:
		return meant[0], nil
	case len(meant) > 1:
		slices.Sort(names)
		return "", rpc.Errorf(rpc.ErrInvalid, "%s is the beginning of %d serial numbers: %s", typed, len(meant), strings.Join(names, ", "))
	case len(serial) < wholeSerial:
		return "", rpc.Errorf(rpc.ErrNotFound, "no certificate with serial number %s is known; see: hlctl trust", typed)
	}
	return serial, nil
}

// dropOpenTokens takes back the tokens for a name that nobody has used yet.
func (c *Controller) dropOpenTokens(ctx context.Context, role, name string) error {
	all, err := c.tokens(ctx)
	if err != nil {
		return err
	}
	for _, t := range all {
		if t.Role == role && t.Name == name && t.UsedBy == "" {
			if err := c.store.DropToken(ctx, t.ID); err != nil {
				return err
			}
			c.log.Info("token dropped: its holder was taken back", "token", t.ID, "name", name, "role", role)
		}
	}
	return nil
}

// allIssuing are the certificates of the issuing CAs of all controllers, ours first.
func (c *Controller) allIssuing(ctx context.Context) ([]*x509.Certificate, error) {
	return c.issuingWith(ctx, c.issuing.inUse())
}

// issuingWith are our own certificates, and those of the other controllers' issuing CAs.
func (c *Controller) issuingWith(ctx context.Context, own *rpc.CA) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	if own != nil {
		all = append(all, own.Certificates()...)
	}
	told, err := c.store.Issuing(ctx)
	if err != nil {
		return nil, err
	}
	roots, err := c.roots()
	if err != nil {
		return nil, err
	}
	for _, i := range told {
		for _, cert := range certificatesIn(i.Certificates) {
			// Those of roots that are gone count for nothing.
			if !slices.ContainsFunc(all, cert.Equal) && issuerIn(cert, roots) >= 0 {
				all = append(all, cert)
			}
		}
	}
	return all, nil
}

// revokeIssuing takes back the issuing CA of a controller that is gone: whoever has its
// key makes certificates for anybody. All that it signed goes with it, so it stays while
// somebody's latest certificate is one of those, which needed says; empty is none.
func (c *Controller) revokeIssuing(ctx context.Context, name string) (serials []string, needed string, err error) {
	cas, err := c.allIssuing(ctx)
	if err != nil {
		return nil, "", err
	}
	title := rpc.IssuingName(name, c.fleet)
	i := slices.IndexFunc(cas, func(ca *x509.Certificate) bool { return ca.Subject.CommonName == title })
	if i < 0 || c.creds.Revocations().Has(rpc.Serial(cas[i])) {
		return nil, "", nil
	}
	inForce, err := c.inForce(ctx)
	if err != nil {
		return nil, "", err
	}
	last := ""
	for _, cert := range inForce {
		holder := cert.Role + "@" + cert.Name
		if holder == last {
			continue
		}
		if last = holder; cert.Issuer == title {
			return nil, fmt.Sprintf("its issuing CA stays good, since it signed the certificate of %s: again when that was renewed, or with all that it signed: hlctl trust revoke %s", holder, rpc.Serial(cas[i])), nil
		}
	}
	// Another one of its name and serial number is below another root.
	serials, err = c.revoke(ctx, rpc.Serial(cas[i]))
	return serials, "", err
}
