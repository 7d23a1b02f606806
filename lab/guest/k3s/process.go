// Package k3s simulates k3s in a guest of the lab: its command, its install
// script's stand-in, its supervisor and the part of the Kubernetes API that
// nodes and kubectl need, above a real etcd member. Membership, learners,
// quorum and stale members are etcd's own behaviour; the rest follows k3s's
// sources and texts. Nothing is scheduled and no container runs.
package k3s

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/homeiac/homelab/lab/guest/shell"
	"github.com/homeiac/homelab/lab/guest/system"
	"github.com/homeiac/homelab/lab/guest/tree"
)

// Ports of a server.
const (
	portAPI        = 6443
	portEtcd       = 2379
	portEtcdPeer   = 2380
	passwordFile   = "/etc/rancher/node/password"
	kubeconfigFile = "/etc/rancher/k3s/k3s.yaml"
)

// process is one running "k3s server" or "k3s agent".
type process struct {
	o       *system.OS
	v       *tree.View
	cfg     config
	out     io.Writer
	version string // "v1.35.0+k3s1"
	name    string // of the node
	addr    string // of the guest
}

func (p *process) logf(level, format string, a ...any) {
	fmt.Fprintf(p.out, "time=%q level=%s msg=%q\n", time.Now().UTC().Format(time.RFC3339), level, fmt.Sprintf(format, a...))
}

func (p *process) info(format string, a ...any) { p.logf("info", format, a...) }

// newProcess does what both roles begin with.
func newProcess(c *shell.Call, o *system.OS, role string, args []string) (*process, error) {
	p := &process{o: o, v: o.FS(), out: c.Stderr, version: c.Rest}
	if c.User.UID != 0 {
		return p, errors.New("server must run as root, or with --rootless and/or --disable-agent")
	}
	cfg, err := readConfig(p.v, args, c.Env)
	if err != nil {
		return p, err
	}
	p.cfg = cfg
	p.name = strings.ToLower(cfg.get("node-name"))
	if p.name == "" {
		p.name = strings.ToLower(o.Hostname())
	}
	if p.addr = o.Address(); p.addr == "" {
		return p, errors.New("no default routes found in \"/proc/net/route\" or \"/proc/net/ipv6_route\"")
	}
	if ip := cfg.get("node-ip"); ip != "" && ip != p.addr {
		return p, fmt.Errorf("node-ip %s is not an address of this host", ip)
	}
	if cfg.on("with-node-id") {
		id, err := p.nodeID()
		if err != nil {
			return p, err
		}
		p.name += "-" + id
	}
	p.info("Starting k3s %s %s (%s)", role, p.version, commit)
	return p, nil
}

func (p *process) nodeID() (string, error) {
	const file = "/etc/rancher/node/id"
	if b, err := p.v.ReadFile(file); err == nil {
		return strings.TrimSpace(string(b)), nil
	}
	id, err := randomHex(4)
	if err != nil {
		return "", err
	}
	return id, p.v.Put(file, []byte(id+"\n"), 0o600)
}

// nodePassword is what this node proves its name with; it outlives k3s.
func (p *process) nodePassword() (string, error) {
	if b, err := p.v.ReadFile(passwordFile); err == nil && strings.TrimSpace(string(b)) != "" {
		return strings.TrimSpace(string(b)), nil
	}
	s, err := randomHex(16)
	if err != nil {
		return "", err
	}
	return s, p.v.Put(passwordFile, []byte(s+"\n"), 0o600)
}

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// commit is what "k3s --version" shows behind the version.
const commit = "abcdef12"
