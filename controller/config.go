package controller

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"
)

// Config is the controller's configuration. In its file relative paths are
// relative to the file.
type Config struct {
	// Name is the controller's name, as in its certificate.
	Name string `yaml:"name"`
	// Advertise is the address of gRPC and gossip: an IP, never guessed.
	Advertise string `yaml:"advertise"`
	// Port is gRPC's; 8401 when not said.
	Port int `yaml:"port"`
	// GossipPort is 7946 when not said.
	GossipPort int `yaml:"gossipPort"`
	// Seeds are gossip addresses of others, IP:PORT.
	Seeds []string `yaml:"seeds"`
	// CA, Cert and Key are PEM files.
	CA   string `yaml:"ca"`
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	// GossipKeys is a file with one base64 key a line, the first the primary.
	GossipKeys string `yaml:"gossipKeys"`
	// FleetKey is the file with the key of the marks, 32 bytes in base64.
	FleetKey string `yaml:"fleetKey"`
	// State is the controller's own folder.
	State string `yaml:"state"`
	// Etcd is an external store; without endpoints the store is embedded and
	// lies in State.
	Etcd EtcdConfig `yaml:"etcd"`
}

// EtcdConfig is an external etcd cluster.
type EtcdConfig struct {
	// Endpoints are https://IP:PORT.
	Endpoints []string `yaml:"endpoints"`
	// CA, Cert and Key are PEM files.
	CA   string `yaml:"ca"`
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

// LoadConfig reads a configuration file. An unknown key is an error with its line.
func LoadConfig(file string) (Config, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return Config{}, err
	}
	abs, err := filepath.Abs(file)
	if err != nil {
		return Config{}, err
	}
	c, err := parseConfig(data, filepath.Dir(abs))
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

func parseConfig(data []byte, dir string) (Config, error) {
	c := Config{Port: 8401, GossipPort: 7946, State: "/var/lib/hl-controller"}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, err
	}
	for _, p := range []*string{&c.CA, &c.Cert, &c.Key, &c.GossipKeys, &c.FleetKey, &c.State, &c.Etcd.CA, &c.Etcd.Cert, &c.Etcd.Key} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	return c, c.check()
}

func (c Config) check() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	need := []struct{ key, value string }{
		{"name", c.Name}, {"advertise", c.Advertise}, {"ca", c.CA}, {"cert", c.Cert}, {"key", c.Key},
		{"gossipKeys", c.GossipKeys}, {"fleetKey", c.FleetKey}, {"state", c.State},
	}
	if len(c.Etcd.Endpoints) > 0 {
		need = append(need, []struct{ key, value string }{
			{"etcd.ca", c.Etcd.CA}, {"etcd.cert", c.Etcd.Cert}, {"etcd.key", c.Etcd.Key},
		}...)
	}
	for _, n := range need {
		if n.value == "" {
			fault("%s is missing", n.key)
		}
	}
	if c.Advertise != "" {
		if a, err := netip.ParseAddr(c.Advertise); err != nil || a.IsUnspecified() {
			fault("advertise: %q is not the IP address of this machine", c.Advertise)
		}
	}
	for _, p := range []struct {
		key   string
		value int
	}{{"port", c.Port}, {"gossipPort", c.GossipPort}} {
		if p.value < 1 || p.value > 65535 {
			fault("%s: %d is not a port", p.key, p.value)
		}
	}
	for _, s := range c.Seeds {
		if _, err := netip.ParseAddrPort(s); err != nil {
			fault("seeds: %q is not IP:PORT", s)
		}
	}
	return errors.Join(faults...)
}
