package gossip

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/hashicorp/memberlist"

	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/rpc"
)

// NewKey makes a key of 32 random bytes (AES-256).
func NewKey() []byte {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // does not fail since Go 1.24
	return key
}

// ReadKeys reads a keys file: one key a line in base64, the first one is used to
// send; empty lines and lines that begin with # do not count. Faults are
// rpc.ErrInvalid and do not quote the key.
func ReadKeys(file string) ([][]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, rpc.Errorf(rpc.ErrInvalid, "gossip keys: %w", err)
	}
	var keys [][]byte
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, err := base64.StdEncoding.DecodeString(line)
		if err != nil || memberlist.ValidateKey(key) != nil {
			return nil, rpc.Errorf(rpc.ErrInvalid, "gossip keys: %s:%d is not 16, 24 or 32 bytes in base64", file, i+1)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, rpc.Errorf(rpc.ErrInvalid, "gossip keys: %s holds no key", file)
	}
	return keys, nil
}

// WriteKeys writes a keys file for ReadKeys, with mode 0600, whole or not at all.
func WriteKeys(file string, keys [][]byte) error {
	var b bytes.Buffer
	for _, key := range keys {
		b.WriteString(base64.StdEncoding.EncodeToString(key) + "\n")
	}
	return durable.Write(file, b.Bytes())
}

// CheckKeys says what is wrong with keys as a ring; ErrInvalid.
func CheckKeys(keys [][]byte) error {
	_, err := keyring(keys)
	return err
}

// SetKeys changes the keys while it runs: the first is used to send from now on, and
// those that are not among them are received no more.
func (g *Gossip) SetKeys(keys [][]byte) error {
	if err := CheckKeys(keys); err != nil {
		return err
	}
	for _, key := range keys {
		if err := g.ring.AddKey(key); err != nil {
			return fmt.Errorf("gossip: %w", err)
		}
	}
	if err := g.ring.UseKey(keys[0]); err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	for _, old := range g.ring.GetKeys() {
		if slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, old) }) {
			continue
		}
		if err := g.ring.RemoveKey(old); err != nil {
			return fmt.Errorf("gossip: %w", err)
		}
	}
	return nil
}

func keyring(keys [][]byte) (*memberlist.Keyring, error) {
	if len(keys) == 0 {
		return nil, rpc.Errorf(rpc.ErrInvalid, "gossip: no key, and there is no way without")
	}
	ring, err := memberlist.NewKeyring(keys, keys[0])
	if err != nil {
		return nil, rpc.Errorf(rpc.ErrInvalid, "gossip: a key must have 16, 24 or 32 bytes")
	}
	return ring, nil
}
