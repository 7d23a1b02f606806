package cli

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/homeiac/homelab/cli/remote"
	"github.com/homeiac/homelab/internal/rpc"
)

const (
	agentConfigFile      = "/etc/homelab/agent.yaml"
	controllerConfigFile = "/etc/homelab/controller.yaml"
	// agentKeyFile is where enrol makes the key of an agent that is not configured yet.
	agentKeyFile      = "/var/lib/hl-agent/agent.key"
	agentService      = "hl-agent.service"
	controllerService = "hl-controller.service"
	// looking bounds one look; pveversion alone takes a second of CPU.
	looking = 30 * time.Second
	// notFound is a shell's and env's exit code for a program that is not there.
	notFound = 127
	// journalTold is how many of a daemon's last lines are shown when it does not come.
	journalTold = 8
)

// rootOn runs programs on a host, in English.
type rootOn struct{ *remote.Host }

// do runs a program within a limit and gives what it printed, without blanks around it.
func (r rootOn) do(ctx context.Context, limit time.Duration, stdin io.Reader, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, err := r.Run(ctx, stdin, append([]string{"env", "LC_ALL=C"}, argv...)...)
	var exit *remote.ExitError
	if errors.As(err, &exit) {
		exit.Program = strings.Join(argv[:min(2, len(argv))], " ")
	}
	return strings.TrimSpace(string(out)), err
}

func (r rootOn) look(ctx context.Context, argv ...string) (string, error) {
	return r.do(ctx, looking, nil, argv...)
}

// failed says whether a program ran and did not end well. Of any other error it is not
// known how it ended.
func failed(err error) bool {
	var exit *remote.ExitError
	return errors.As(err, &exit)
}

// read gives a file; one that is not there is empty.
func (r rootOn) read(ctx context.Context, file string) (string, error) {
	text, err := r.look(ctx, "cat", "--", file)
	if failed(err) && strings.Contains(err.Error(), "No such file or directory") {
		return "", nil
	}
	return text, err
}

// unitSeen is what systemd says of a service.
type unitSeen struct{ active, enabled bool }

// unit asks systemd. One that is not installed is neither active nor enabled.
func (r rootOn) unit(ctx context.Context, name string) (unitSeen, error) {
	out, err := r.look(ctx, "systemctl", "show", "--property=ActiveState,UnitFileState", name)
	if err != nil {
		return unitSeen{}, err
	}
	lines := strings.Fields(out)
	return unitSeen{slices.Contains(lines, "ActiveState=active"), slices.Contains(lines, "UnitFileState=enabled")}, nil
}

// journal is how an error goes on that tells of a service: its last lines, if they can
// be had.
func (r rootOn) journal(ctx context.Context, unit string) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), looking)
	defer cancel()
	out, err := r.look(ctx, "journalctl", "--unit="+unit, fmt.Sprintf("--lines=%d", journalTold), "--no-pager", "--quiet", "--output=short-iso")
	if err != nil || out == "" {
		return ""
	}
	return "\n    " + strings.ReplaceAll(clean(out), "\n", "\n    ")
}

// clean takes out what would do something to a terminal.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && (r < ' ' || r >= 0x7f && r < 0xa0) {
			return '?'
		}
		return r
	}, text)
}

// hostSeen is what was found on a host.
type hostSeen struct {
	hostname  string
	addresses []netip.Addr
	arch      string
	proxmox   string // its version
	// installed is the package's version, empty when it is not. broken is one that dpkg
	// did not get to its end.
	installed string
	broken    bool

	agent, controller unitSeen
	// config is what agent.yaml says; its name is empty while it says nothing.
	config struct{ Name, Advertise, Cert string }
	// cert is the agent's certificate, nil when it has none.
	cert *x509.Certificate
	id   rpc.Identity // in it
	// controllerName is the one in controller.yaml; empty while it says nothing.
	controllerName string
}

