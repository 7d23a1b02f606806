package agent

import (
	"path/filepath"
	"regexp"
	"slices"

	"github.com/homeiac/homelab/internal/config"
)

// Config is the agent's configuration. In its file relative paths are relative
// to the file.
type Config struct {
	// Daemon's Port is 8400 when not said, its State /var/lib/hl-agent.
	config.Daemon `yaml:",inline"`

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
	// Clock is a file with how far this host's clock is ahead ("3s", "-1h"), for a
	// host that shares a machine with others; no file is no offset.
	Clock string `yaml:"clock"`
}

// defaultState is the agent's own folder.
const defaultState = "/var/lib/hl-agent"

var driverName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)

// LoadConfig reads a configuration file. All its faults come together, each with
// its line; an unknown key is one.
func LoadConfig(file string) (Config, error) {
	c := Config{
		Daemon: config.Daemon{Port: 8400, GossipPort: 7946, State: defaultState},
		Root:   "/", Proc: "/proc", SSHPort: 22, FileRoots: []string{"/var/lib/homelab"},
		Driver: "proxmox", PluginDir: "/usr/lib/homelab/drivers",
	}
	f, err := config.Read(file, &c)
	if err != nil {
		return Config{}, err
	}
	c.Check(f)
	f.Paths(&c.Root, &c.Proc, &c.PluginDir, &c.PauseFile, &c.Clock)
	for i := range c.FileRoots {
		f.Paths(&c.FileRoots[i])
	}
	if c.PauseFile == "" {
		c.PauseFile = filepath.Join(c.Root, "etc/homelab/pause")
	}
	f.Port("sshPort", c.SSHPort)
	if !driverName.MatchString(c.Driver) {
		f.Fault("driver", "%q is not the name of a driver", c.Driver)
	}
	return c, f.Err()
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
