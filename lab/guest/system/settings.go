package system

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// Settings are what guests read of DIR/lab.json. What is not there is the
// default; 0 is a value.
type Settings struct {
	// Subnet is the lab's network, as CIDR.
	Subnet string `json:"subnet"`
	// Bridges says which network another bridge than the usual ones leads to;
	// an empty text is none. A bridge that is not named leads to Subnet.
	Bridges map[string]string `json:"bridges"`
	SSHPort int               `json:"sshPort"`

	BootMs      int `json:"bootMs"`      // firmware to init
	CloudInitMs int `json:"cloudInitMs"` // cloud-init's last stage
	ShutdownMs  int `json:"shutdownMs"`  // a clean shutdown
	K3sStartMs  int `json:"k3sStartMs"`  // k3s from its start to its ports
	// LearnerTickMs is how often a leader looks at learners; 15000 in life.
	LearnerTickMs int `json:"learnerTickMs"`
	// LearnerStallMs is after which time without progress a learner is removed;
	// 300000 in life.
	LearnerStallMs int `json:"learnerStallMs"`
	HeartbeatMs    int `json:"heartbeatMs"` // of a node; 10000 in life
	NodeGraceMs    int `json:"nodeGraceMs"` // until a silent node is NotReady; 40000 in life
	// RestartMs overrides RestartSec of units when it is not negative.
	RestartMs int `json:"restartMs"`
	// RetryMs is how often an agent asks its server again; 5000 in life.
	RetryMs int `json:"retryMs"`
	// ElectionMs is etcd's election timeout; 5000 in life.
	ElectionMs int `json:"electionMs"`
	// AgentOutputBytes is how much of a command's output the guest agent keeps;
	// 16 MiB in life.
	AgentOutputBytes int `json:"agentOutputBytes"`
}

// Defaults are the settings of a lab.json that says nothing.
func Defaults() Settings {
	return Settings{
		Subnet: "127.0.0.0/8", SSHPort: 2222, BootMs: 300, CloudInitMs: 500, ShutdownMs: 100, K3sStartMs: 400,
		LearnerTickMs: 15000, LearnerStallMs: 300000, HeartbeatMs: 1000, NodeGraceMs: 5000, RestartMs: -1, RetryMs: 1000, AgentOutputBytes: 16 << 20,
		ElectionMs: 2500,
	}
}

// ReadSettings reads labDir/lab.json; a missing file is the defaults.
func ReadSettings(labDir string) (Settings, error) {
	s := Defaults()
	b, err := os.ReadFile(filepath.Join(labDir, "lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("lab settings: %w", err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("lab settings: %w", err)
	}
	if s.SSHPort == 0 {
		s.SSHPort = 2222
	}
	if s.LearnerTickMs == 0 {
		s.LearnerTickMs = 15000
	}
	return s, nil
}

// Network gives the subnet that a bridge leads to, and whether there is one.
func (s Settings) Network(bridge string) (netip.Prefix, bool) {
	text := s.Subnet
	if b, ok := s.Bridges[bridge]; ok {
		text = b
	}
	p, err := netip.ParsePrefix(text)
	return p, err == nil
}

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }
