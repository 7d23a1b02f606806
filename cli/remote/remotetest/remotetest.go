// Package remotetest is a host for tests, as far as root's shell is concerned: an SSH
// server whose programs a Go function plays.
package remotetest

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/internal/sshexec/sshtest"
)

// Command is one command line that the host is asked to run.
type Command struct {
	// Argv are its words as a shell reads them.
	Argv           []string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Server is the host's sshd. Its fields may be changed under Lock.
type Server struct {
	*sshtest.Server
	// Run plays a program and gives its exit code. `id -u` is answered without it.
	Run func(Command) int
	// UID is who one is there; 0 unless it is changed.
	UID string
}

// Start begins a server on 127.0.0.1 that ends with the test; no keys makes one.
func Start(t testing.TB, keys ...ssh.Signer) *Server {
	t.Helper()
	s := &Server{Server: sshtest.Start(t, keys...), UID: "0"}
	s.Lock()
	defer s.Unlock()
	s.Server.Run = s.run
	return s
}

// Identity writes a new private key file, with a passphrase unless it is empty, and
// lets it in.
func (s *Server) Identity(t testing.TB, passphrase string) (file string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var block *pem.Block
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(private, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "id")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Lock()
	defer s.Unlock()
	s.Authorized = append(s.Authorized, sshtest.Signer(t, private).PublicKey())
	return file
}

func (s *Server) run(c sshtest.Command) int {
	argv, err := words(c.Line)
	if err != nil {
		_, _ = io.WriteString(c.Stderr, err.Error()+"\n")
		return 2
	}
	s.Lock()
	run, uid := s.Run, s.UID
	s.Unlock()
	switch {
	case strings.Join(argv, " ") == "id -u":
		_, _ = io.WriteString(c.Stdout, uid+"\n")
		return 0
	case run == nil:
		_, _ = io.WriteString(c.Stderr, "sh: "+argv[0]+": not found\n")
		return 127
	}
	return run(Command{Argv: argv, Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr})
}

// Put says which file a command puts, when it is one of Host.Put: its content is the
// input, of that many bytes if all of it arrives.
func (c Command) Put() (path, mode, size string, ok bool) {
	if len(c.Argv) != 7 || c.Argv[0] != "sh" || !strings.Contains(c.Argv[2], ".hlctl.XXXXXXXX") {
		return "", "", "", false
	}
	return c.Argv[4], c.Argv[5], c.Argv[6], true
}

// words splits a line as a shell does that expands nothing: what would be expanded is
// an error, since nobody who asks a host for something wants that.
func words(line string) ([]string, error) {
	var list []string
	var word strings.Builder
	inside, begun := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\'':
			inside, begun = !inside, true
		case inside:
			word.WriteByte(c)
		case c == '\\' && i+1 < len(line):
			i++
			word.WriteByte(line[i])
			begun = true
		case c == ' ':
			if begun {
				list = append(list, word.String())
			}
			word.Reset()
			begun = false
		default:
			return nil, errors.New("sh: not quoted: " + line)
		}
	}
	if inside {
		return nil, errors.New("sh: unterminated quoted string")
	}
	if begun {
		list = append(list, word.String())
	}
	if len(list) == 0 {
		return nil, errors.New("sh: no command")
	}
	return list, nil
}

// NewKey makes an ed25519 key.
func NewKey(t testing.TB) ssh.Signer { return sshtest.NewKey(t) }

// Line is a key as it stands in files.
func Line(key ssh.PublicKey) string { return sshtest.Line(key) }

// Print is a key's fingerprint.
func Print(key ssh.PublicKey) string { return ssh.FingerprintSHA256(key) }
