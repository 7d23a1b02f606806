package cli

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/homeiac/homelab/cli/onhost"
	"github.com/homeiac/homelab/internal/config"
	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/rpc"
)

// How long what init makes lasts. A controller renews its own certificate.
const (
	rootLife       = 20 * 365 * 24 * time.Hour
	issuingLife    = 10 * 365 * 24 * time.Hour
	adminLife      = 365 * 24 * time.Hour
	controllerLife = 90 * 24 * time.Hour
)

const (
	fleetKeyFile         = "fleet.key"
	controllerState      = onhost.ControllerState
	controllerPort       = "8401"
	controllerPortNumber = 8401
)

// founding is a fleet that is begun: what was asked for, and what came of it.
type founding struct {
	fleet, dir, config, spec, admin string
	controller                      string
	address                         netip.Addr

	done      bool // an init came to its end before
	current   string
	sealed    bool
	rootThere bool
	made      []pieceDoc
	kept      []pieceDoc
	missing   []pieceDoc
}

// pieces are the files of an init, in the order of their making.
func (f *founding) pieces() []pieceDoc {
	return []pieceDoc{
		{"the fleet's key", f.path(fleetKeyFile)},
		{"the root's certificate", f.path(rootCertFile)},
		{"and its key", f.path(rootKeyFile)},
		{"your certificate", f.path(f.admin + ".pem")},
		{"and its key", f.path(f.admin + ".key")},
		{"the roots you trust", f.path("ca.pem")},
		{"the controller's folder", f.folder()},
		{"hlctl's context " + f.fleet, f.config},
	}
}

// settle makes paths absolute and looks what is there. A context of that name that is
// not of this folder is nobody's to change but its owner's.
func (f *founding) settle() (err error) {
	if f.config, err = filepath.Abs(f.config); err != nil {
		return err
	}
	if f.dir == "" {
		f.dir = filepath.Dir(f.config)
	}
	if f.dir, err = filepath.Abs(f.dir); err != nil {
		return err
	}
	id := rpc.Identity{Fleet: f.fleet, Role: rpc.RoleAdmin, Name: f.admin}
	if err := id.Check(); err != nil {
		return err
	}
	for _, taken := range []string{"ca", "root-ca"} {
		if f.admin == taken {
			return fmt.Errorf("--name %s: %s.pem is a CA's file; choose another name", taken, taken)
		}
	}
	c, err := f.readConfig()
	if err != nil {
		return err
	}
	f.current = c.Current
	if f.current == "" {
		f.current = f.fleet
	}
	ctx, there := c.Contexts[f.fleet]
	if !there {
		return nil
	}
	if filepath.Dir(besideFile(f.config, ctx.Cert)) != f.dir {
		return fmt.Errorf("%s has a context %s already, whose files are elsewhere (%s): say --dir with that folder to see what is there, or begin the new fleet with another name, or another --config FILE",
			f.config, f.fleet, filepath.Dir(besideFile(f.config, ctx.Cert)))
	}
	at := net.JoinHostPort(f.address.String(), controllerPort)
	if is, err := f.addressed(); err != nil || !slices.Contains(ctx.Controllers, at) && !is {
		return errors.Join(err, fmt.Errorf("fleet %s is begun already, and its first controller is not %s but at %s: init makes the first one only\n  if it is not set up yet and its address is wrong: remove %s and the context %s in %s, and init makes them anew",
			f.fleet, at, strings.Join(ctx.Controllers, ", "), f.path("controller-*"), f.fleet, f.config))
	}
	f.done = true
	f.admin = strings.TrimSuffix(filepath.Base(ctx.Cert), ".pem")
	for _, p := range f.pieces() {
		is, err := exists(p.Path)
		if err != nil {
			return err
		}
		if is {
			f.kept = append(f.kept, p)
		} else {
			f.missing = append(f.missing, p)
		}
	}
	return f.lookAtRoot()
}

// addressed says whether the controller's certificate, in its folder, is for the address
// that was asked for.
func (f *founding) addressed() (bool, error) {
	data, err := os.ReadFile(filepath.Join(f.folder(), "controller.crt"))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	cert, _ := onhost.CertificateIn(string(data))
	return cert != nil && slices.ContainsFunc(cert.IPAddresses, net.IP(f.address.AsSlice()).Equal), err
}

func (f *founding) readConfig() (clientConfig, error) {
	var c clientConfig
	there, err := exists(f.config)
	if err != nil || !there {
		return c, err
	}
	file, err := config.Read(f.config, &c)
	if err == nil {
		err = file.Err()
	}
	return c, err
}

