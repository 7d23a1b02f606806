package remote

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/homeiac/homelab/internal/rpc"
)

// algorithms are the host key algorithms, in OpenSSH's order, so that the key that is
// shown is the one that ssh would show. Certificates are not asked for.
var algorithms = []string{
	ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256,
}

// algorithmsOf are those for keys of these types.
func algorithmsOf(types []string) []string {
	var list []string
	for _, t := range types {
		if t == ssh.KeyAlgoRSA {
			list = append(list, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
			continue
		}
		list = append(list, t)
	}
	return list
}

// unknownKeyError is a host of which no key is known.
type unknownKeyError struct{ key ssh.PublicKey }

func (e *unknownKeyError) Error() string { return "its key is not known" }

// keyring is what is known of one host's keys.
type keyring struct {
	at    string // HOST:PORT as in known_hosts
	check ssh.HostKeyCallback
	// known are the keys that it may show.
	known []knownhosts.KnownKey
}

// readKeyring reads the files, as far as they are there. Lines that are not understood
// are passed over, as OpenSSH does; so are certificate authorities, whose certificates
// are not asked for: the host is unknown then.
func readKeyring(p place) (*keyring, error) {
	dir, err := os.MkdirTemp("", "hlctl")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	clean := make(map[string]string)
	var files []string
	for i, name := range p.knownFiles {
		data, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		// One by one: the line numbers are told to people.
		lines := bytes.Split(data, []byte("\n"))
		for i, line := range lines {
			if marker, _, _, _, _, err := ssh.ParseKnownHosts(line); err != nil || marker == "cert-authority" {
				lines[i] = nil
			}
		}
		file := filepath.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(file, bytes.Join(lines, []byte("\n")), 0o600); err != nil {
			return nil, err
		}
		files, clean[file] = append(files, file), name
	}
	check, err := knownhosts.New(files...)
	if err != nil {
		return nil, fmt.Errorf("known_hosts: %w", err)
	}
	k := &keyring{at: net.JoinHostPort(p.known, strconv.Itoa(p.port)), check: check}
	// A key that nobody has is answered with those that are known.
	var told *knownhosts.KeyError
	if err := check(k.at, &net.TCPAddr{}, nobodys{}); errors.As(err, &told) {
		k.known = told.Want
		for i := range k.known {
			k.known[i].Filename = clean[k.known[i].Filename]
		}
	}
	return k, nil
}

// nobodys is a public key of no host.
type nobodys struct{}

func (nobodys) Type() string                        { return "none" }
func (nobodys) Marshal() []byte                     { return []byte("none") }
func (nobodys) Verify([]byte, *ssh.Signature) error { return errors.New("nobody's key") }

// wanted are the algorithms to ask for: those of the known keys only, or a host with
// several keys would show another one, which would look like a changed key.
func (k *keyring) wanted() []string {
	if len(k.known) == 0 {
		return algorithms
	}
	var types []string
	for _, kk := range k.known {
		if t := kk.Key.Type(); !slices.Contains(types, t) {
			types = append(types, t)
		}
	}
	return algorithmsOf(types)
}

// verify says whether a key that the host has shown is its own. said is the
// fingerprint that the person expects, empty for none.
func (k *keyring) verify(key ssh.PublicKey, said string) error {
	print := ssh.FingerprintSHA256(key)
	err := k.check(k.at, &net.TCPAddr{}, key)
	var told *knownhosts.KeyError
	var revoked *knownhosts.RevokedError
	switch {
	case errors.As(err, &revoked):
		return rpc.Errorf(rpc.ErrDenied, "the host key %s of %s is marked as revoked in known_hosts", print, k.at)
	case errors.As(err, &told) && len(k.known) == 0:
		return &unknownKeyError{key}
	case err != nil:
		return k.changed(key)
	case said != "" && said != print:
		return rpc.Errorf(rpc.ErrDenied, "the host key of %s is %s, known since %s:%d, and not %s as --host-key says", k.at, print, k.known[0].Filename, k.known[0].Line, said)
	}
	return nil
}

// changed is the refusal of a key that is not the known one; key nil is that the host
// has no key of the known kinds any more.
func (k *keyring) changed(key ssh.PublicKey) error {
	known := k.known[0]
	shown, file := "it has no key of that kind any more", keyFileOn(known.Key.Type())
	if key != nil {
		shown, file = "now it shows "+ssh.FingerprintSHA256(key), keyFileOn(key.Type())
	}
	return rpc.Errorf(rpc.ErrDenied, `the host key of %s has CHANGED: %s:%d knows %s, %s
  either the host was installed anew, or another machine answers there. Nothing was sent to it
  to see which, on the host's own console: ssh-keygen -lf %s
  if that is the same as here: ssh-keygen -f %s -R %s
  and then this command again`, k.at, known.Filename, known.Line, ssh.FingerprintSHA256(known.Key), shown, file,
		known.Filename, shellName(knownhosts.Normalize(k.at)))
}

// shellName quotes a name with brackets, which shells would read as a pattern.
func shellName(name string) string {
	if strings.ContainsRune(name, '[') {
		return "'" + name + "'"
	}
	return name
}

// keyFileOn is where sshd has its public key of a type.
func keyFileOn(keyType string) string {
	kind := "ecdsa"
	switch keyType {
	case ssh.KeyAlgoED25519:
		kind = "ed25519"
	case ssh.KeyAlgoRSA:
		kind = "rsa"
	}
	return "/etc/ssh/ssh_host_" + kind + "_key.pub"
}

// add writes a key into the first of the files of known hosts.
func (p place) add(at string, key ssh.PublicKey) error {
	file := p.knownFiles[0]
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	line := knownhosts.Line([]string{at}, key)
	if p.hash {
		_, rest, _ := strings.Cut(line, " ")
		line = knownhosts.HashHostname(knownhosts.Normalize(at)) + " " + rest
	}
	if len(old) > 0 && !bytes.HasSuffix(old, []byte("\n")) {
		line = "\n" + line
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	return errors.Join(err, f.Close())
}
