// Package lab makes a datacenter on one machine, for tests and demos: hosts
// with simulated Proxmox programs, real agents and controllers, guests that are
// processes. It starts, breaks and ends them; what they do is theirs. It never
// touches anything outside its folder and listens on 127.x addresses only.
package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// Config is what a lab remembers of itself, DIR/lab.json. The simulated guests
// read it too.
type Config struct {
	Fleet string `json:"fleet"`
	// Net is the first three numbers of the lab's addresses: 127.X.Y.
	Net string `json:"net"`
	// Subnet is Net as CIDR.
	Subnet      string `json:"subnet"`
	Hosts       int    `json:"hosts"`
	Controllers int    `json:"controllers"`
	// Cluster says whether the hosts are one PVE cluster or each stands alone.
	Cluster bool `json:"cluster"`
	// QMCost is real or none: whether simulated programs take the real ones' time.
	QMCost  string `json:"qmCost"`
	SSHPort int    `json:"sshPort"`
	// K3sVersion is the version that the Spec pins and the stand-in binary has.
	K3sVersion string `json:"k3sVersion"`
	// BootMs and CloudInitMs are the simulated times of a guest's boot, in milliseconds.
	BootMs      int `json:"bootMs"`
	CloudInitMs int `json:"cloudInitMs"`
	// LearnerTickMs is how often a leader promotes learners, in milliseconds.
	LearnerTickMs int `json:"learnerTickMs"`
	// NodeGraceMs is until a Node whose kubelet is silent is not Ready, in
	// milliseconds; 5000 when not said, 40000 in life.
	NodeGraceMs int `json:"nodeGraceMs,omitempty"`
	// AgentOutputBytes is how much of a command's output the guest agent keeps;
	// 16 MiB when not said, as in life.
	AgentOutputBytes int `json:"agentOutputBytes,omitempty"`
}

// Options say what Up is to make. Zero values are the defaults of a new lab, or
// what an existing one has.
type Options struct {
	Dir         string
	Hosts       int
	Controllers int
	QMCost      string
	PVE         string
	// LearnerTick is how often a leader of the simulated k3s promotes learners; 15 s as in life.
	LearnerTick time.Duration
	// NodeGrace is until a Node whose kubelet is silent is not Ready; 5 s, 40 s in life.
	NodeGrace time.Duration
	// AgentOutput is how many bytes of a command's output the guest agent keeps;
	// 16 MiB, as in life.
	AgentOutput int
	// Boot and CloudInit are the simulated times of a guest's boot.
	Boot, CloudInit time.Duration
	// Bin is the folder of hl-agent, hl-controller and hl-lab; the running program's when empty.
	Bin string
	// Net is the first three numbers of the addresses, free ones of 127.x when empty, and
	// SSHPort the guests' SSH port, 2222 when 0.
	Net     string
	SSHPort int
	// Settle is how long Up waits for everything to answer.
	Settle time.Duration
}

// Ports of a lab; every machine has an address of its own, so they are the same everywhere.
const (
	agentPort      = 8400
	controllerPort = 8401
	gossipPort     = 7946
	guestSSHPort   = 2222
	apiPort        = 8006
	etcdPort       = 2379
	etcdPeerPort   = 2380
)

const (
	maxHosts       = 99
	maxControllers = 9
	k3sVersion     = "v1.35.0+k3s1"
	fleetName      = "homelab"
	// longestDir keeps the socket paths under a host's root below the 107 bytes of sockaddr_un.
	longestDir = 60
)

// Lab is one datacenter.
type Lab struct {
	Dir string
	Config
	bin string
}

// Open reads the lab in dir. A folder without one is fs.ErrNotExist.
func Open(dir string) (*Lab, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(abs, "lab.json"))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("there is no lab in %s: %w; start one with: hl-lab up --dir %s", dir, err, dir)
		}
		return nil, err
	}
	l := &Lab{Dir: abs}
	if err := json.Unmarshal(data, &l.Config); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, "lab.json"), err)
	}
	l.bin, err = ownFolder()
	return l, err
}

// ownFolder is where the running program lies: its sisters lie beside it.
func ownFolder() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	exe, err = filepath.EvalSymlinks(exe)
	return filepath.Dir(exe), err
}

func (l *Lab) save() error {
	return writeJSON(l.path("lab.json"), l.Config)
}

func (l *Lab) path(elem ...string) string { return filepath.Join(append([]string{l.Dir}, elem...)...) }

func (l *Lab) hostDir(name string) string { return l.path("hosts", name) }

func (l *Lab) hostRoot(name string) string { return l.path("hosts", name, "root") }

// HostNames are pve1..N.
func (l *Lab) HostNames() []string {
	names := make([]string, l.Hosts)
	for i := range names {
		names[i] = fmt.Sprintf("pve%d", i+1)
	}
	return names
}

// controllerNames are controller-1..N.
func (l *Lab) controllerNames() []string {
	names := make([]string, l.Controllers)
	for i := range names {
		names[i] = fmt.Sprintf("controller-%d", i+1)
	}
	return names
}

// hostIndex is N of pveN, from 1.
func (l *Lab) hostIndex(name string) (int, error) {
	i := slices.Index(l.HostNames(), name)
	if i < 0 {
		return 0, fmt.Errorf("no host %q in this lab (it has pve1 to pve%d)", name, l.Hosts)
	}
	return i + 1, nil
}

func (l *Lab) address(last int) string { return l.Net + "." + strconv.Itoa(last) }

func (l *Lab) hostAddress(i int) string       { return l.address(i) }
func (l *Lab) controllerAddress(i int) string { return l.address(200 + i) }
func (l *Lab) guestAddress(i int) string      { return l.address(100 + i) }
func (l *Lab) etcdAddress() string            { return l.address(250) }

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, append(data, '\n'), 0o644)
}

// writeFile replaces path whole, so that nobody reads half of it.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := fmt.Sprintf("%s.tmp.%d", path, os.Getpid())
	if err := os.WriteFile(tmp, data, mode); err != nil {
		return err
	}
	if err := os.Chmod(tmp, mode); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// writeNew writes path unless it is there.
func writeNew(path string, mode fs.FileMode, data func() ([]byte, error)) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	b, err := data()
	if err != nil {
		return err
	}
	return writeFile(path, b, mode)
}
