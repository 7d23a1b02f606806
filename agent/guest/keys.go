package guest

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/rpc"
)

// Keys are the SSH keys in an agent's state folder: its own, and the host keys
// that it made for its guests, one per guest and generation.
type Keys struct {
	dir   string
	agent ssh.Signer
}

// OpenKeys reads the keys below the state folder and makes the agent's own at
// the first start.
func OpenKeys(state, agentName string) (*Keys, error) {
	k := &Keys{dir: state}
	data, err := k.make(filepath.Join(state, "ssh_key"), "hl-agent@"+agentName)
	if err != nil {
		return nil, err
	}
	if k.agent, err = ssh.ParsePrivateKey(data); err != nil {
		return nil, fmt.Errorf("key %s: %w", filepath.Join(state, "ssh_key"), err)
	}
	return k, nil
}

// Agent is the key with which this agent logs in.
func (k *Keys) Agent() ssh.Signer { return k.agent }

// AgentLine is the agent's public key for authorized_keys.
func (k *Keys) AgentLine() string { return line(k.agent.PublicKey()) + " hl-agent" }

// HostKey is a guest's SSH host key.
type HostKey struct {
	Private string // OpenSSH PEM; goes into the guest's user-data only
	Public  string // authorized_keys format, without comment
}

// MakeHostKey gives the host key of a guest's generation, and makes it the
// first time.
func (k *Keys) MakeHostKey(fleet, guest string, generation int32) (HostKey, error) {
	path, err := k.hostKeyPath(fleet, guest, generation)
	if err != nil {
		return HostKey{}, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return HostKey{}, err
	}
	data, err := k.make(path, guest)
	if err != nil {
		return HostKey{}, err
	}
	return parseHostKey(path, data)
}

// HostKey gives the host key of a guest's generation if this agent made one.
func (k *Keys) HostKey(fleet, guest string, generation int32) (HostKey, bool, error) {
	path, err := k.hostKeyPath(fleet, guest, generation)
	if err != nil {
		return HostKey{}, false, err
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return HostKey{}, false, nil
	}
	if err != nil {
		return HostKey{}, false, err
	}
	key, err := parseHostKey(path, data)
	return key, err == nil, err
}

func (k *Keys) hostKeyPath(fleet, guest string, generation int32) (string, error) {
	name := fmt.Sprintf("%s_%s_%d", fleet, guest, generation)
	if !filepath.IsLocal(name) || strings.ContainsRune(name, filepath.Separator) {
		return "", rpc.Errorf(rpc.ErrInvalid, "fleet %q, guest %q", fleet, guest)
	}
	return filepath.Join(k.dir, "hostkeys", name), nil
}

func parseHostKey(path string, data []byte) (HostKey, error) {
	signer, err := ssh.ParsePrivateKey(data)
	if err != nil {
		return HostKey{}, fmt.Errorf("key %s: %w", path, err)
	}
	return HostKey{Private: string(data), Public: line(signer.PublicKey())}, nil
}

func line(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// make reads the private key in a file, or writes a new one there. It never
// leaves half a key: a guest would be born with a key that nobody knows.
func (k *Keys) make(path, comment string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return data, err
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, comment)
	if err != nil {
		return nil, err
	}
	data = pem.EncodeToMemory(block)
	return data, durable.Write(path, data)
}
