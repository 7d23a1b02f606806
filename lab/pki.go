package lab

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/homeiac/homelab/internal/rpc"
	"golang.org/x/crypto/ssh"
)

const certLifetime = 10 * 365 * 24 * time.Hour

// makeTrust makes what is missing of the lab's trust: root, issuing CA of every
// controller, certificates of every daemon and of the admin, gossip and fleet keys,
// the admin's SSH key.
func (l *Lab) makeTrust(now time.Time) error {
	root, err := l.loadOrMakeCA(now)
	if err != nil {
		return err
	}
	issuing, err := l.makeIssuing(root, now)
	if err != nil {
		return err
	}
	ids := []rpc.Identity{{Role: rpc.RoleAdmin, Name: "admin"}}
	for _, name := range l.HostNames() {
		ids = append(ids, rpc.Identity{Role: rpc.RoleAgent, Name: name})
	}
	for _, name := range l.controllerNames() {
		ids = append(ids, rpc.Identity{Role: rpc.RoleController, Name: name})
	}
	for _, id := range ids {
		cert, key := l.certFiles(id.Name)
		if _, err := os.Stat(cert); err == nil {
			continue
		}
		// The admin has the root's key, all others ask a controller.
		ca := issuing
		if id.Role == rpc.RoleAdmin {
			ca = root
		}
		pair, err := ca.Issue(id, certLifetime, now)
		if err != nil {
			return err
		}
		if err := pair.Write(cert, key); err != nil {
			return err
		}
	}
	for _, name := range []string{"gossip.keys", "fleet.key"} {
		if err := writeNew(l.path("pki", name), 0o600, randomKey); err != nil {
			return err
		}
	}
	// The admin's own: which roots are trusted changes, and the root does not.
	if err := copyNew(l.path("pki", "ca.pem"), l.path("pki", "trusted.pem")); err != nil {
		return err
	}
	return l.makeSSHKey()
}

// copyTrust gives a daemon files of its own with the roots and the gossip's keys: what
// one is told, another that is off must not know.
func (l *Lab) copyTrust(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	return errors.Join(
		copyNew(filepath.Join(from, "ca.pem"), filepath.Join(to, "ca.pem")),
		copyNew(filepath.Join(from, "gossip.keys"), filepath.Join(to, "gossip.keys")),
	)
}

func copyNew(from, to string) error {
	return writeNew(to, 0o600, func() ([]byte, error) { return os.ReadFile(from) })
}

func (l *Lab) loadOrMakeCA(now time.Time) (*rpc.CA, error) {
	cert, key := l.path("pki", "ca.pem"), l.path("pki", "ca.key")
	if _, err := os.Stat(cert); err == nil {
		return rpc.LoadCA(cert, key, nil)
	}
	if err := os.MkdirAll(filepath.Dir(cert), 0o700); err != nil {
		return nil, err
	}
	ca, err := rpc.NewCA(l.Fleet, certLifetime, now)
	if err != nil {
		return nil, err
	}
	return ca, ca.Write(cert, key)
}

// makeIssuing makes what is missing of the controllers' issuing CAs and returns the
// first. A lab that was made before there were any has a root that may not sign
// them, and goes on with the root alone.
func (l *Lab) makeIssuing(root *rpc.CA, now time.Time) (*rpc.CA, error) {
	var first *rpc.CA
	for _, name := range l.controllerNames() {
		cert, key := l.issuingFiles(name)
		var ca *rpc.CA
		_, err := os.Stat(cert)
		if err == nil {
			ca, err = rpc.LoadCA(cert, key, nil)
		} else if ca, err = root.NewIssuing(name, certLifetime, now); err == nil {
			err = ca.Write(cert, key)
		}
		if errors.Is(err, rpc.ErrRefused) {
			return root, nil
		}
		if err != nil {
			return nil, err
		}
		if first == nil {
			first = ca
		}
	}
	return first, nil
}

// issuingFiles are a controller's issuing CA: in a folder of its own, since all
// certificates of a lab lie in one.
func (l *Lab) issuingFiles(controller string) (cert, key string) {
	dir := l.path("pki", controller)
	return filepath.Join(dir, "issuing-ca.pem"), filepath.Join(dir, "issuing-ca.key")
}

func (l *Lab) certFiles(name string) (cert, key string) {
	return l.path("pki", name+".pem"), l.path("pki", name+".key")
}

func randomKey() ([]byte, error) {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	return []byte(base64.StdEncoding.EncodeToString(key) + "\n"), nil
}

// makeSSHKey makes the key with which a person would log in to guests.
func (l *Lab) makeSSHKey() error {
	file := l.path("pki", "id_ed25519")
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(private, "admin@lab")
	if err != nil {
		return fmt.Errorf("make the admin's SSH key: %w", err)
	}
	pub, err := ssh.NewPublicKey(public)
	if err != nil {
		return err
	}
	if err := writeFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		return err
	}
	return writeFile(file+".pub", ssh.MarshalAuthorizedKey(pub), 0o644)
}
