package onhost

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"path"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/homeiac/homelab/internal/rpc"
)

// Seen is what was found on a host.
type Seen struct {
	Hostname  string
	Addresses []netip.Addr
	Arch      string
	Proxmox   string // its version
	// Installed is the package's version, empty when it is not. Broken is one that dpkg
	// did not get to its end.
	Installed string
	Broken    bool

	Agent, Controller Unit
	// Config is what agent.yaml says; its name is empty while it says nothing.
	Config struct{ Name, Advertise, Cert string }
	// Cert is the agent's certificate, nil when it has none.
	Cert *x509.Certificate
	ID   rpc.Identity // in it
	// ControllerName is the one in controller.yaml; empty while it says nothing.
	ControllerName string
}

// Inspect finds out what is on a host. It changes nothing. What makes it no host for
// us is Refused, all reasons at once.
func Inspect(ctx context.Context, r Root) (s Seen, err error) {
	if s.Hostname, err = r.Look(ctx, "hostname"); err != nil {
		return s, err
	}
	s.Hostname, _, _ = strings.Cut(s.Hostname, ".") // as Proxmox names its node
	var wrong []string
	s.Arch, err = r.Look(ctx, "dpkg", "--print-architecture")
	if Failed(err) {
		wrong = append(wrong, "it has no dpkg, and so is no Debian")
	} else if err != nil {
		return s, err
	} else if s.Arch != "amd64" {
		wrong = append(wrong, "its architecture is "+s.Arch+", the package is for amd64")
	}
	for _, look := range [][]string{{"pveversion"}, {"sh", "-c", "command -v qm"}} {
		out, err := r.Look(ctx, look...)
		if Failed(err) {
			wrong = append(wrong, "there is no Proxmox VE on it (no "+look[len(look)-1]+")")
			break
		}
		if err != nil {
			return s, err
		}
		if version, ok := strings.CutPrefix(out, "pve-manager/"); ok {
			s.Proxmox, _, _ = strings.Cut(version, "/")
		}
	}
	if _, err := r.Look(ctx, "systemctl", "--version"); err != nil {
		if !Failed(err) {
			return s, err
		}
		wrong = append(wrong, "it has no systemd")
	}
	if len(wrong) > 0 {
		return s, rpc.Errorf(rpc.ErrRefused, "%s is no host for agents: %s; nothing was changed there", s.Hostname, strings.Join(wrong, "; "))
	}
	return s, s.lookFurther(ctx, r)
}

func (s *Seen) lookFurther(ctx context.Context, r Root) error {
	out, err := r.Look(ctx, "hostname", "-I")
	if err != nil {
		return err
	}
	for _, word := range strings.Fields(out) {
		if ip, err := netip.ParseAddr(word); err == nil && !ip.IsLinkLocalUnicast() {
			s.Addresses = append(s.Addresses, ip)
		}
	}
	if s.Installed, s.Broken, err = r.Package(ctx); err != nil {
		return err
	}
	if s.Agent, err = r.UnitState(ctx, AgentService); err != nil {
		return err
	}
	if s.Controller, err = r.UnitState(ctx, ControllerService); err != nil {
		return err
	}
	text, err := r.ReadFile(ctx, AgentConfig)
	if err != nil {
		return err
	}
	// Only what is needed here: what else is wrong in it the agent says.
	if err := yaml.Unmarshal([]byte(text), &s.Config); err != nil {
		return rpc.Errorf(rpc.ErrInvalid, "%s on %s: %w; correct it there", AgentConfig, s.Hostname, err)
	}
	if s.Config.Cert != "" {
		file := s.Config.Cert
		if !path.IsAbs(file) {
			file = path.Join(path.Dir(AgentConfig), file)
		}
		pem, err := r.ReadFile(ctx, file)
		if err != nil {
			return err
		}
		s.Cert, s.ID = CertificateIn(pem)
	}
	if text, err = r.ReadFile(ctx, ControllerConfig); err != nil {
		return err
	}
	var controller struct{ Name string }
	if err := yaml.Unmarshal([]byte(text), &controller); err != nil {
		return rpc.Errorf(rpc.ErrInvalid, "%s on %s: %w; correct it there", ControllerConfig, s.Hostname, err)
	}
	s.ControllerName = controller.Name
	return nil
}

// CertificateIn reads the certificate of one of ours; nil when there is none.
func CertificateIn(text string) (*x509.Certificate, rpc.Identity) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, rpc.Identity{}
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, rpc.Identity{}
	}
	id, err := rpc.IdentityOf(cert)
	if err != nil {
		return nil, rpc.Identity{}
	}
	return cert, id
}