// lookAtRoot sees whether the root's key has a passphrase.
func (f *founding) lookAtRoot() error {
	data, err := os.ReadFile(f.path(rootKeyFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	block, _ := pem.Decode(data)
	f.rootThere = block != nil
	f.sealed = block != nil && strings.Contains(block.Type, "ENCRYPTED")
	return nil
}

// loader reads a root that is there, with the passphrase from a file or asked for.
func (a *app) loader(ctx context.Context, passphraseFile string) func(cert, key string) (*rpc.CA, error) {
	return func(cert, key string) (*rpc.CA, error) {
		if passphraseFile == "" {
			return a.loadRoot(ctx, cert, key)
		}
		passphrase, err := readPassphrase(passphraseFile)
		if err != nil {
			return nil, err
		}
		return rpc.LoadCA(cert, key, passphrase)
	}
}

// keys makes all that is secret or signed, and the context last: with it the fleet is
// begun, and nothing is made again.
func (f *founding) keys(passphrase func() ([]byte, error), load func(cert, key string) (*rpc.CA, error)) error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	rootThere, err := exists(f.path(rootCertFile))
	if err != nil {
		return err
	}
	if there, err := exists(f.path(fleetKeyFile)); err != nil {
		return err
	} else if rootThere && !there {
		// It is made first. A new one would make all guests strangers.
		return fmt.Errorf("%s is there, %s is not: bring it back from a backup or from a controller (%s/%s), or begin in another folder with --dir",
			f.path(rootCertFile), f.path(fleetKeyFile), controllerState, fleetKeyFile)
	}
	if err := f.write("the fleet's key", f.path(fleetKeyFile), randomKey()); err != nil {
		return err
	}
	root, err := f.root(rootThere, passphrase, load)
	if err != nil {
		return err
	}
	if err := f.lookAtRoot(); err != nil {
		return err
	}
	now := time.Now()
	cert, key := f.path(f.admin+".pem"), f.path(f.admin+".key")
	err = f.pair("your certificate", cert, key, func() (*rpc.Pair, error) {
		return root.Issue(rpc.Identity{Role: rpc.RoleAdmin, Name: f.admin}, adminLife, now)
	})
	if err != nil {
		return err
	}
	if err := f.write("the roots you trust", f.path("ca.pem"), root.Cert()); err != nil {
		return err
	}
	if err := f.fillFolder(root, now); err != nil {
		return err
	}
	return f.addContext()
}

func (f *founding) root(there bool, passphrase func() ([]byte, error), load func(cert, key string) (*rpc.CA, error)) (*rpc.CA, error) {
	cert, key := f.path(rootCertFile), f.path(rootKeyFile)
	if there {
		root, err := load(cert, key)
		if err != nil {
			return nil, err
		}
		if root.Fleet() != f.fleet || !root.IsRoot() {
			return nil, fmt.Errorf("%s is no root of fleet %s but of %s; choose another folder with --dir", cert, f.fleet, root.Fleet())
		}
		f.kept = append(f.kept, pieceDoc{"the root's certificate", cert}, pieceDoc{"and its key", key})
		return root, nil
	}
	if keyThere, err := exists(key); err != nil || keyThere {
		// Of an init that was interrupted, or a root whose certificate was lost.
		return nil, errors.Join(err, fmt.Errorf("%s is there without %s: bring the certificate back, or move the key away if nothing was made with it", key, cert))
	}
	secret, err := passphrase()
	if err != nil {
		return nil, err
	}
	root, err := rpc.NewCA(f.fleet, rootLife, time.Now())
	if err != nil {
		return nil, err
	}
	if len(secret) > 0 {
		err = root.Seal(cert, key, secret)
	} else {
		err = root.Write(cert, key)
	}
	f.made = append(f.made, pieceDoc{"the root's certificate", cert}, pieceDoc{"and its key", key})
	return root, err
}

// fillFolder makes what the controller's host is given. The names are those of the
// package's configuration.
func (f *founding) fillFolder(root *rpc.CA, now time.Time) error {
	dir := f.folder()
	in := func(name string) string { return filepath.Join(dir, name) }
	there, err := exists(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	part := &founding{} // the folder is told as one
	var issuing *rpc.CA
	err = part.pair("", in("issuing-ca.pem"), in("issuing-ca.key"), func() (*rpc.Pair, error) {
		var err error
		if issuing, err = root.NewIssuing(f.controller, issuingLife, now); err != nil {
			return nil, err
		}
		return nil, issuing.Write(in("issuing-ca.pem"), in("issuing-ca.key"))
	})
	if err == nil && issuing == nil {
		issuing, err = rpc.LoadCA(in("issuing-ca.pem"), in("issuing-ca.key"), nil)
	}
	if err != nil {
		return err
	}
	err = part.pair("", in("controller.crt"), in("controller.key"), func() (*rpc.Pair, error) {
		key, err := rpc.KeyFile(in("controller.key"))
		if err != nil {
			return nil, err
		}
		id := rpc.Identity{Role: rpc.RoleController, Name: f.controller}
		cert, err := issuing.Sign(key.Public(), id, []netip.Addr{f.address}, controllerLife, now)
		if err != nil {
			return nil, err
		}
		return nil, durable.Write(in("controller.crt"), cert)
	})
	if err != nil {
		return err
	}
	fleetKey, err := os.ReadFile(f.path(fleetKeyFile))
	if err != nil {
		return err
	}
	if is, err := f.addressed(); err != nil || !is {
		// Of an init that was interrupted, and was told another address.
		return errors.Join(err, fmt.Errorf("%s is not for the address %s: remove the folder, and it is made anew", in("controller.crt"), f.address))
	}
	for name, data := range map[string][]byte{
		"ca.crt": root.Cert(), "gossip.keys": randomKey(), fleetKeyFile: fleetKey, "controller.yaml": f.controllerConfig(),
	} {
		if err := part.write("", in(name), data); err != nil {
			return err
		}
	}
	list := &f.made
	if there && len(part.made) == 0 {
		list = &f.kept
	}
	*list = append(*list, pieceDoc{"the controller's folder", dir})
	return nil
}

func (f *founding) controllerConfig() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `# The first controller of fleet %s. This file is /etc/homelab/controller.yaml on its
# host; the others of this folder are in %s.
name: %s
advertise: %q
# Not the agent's, which is on the same host.
gossipPort: 7947
`, f.fleet, controllerState, f.controller, f.address)
	for _, key := range [][2]string{
		{"ca", "ca.crt"}, {"cert", "controller.crt"}, {"key", "controller.key"}, {"gossipKeys", "gossip.keys"},
		{"fleetKey", fleetKeyFile}, {"issuingCA", "issuing-ca.pem"}, {"issuingKey", "issuing-ca.key"},
	} {
		fmt.Fprintf(&b, "%s: %s/%s\n", key[0], controllerState, key[1])
	}
	fmt.Fprintf(&b, "state: %s\n", controllerState)
	return []byte(b.String())
}

