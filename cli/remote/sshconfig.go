package remote

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	sshconfig "github.com/kevinburke/ssh_config"

	"github.com/homeiac/homelab/internal/rpc"
)

// NoConfig is an Options.Config for no SSH configuration at all, as with ssh -F none.
const NoConfig = "none"

// place is where and how a target is reached, by what the person and the SSH
// configuration say.
type place struct {
	user, name string // name is what is dialled
	port       int
	known      string   // its name in known_hosts
	identities []string // key files, in order
	chosen     bool     // the person named the key file
	only       bool     // no other keys than those
	agent      string   // the SSH agent's socket, empty for none
	knownFiles []string // the first is written to
	hash       bool     // names in it are hashed
}

// settings are the SSH configuration files that hold, the first one's word before the
// second's.
type settings []*sshconfig.Config

func readSettings(file, home string) (settings, error) {
	files := []string{filepath.Join(home, ".ssh", "config"), "/etc/ssh/ssh_config"}
	switch file {
	case NoConfig:
		return nil, nil
	case "":
	default:
		files = []string{file}
	}
	var all settings
	for _, name := range files {
		data, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) && file == "" {
			continue
		}
		var c *sshconfig.Config
		if err == nil {
			c, err = sshconfig.DecodeBytes(data)
		}
		if err != nil {
			return nil, rpc.Errorf(rpc.ErrInvalid, "SSH configuration %s: %w; name another with --ssh-config FILE, or %s", name, err, NoConfig)
		}
		all = append(all, c)
	}
	return all, nil
}

func (s settings) get(alias, key string) (string, error) {
	for _, c := range s {
		if text, err := c.Get(alias, key); text != "" || err != nil {
			return text, err
		}
	}
	return "", nil
}

// all gives the values of a key that may stand there several times.
func (s settings) all(alias, key string) ([]string, error) {
	var list []string
	for _, c := range s {
		more, err := c.GetAll(alias, key)
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
	}
	return list, nil
}

// settle finds out where a target is. What the person said goes before the SSH
// configuration.
func settle(t Target, o Options) (place, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return place{}, err
	}
	s, err := readSettings(o.Config, home)
	if err != nil {
		return place{}, err
	}
	said := make(map[string]string)
	for _, key := range []string{"HostName", "Port", "User", "HostKeyAlias", "UserKnownHostsFile", "HashKnownHosts", "IdentitiesOnly", "IdentityAgent", "ProxyJump", "ProxyCommand"} {
		if said[key], err = s.get(t.Address, key); err != nil {
			return place{}, fmt.Errorf("SSH configuration: %s of %s: %w", key, t.Address, err)
		}
	}
	for _, key := range []string{"ProxyJump", "ProxyCommand"} {
		if how := said[key]; how != "" && !strings.EqualFold(how, "none") {
			return place{}, rpc.Errorf(rpc.ErrUnsupported, "the SSH configuration reaches %s by %s %s, which hlctl does not do: run hlctl where %s is reached directly, or ignore the configuration with --ssh-config %s",
				t.Address, key, how, t.Address, NoConfig)
		}
	}
	p := place{port: t.Port, user: cmp.Or(t.User, said["User"], "root"), hash: strings.EqualFold(said["HashKnownHosts"], "yes")}
	p.name = cmp.Or(strings.NewReplacer("%%", "%", "%h", t.Address).Replace(said["HostName"]), t.Address)
	if p.port == 0 && said["Port"] != "" {
		n, err := strconv.ParseUint(said["Port"], 10, 16)
		if err != nil || n == 0 {
			return place{}, rpc.Errorf(rpc.ErrInvalid, "SSH configuration: Port %q of %s is none", said["Port"], t.Address)
		}
		p.port = int(n)
	}
	p.port = cmp.Or(p.port, 22)
	p.known = strings.ToLower(cmp.Or(said["HostKeyAlias"], p.name))
	expand := func(path string) string { return expandPath(path, home, t.Address, p) }

	p.agent = os.Getenv("SSH_AUTH_SOCK")
	switch say := said["IdentityAgent"]; {
	case strings.EqualFold(say, "none"):
		p.agent = ""
	case say != "" && say != "SSH_AUTH_SOCK":
		p.agent = expand(os.ExpandEnv(say))
	}
	if p.identities, err = s.all(t.Address, "IdentityFile"); err != nil {
		return place{}, fmt.Errorf("SSH configuration: IdentityFile of %s: %w", t.Address, err)
	}
	p.only = strings.EqualFold(said["IdentitiesOnly"], "yes")
	switch {
	case o.Identity != "":
		p.identities, p.chosen, p.only = []string{o.Identity}, true, true
	case len(p.identities) == 0:
		for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
			p.identities = append(p.identities, "~/.ssh/id_"+kind)
		}
	}
	for i := range p.identities {
		p.identities[i] = expand(p.identities[i])
	}
	p.knownFiles = o.KnownHosts
	if len(p.knownFiles) == 0 {
		for _, f := range strings.Fields(cmp.Or(said["UserKnownHostsFile"], "~/.ssh/known_hosts")) {
			p.knownFiles = append(p.knownFiles, expand(f))
		}
		p.knownFiles = append(p.knownFiles, "/etc/ssh/ssh_known_hosts")
	}
	return p, nil
}

// expandPath is a path of the SSH configuration, as ssh_config(5) has it: ~, and the
// tokens that a path may sensibly have.
func expandPath(path, home, alias string, p place) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		path = filepath.Join(home, rest)
	}
	local := ""
	if u, err := user.Current(); err == nil {
		local = u.Username
	}
	return strings.NewReplacer("%%", "%", "%d", home, "%h", p.name, "%n", alias, "%p", strconv.Itoa(p.port), "%r", p.user, "%u", local).Replace(path)
}
