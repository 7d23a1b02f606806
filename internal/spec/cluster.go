package spec

import (
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/internal/k3s"
)

// DefaultScript is where the k3s install script comes from unless stated.
const DefaultScript = "https://get.k3s.io"

var hostPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)

func (p *parser) k3s(key, n *yaml.Node) {
	m := p.mapping(n, "k3s")
	c := &K3s{Source: Source{Script: DefaultScript}, Config: map[string]any{}}
	p.spec.K3s = c
	if v, ok := m.text("version"); ok {
		c.Version = v
		if _, err := k3s.ParseVersion(v); err != nil {
			p.fault(m.by["version"].value, m.at("version"), "%s", err)
		}
	} else if !m.has("version") {
		m.missing(key, "version", ": it must be pinned (as v1.35.0+k3s1)")
	}
	if n := m.value("existing"); n != nil {
		c.Existing = p.existing(n, m.at("existing"))
	}
	if n := m.value("endpoint"); n != nil {
		if s, ok := p.scalar(n, m.at("endpoint")); ok {
			if _, err := netip.ParseAddr(s); err != nil && (!hostPattern.MatchString(s) || len(s) > 253) {
				p.fault(n, m.at("endpoint"), "%s is neither an IP address nor a host name", show(s))
			}
			c.Endpoint = s
		}
	}
	if n := m.value("source"); n != nil {
		s := p.mapping(n, m.at("source"))
		for key, into := range map[string]*string{"script": &c.Source.Script, "binary": &c.Source.Binary, "images": &c.Source.Images} {
			if n := s.value(key); n != nil {
				*into = p.source(n, s.at(key))
			}
		}
		s.end()
	}
	if n := m.value("config"); n != nil {
		p.k3sConfig(n, m.at("config"), c)
	}
	m.end()
}

// source reads a URL or the absolute path of a file held by the agents.
func (p *parser) source(n *yaml.Node, path string) string {
	s, ok := p.text(n, path)
	if !ok {
		return ""
	}
	if strings.HasPrefix(s, "/") {
		return s
	}
	if reason := badURL(s); reason != "" {
		p.fault(n, path, "%s %s, nor an absolute path on the hosts", showURL(s), reason)
		return ""
	}
	if holdsUser(s) {
		p.fault(n, path, "%s holds a password: a Spec is stored and shown", showURL(s))
		return ""
	}
	if strings.HasPrefix(s, "http://") {
		p.warn(n, path, "it comes over http and is run as root: anyone on the way can change it")
	}
	return s
}

func (p *parser) existing(n *yaml.Node, path string) *Existing {
	m := p.mapping(n, path)
	x := &Existing{}
	if v, ok := m.text("server"); ok {
		node := m.by["server"].value
		user, host, named := strings.Cut(v, "@")
		addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if err != nil {
			var at netip.AddrPort
			if at, err = netip.ParseAddrPort(host); err == nil {
				addr, x.Port = at.Addr(), int(at.Port())
			}
		}
		switch {
		case !named || err != nil || addr.IsUnspecified() || addr.IsMulticast():
			p.fault(node, m.at("server"), "%s is not USER@ADDRESS (an IP address, and :PORT if it is not 22)", show(v))
		case !userPattern.MatchString(user):
			p.fault(node, m.at("server"), "%s is not a user name", show(user))
		case strings.HasSuffix(host, ":0"):
			p.fault(node, m.at("server"), "0 is not a port")
		}
		x.User, x.Address = user, addr.Unmap()
	} else if !m.has("server") {
		m.missing(n, "server", " (as ubuntu@192.168.4.210)")
	}
	if v, ok := m.text("hostKey"); ok {
		x.HostKey = strings.TrimSpace(v)
		if _, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(v)); err != nil || len(options) > 0 || len(rest) > 0 {
			p.fault(m.by["hostKey"].value, m.at("hostKey"), "is not a public host key (as ssh-ed25519 AAAA…)")
		}
	} else if !m.has("hostKey") {
		m.missing(n, "hostKey", ": without it anyone could answer (ssh-keyscan on a machine that you trust shows it)")
	}
	m.end()
	return x
}

// k3sConfig reads what goes verbatim into config.yaml.
func (p *parser) k3sConfig(n *yaml.Node, path string, c *K3s) {
	m := p.mapping(n, path)
	for _, key := range m.order {
		value, at := m.by[key].value, m.at(key)
		if reason, owned := k3s.OwnedKey(key); owned {
			p.fault(m.by[key].key, at, "%s", reason)
			continue
		}
		switch value.Kind {
		case yaml.SequenceNode:
			list := []string{}
			for i, item := range value.Content {
				if s, ok := p.scalar(item, index(at, i)); ok {
					list = append(list, s)
				}
			}
			c.Config[key] = list
		case yaml.MappingNode:
			p.fault(value, at, "is a mapping: k3s takes values and lists of values")
		default:
			s, ok := p.scalar(value, at)
			if !ok {
				continue
			}
			if b, err := strconv.ParseBool(s); err == nil && value.Tag == "!!bool" {
				c.Config[key] = b
			} else {
				c.Config[key] = s
			}
		}
	}
}
