package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/homeiac/homelab/internal/config"
	"github.com/homeiac/homelab/internal/durable"
)

// clientConfig is hlctl's own configuration file.
type clientConfig struct {
	Current  string                   `yaml:"current"`
	Contexts map[string]clientContext `yaml:"contexts"`
}

// clientContext is one fleet and how to speak to it.
type clientContext struct {
	Controllers []string `yaml:"controllers"` // IP:PORT
	CA          string   `yaml:"ca"`
	Cert        string   `yaml:"cert"`
	Key         string   `yaml:"key"`

	where string // the file
	name  string // the context's
}

// configExample is told where the configuration is missing: nothing else says
// what belongs into it.
const configExample = `
  current: home
  contexts:
    home: {controllers: ["192.168.4.10:8401"], ca: ca.pem, cert: me.pem, key: me.key}`

func defaultConfig() (string, error) {
	dir, err := os.UserConfigDir()
	return filepath.Join(dir, "homelab", "hlctl.yaml"), err
}

func defaultConfigText() string {
	path, err := defaultConfig()
	if err != nil {
		return "hlctl.yaml in the user's configuration folder"
	}
	return path
}

// loadContext reads the configuration file and picks the context.
func (a *app) loadContext() (clientContext, error) {
	path := a.config
	if path == "" {
		var err error
		if path, err = defaultConfig(); err != nil {
			return clientContext{}, fmt.Errorf("%w; say where the client configuration is with --config FILE", err)
		}
	}
	var c clientConfig
	f, err := config.Read(path, &c)
	if errors.Is(err, fs.ErrNotExist) {
		return clientContext{}, fmt.Errorf("there is no client configuration %s\n"+
			"  a new fleet gets one by hlctl init (hlctl init --help tells how)\n"+
			"  for a fleet that is there, give its with --config FILE, or write it:%s", path, configExample)
	}
	if err == nil {
		err = f.Err()
	}
	if err != nil {
		return clientContext{}, err
	}
	ctx, err := c.pick(a.context)
	if err != nil {
		return clientContext{}, fmt.Errorf("%s: %w", path, err)
	}
	ctx.where = path
	for _, file := range []*string{&ctx.CA, &ctx.Cert, &ctx.Key} {
		*file = besideFile(path, *file)
	}
	return ctx, nil
}

// beside is a file of that name in the folder of the configuration.
func (c clientContext) beside(name string) string { return filepath.Join(filepath.Dir(c.where), name) }

// besideFile is a path that stands in a file: ~ is the user's home, and what is
// relative is relative to that file.
func besideFile(file, path string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		if home, err := os.UserHomeDir(); err == nil {
			return filepath.Join(home, rest)
		}
	}
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(file), path)
}

// pick gives the context of that name, the current one without a name.
func (c clientConfig) pick(name string) (clientContext, error) {
	names := strings.Join(slices.Sorted(maps.Keys(c.Contexts)), ", ")
	if names == "" {
		return clientContext{}, fmt.Errorf("it has no contexts; it looks like this:%s", configExample)
	}
	if name == "" {
		name = c.Current
	}
	if name == "" {
		return clientContext{}, fmt.Errorf("no context is its current one; say which with --context NAME (it has: %s)", names)
	}
	ctx, ok := c.Contexts[name]
	if !ok {
		return clientContext{}, fmt.Errorf("it has no context %q; say which with --context NAME (it has: %s)", name, names)
	}
	switch {
	case len(ctx.Controllers) == 0:
		return clientContext{}, fmt.Errorf("context %s names no controllers (contexts.%s.controllers: [IP:PORT])", name, name)
	case ctx.CA == "" || ctx.Cert == "" || ctx.Key == "":
		return clientContext{}, fmt.Errorf("context %s needs ca, cert and key", name)
	}
	for _, address := range ctx.Controllers {
		if _, err := netip.ParseAddrPort(address); err != nil {
			return clientContext{}, fmt.Errorf("context %s: controller %q is not IP:PORT (192.168.4.10:8401)", name, address)
		}
	}
	ctx.name = name
	return ctx, nil
}

// addController adds an address to the controllers of a context in hlctl's
// configuration, unless it is there, and leaves all else in it.
func addController(c clientContext, address string) (added bool, err error) {
	return changeControllers(c, func(list *yaml.Node) {
		if slices.ContainsFunc(list.Content, func(n *yaml.Node) bool { return n.Value == address }) {
			return
		}
		entry := new(yaml.Node)
		entry.SetString(address)
		list.Content = append(list.Content, entry)
	})
}

// dropController takes an address out of them, but never the last one.
func dropController(c clientContext, address string) (dropped bool, err error) {
	return changeControllers(c, func(list *yaml.Node) {
		if len(list.Content) > 1 {
			list.Content = slices.DeleteFunc(list.Content, func(n *yaml.Node) bool { return n.Value == address })
		}
	})
}

// changeControllers changes the list of controllers of a context, and says whether that
// changed its length.
func changeControllers(c clientContext, change func(list *yaml.Node)) (changed bool, err error) {
	data, err := os.ReadFile(c.where)
	if err != nil {
		return false, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return false, err
	}
	if len(doc.Content) == 0 {
		return false, errors.New("it is empty")
	}
	list := under(under(under(doc.Content[0], "contexts"), c.name), "controllers")
	if list.Kind != yaml.SequenceNode {
		return false, fmt.Errorf("contexts.%s.controllers is no list", c.name)
	}
	before := len(list.Content)
	if change(list); len(list.Content) == before {
		return false, nil
	}
	if data, err = yaml.Marshal(&doc); err != nil {
		return false, err
	}
	return true, durable.Write(c.where, data)
}
