package controller

import (
	"time"

	"github.com/homeiac/homelab/internal/rpc"
)

// adminLife is how long a person's certificate lasts that a controller's host gives.
const adminLife = 365 * 24 * time.Hour

// IssueAdmin makes an admin's certificate with the issuing CA of this host's
// controller: for whoever lost theirs, and is root here. The controller need not run.
func IssueAdmin(cfg Config, name string, now time.Time) (*rpc.Pair, error) {
	creds, err := rpc.LoadTLS(cfg.CA, cfg.Cert, cfg.Key)
	if err != nil {
		return nil, err
	}
	issuing, err := loadIssuing(cfg, creds.Identity().Fleet)
	if err != nil {
		return nil, err
	}
	if issuing == nil {
		return nil, rpc.Errorf(rpc.ErrUnsupported, "there is no issuing CA %s on this host; with the root's key: hlctl trust renew", cfg.IssuingCA)
	}
	bundle, err := creds.Roots()
	if err != nil {
		return nil, err
	}
	roots, err := rpc.ParseRoots(bundle, issuing.Fleet())
	if err != nil {
		return nil, err
	}
	if issuing = issuing.Below(roots); issuing == nil {
		return nil, rpc.Errorf(rpc.ErrInvalid, "%s is below none of the roots in %s", cfg.IssuingCA, cfg.CA)
	}
	return issuing.Issue(rpc.Identity{Role: rpc.RoleAdmin, Name: name}, adminLife, now)
}
