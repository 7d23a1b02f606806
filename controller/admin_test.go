package controller

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/config"
	"github.com/homeiac/homelab/internal/rpc"
)

func TestRootOnAControllersHostGetsAnAdminsCertificate(t *testing.T) {
	f := newFleet(t, "pve1")
	f.revoking()
	c := f.up()
	path := func(name string) string { return filepath.Join(f.dir, name) }
	cfg := Config{
		Daemon:    config.Daemon{CA: path("ca.pem"), Cert: path("controller-1.pem"), Key: path("controller-1.key")},
		IssuingCA: path("issuing-ca.pem"), IssuingKey: path("issuing-ca.key"),
	}
	if _, err := IssueAdmin(cfg, "me", time.Now()); !errors.Is(err, rpc.ErrUnsupported) {
		t.Errorf("without an issuing CA: %v", err)
	}
	if err := c.issuing.whole().Write(cfg.IssuingCA, cfg.IssuingKey); err != nil {
		t.Fatal(err)
	}
	if _, err := IssueAdmin(cfg, "../me", time.Now()); !errors.Is(err, rpc.ErrInvalid) {
		t.Errorf("%v", err)
	}
	pair, err := IssueAdmin(cfg, "me", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.Write(path("me.pem"), path("me.key")); err != nil {
		t.Fatal(err)
	}
	trust, err := c.dial("me", f).Trust(t.Context(), &controllerv1.TrustRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range trust.GetCertificates() {
		if s.GetRole() == rpc.RoleAdmin && s.GetName() == "me" {
			return
		}
	}
	t.Errorf("it is not shown: %v", trust)
}