// lookAtHost finds out what is on a host. It changes nothing. What makes it no host for
// us is Refused, all reasons at once.
func lookAtHost(ctx context.Context, r rootOn) (s hostSeen, err error) {
	if s.hostname, err = r.look(ctx, "hostname"); err != nil {
		return s, err
	}
	s.hostname, _, _ = strings.Cut(s.hostname, ".") // as Proxmox names its node
	var wrong []string
	s.arch, err = r.look(ctx, "dpkg", "--print-architecture")
	if failed(err) {
		wrong = append(wrong, "it has no dpkg, and so is no Debian")
	} else if err != nil {
		return s, err
	} else if s.arch != "amd64" {
		wrong = append(wrong, "its architecture is "+s.arch+", the package is for amd64")
	}
	for _, look := range [][]string{{"pveversion"}, {"sh", "-c", "command -v qm"}} {
		out, err := r.look(ctx, look...)
		if failed(err) {
			wrong = append(wrong, "there is no Proxmox VE on it (no "+look[len(look)-1]+")")
			break
		}
		if err != nil {
			return s, err
		}
		if version, ok := strings.CutPrefix(out, "pve-manager/"); ok {
			s.proxmox, _, _ = strings.Cut(version, "/")
		}
	}
	if _, err := r.look(ctx, "systemctl", "--version"); err != nil {
		if !failed(err) {
			return s, err
		}
		wrong = append(wrong, "it has no systemd")
	}
	if len(wrong) > 0 {
		return s, rpc.Errorf(rpc.ErrRefused, "%s is no host for agents: %s; nothing was changed there", s.hostname, strings.Join(wrong, "; "))
	}
	return s, s.lookFurther(ctx, r)
}

func (s *hostSeen) lookFurther(ctx context.Context, r rootOn) error {
	out, err := r.look(ctx, "hostname", "-I")
	if err != nil {
		return err
	}
	for _, word := range strings.Fields(out) {
		if ip, err := netip.ParseAddr(word); err == nil && !ip.IsLinkLocalUnicast() {
			s.addresses = append(s.addresses, ip)
		}
	}
	if s.installed, s.broken, err = r.installed(ctx); err != nil {
		return err
	}
	if s.agent, err = r.unit(ctx, agentService); err != nil {
		return err
	}
	if s.controller, err = r.unit(ctx, controllerService); err != nil {
		return err
	}
	text, err := r.read(ctx, agentConfigFile)
	if err != nil {
		return err
	}
	// Only what is needed here: what else is wrong in it the agent says.
	if err := yaml.Unmarshal([]byte(text), &s.config); err != nil {
		return rpc.Errorf(rpc.ErrInvalid, "%s on %s: %w; correct it there", agentConfigFile, s.hostname, err)
	}
	if s.config.Cert != "" {
		file := s.config.Cert
		if !path.IsAbs(file) {
			file = path.Join(path.Dir(agentConfigFile), file)
		}
		pem, err := r.read(ctx, file)
		if err != nil {
			return err
		}
		s.cert, s.id = certificateIn(pem)
	}
	if text, err = r.read(ctx, controllerConfigFile); err != nil {
		return err
	}
	var controller struct{ Name string }
	if err := yaml.Unmarshal([]byte(text), &controller); err != nil {
		return rpc.Errorf(rpc.ErrInvalid, "%s on %s: %w; correct it there", controllerConfigFile, s.hostname, err)
	}
	s.controllerName = controller.Name
	return nil
}

// certificateIn reads the certificate of one of ours; nil when there is none.
func certificateIn(text string) (*x509.Certificate, rpc.Identity) {
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

// installed is the version of our package; empty when it is not there, or only its
// configuration is.
func (r rootOn) installed(ctx context.Context) (version string, broken bool, err error) {
	out, err := r.look(ctx, "dpkg-query", "--show", "--showformat=${db:Status-Status} ${Version}", "homelab")
	if failed(err) {
		return "", false, nil
	}
	state, version, _ := strings.Cut(out, " ")
	switch {
	case err != nil:
		return "", false, err
	case state == "config-files" || state == "not-installed":
		return "", false, nil
	}
	return version, state != "installed", nil
}