// addContext puts the context into hlctl's configuration, and leaves all else in it.
func (f *founding) addContext() error {
	beside := func(name string) string {
		if f.dir == filepath.Dir(f.config) {
			return name
		}
		return f.path(name)
	}
	var entry yaml.Node
	err := entry.Encode(clientContext{
		Controllers: []string{net.JoinHostPort(f.address.String(), controllerPort)},
		CA:          beside("ca.pem"), Cert: beside(f.admin + ".pem"), Key: beside(f.admin + ".key"),
	})
	if err != nil {
		return err
	}
	var doc yaml.Node
	data, err := os.ReadFile(f.config)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("%s: %w", f.config, err)
	}
	if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
		doc = yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{{Kind: yaml.MappingNode}}}
	}
	top := doc.Content[0]
	if current := under(top, "current"); current.Value == "" {
		*current = yaml.Node{Kind: yaml.ScalarNode, Value: f.fleet}
	}
	contexts := under(top, "contexts")
	if contexts.Kind != yaml.MappingNode {
		*contexts = yaml.Node{Kind: yaml.MappingNode}
	}
	*under(contexts, f.fleet) = entry
	if data, err = yaml.Marshal(&doc); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(f.config), 0o700); err != nil {
		return err
	}
	f.made = append(f.made, pieceDoc{"hlctl's context " + f.fleet, f.config})
	return durable.Write(f.config, data)
}

// under is the value of a key of a mapping, which is made when it is not there.
func under(m *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return m.Content[i+1]
		}
	}
	name, value := &yaml.Node{Kind: yaml.ScalarNode}, &yaml.Node{Kind: yaml.ScalarNode}
	name.SetString(key)
	m.Content = append(m.Content, name, value)
	return value
}

// pair makes a certificate with its key unless it is there. make may write both itself.
func (f *founding) pair(what, cert, key string, make func() (*rpc.Pair, error)) error {
	is, err := exists(cert)
	if err != nil {
		return err
	}
	list := &f.kept
	if !is {
		list = &f.made
		p, err := make()
		if err != nil {
			return err
		}
		if p != nil {
			if err := p.Write(cert, key); err != nil {
				return err
			}
		}
	}
	*list = append(*list, pieceDoc{what, cert}, pieceDoc{"and its key", key})
	return nil
}

// write writes a file (0600) unless it is there.
func (f *founding) write(what, path string, data []byte) error {
	is, err := exists(path)
	if err != nil {
		return err
	}
	if is {
		f.kept = append(f.kept, pieceDoc{what, path})
		return nil
	}
	if err := durable.Write(path, data); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	f.made = append(f.made, pieceDoc{what, path})
	return nil
}

func randomKey() []byte {
	key := make([]byte, mark.KeySize)
	_, _ = rand.Read(key) // does not fail since Go 1.24
	return []byte(base64.StdEncoding.EncodeToString(key) + "\n")
}
