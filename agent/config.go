package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Config is the agent's configuration. In its file relative paths are relative
// to the file.
type Config struct {
	// Name is the host's name in the Spec.
	Name string `yaml:"name"`
	// Advertise is the address of gRPC and gossip: an IP, never guessed.
	Advertise string `yaml:"advertise"`
	// Port is gRPC's; 8400 when not said.
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
	// State is the agent's own folder.
	State string `yaml:"state"`
	// Root is where the host's file system lies, "/" but in a lab.
	Root string `yaml:"root"`
	// Proc is where processes are looked up, "/proc".
	Proc string `yaml:"proc"`
	// SSHPort is the guests' SSH port, 22 when not said.
	SSHPort int `yaml:"sshPort"`
	// FileRoots are the folders below which file: images and k3s files may lie.
	// They are paths of this machine, not below Root.
	FileRoots []string `yaml:"fileRoots"`
	// Driver is proxmox, or the name of an executable in PluginDir.
	Driver string `yaml:"driver"`
	// PluginDir holds drivers that are not built in.
	PluginDir string `yaml:"pluginDir"`
	// PauseFile stops all changes on this host while it is there;
	// /etc/homelab/pause below Root when not said.
	PauseFile string `yaml:"pauseFile"`
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
	c := Config{
		Port: 8400, GossipPort: 7946, State: "/var/lib/hl-agent", Root: "/", Proc: "/proc", SSHPort: 22,
		FileRoots: []string{"/var/lib/homelab"}, Driver: "proxmox",
		PluginDir: "/usr/lib/homelab/drivers",
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, err
	}
	for _, p := range []*string{&c.CA, &c.Cert, &c.Key, &c.GossipKeys, &c.State, &c.Root, &c.Proc, &c.PluginDir, &c.PauseFile} {
		*p = absolute(dir, *p)
	}
	for i := range c.FileRoots {
		c.FileRoots[i] = absolute(dir, c.FileRoots[i])
	}
	if c.PauseFile == "" {
		c.PauseFile = filepath.Join(c.Root, "etc/homelab/pause")
	}
	return c, c.check()
}

func absolute(dir, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

var driverName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)

func (c Config) check() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	for _, need := range []struct{ key, value string }{
		{"name", c.Name}, {"advertise", c.Advertise}, {"ca", c.CA}, {"cert", c.Cert}, {"key", c.Key}, {"gossipKeys", c.GossipKeys},
	} {
		if need.value == "" {
			fault("%s is missing", need.key)
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
	}{{"port", c.Port}, {"gossipPort", c.GossipPort}, {"sshPort", c.SSHPort}} {
		if p.value < 1 || p.value > 65535 {
			fault("%s: %d is not a port", p.key, p.value)
		}
	}
	for _, s := range c.Seeds {
		if _, err := netip.ParseAddrPort(s); err != nil {
			fault("seeds: %q is not IP:PORT", s)
		}
	}
	if !driverName.MatchString(c.Driver) {
		fault("driver: %q is not the name of a driver", c.Driver)
	}
	return errors.Join(faults...)
}

// driverCommand is how the driver's process is started: our own executable, or
// one in the plugin folder with the same arguments.
func (c Config) driverCommand(self string) []string {
	args := []string{"--root", c.Root, "--proc", c.Proc, "--state", filepath.Join(c.State, "driver")}
	if slices.Contains(builtinDrivers, c.Driver) {
		return append([]string{self, "driver", c.Driver}, args...)
	}
	return append([]string{filepath.Join(c.PluginDir, c.Driver)}, args...)
}

// builtinDrivers are served by hl-agent itself.
var builtinDrivers = []string{"proxmox"}
