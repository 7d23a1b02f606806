package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
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
}

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

// loadContext reads the configuration file and picks the context; relative
// paths in it are relative to the file.
func (a *app) loadContext() (clientContext, error) {
	path := a.config
	if path == "" {
		var err error
		if path, err = defaultConfig(); err != nil {
			return clientContext{}, err
		}
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return clientContext{}, fmt.Errorf("there is no configuration %s; give one with --config FILE", path)
	}
	if err != nil {
		return clientContext{}, err
	}
	var c clientConfig
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return clientContext{}, fmt.Errorf("%s: %w", path, err)
	}
	name := a.context
	if name == "" {
		name = c.Current
	}
	ctx, ok := c.Contexts[name]
	if !ok {
		var names []string
		for n := range c.Contexts {
			names = append(names, n)
		}
		slices.Sort(names)
		return clientContext{}, fmt.Errorf("%s has no context %q (it has: %s)", path, name, strings.Join(names, ", "))
	}
	switch {
	case len(ctx.Controllers) == 0:
		return clientContext{}, fmt.Errorf("%s: context %s names no controllers", path, name)
	case ctx.CA == "" || ctx.Cert == "" || ctx.Key == "":
		return clientContext{}, fmt.Errorf("%s: context %s needs ca, cert and key", path, name)
	}
	for _, file := range []*string{&ctx.CA, &ctx.Cert, &ctx.Key} {
		if !filepath.IsAbs(*file) {
			*file = filepath.Join(filepath.Dir(path), *file)
		}
	}
	return ctx, nil
}
