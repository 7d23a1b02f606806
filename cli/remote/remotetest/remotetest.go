// Package remotetest is a host for tests, as far as root's shell is concerned: a real
// SSH server in this process whose programs a Go function plays.
package remotetest

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
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
	sync.Mutex
	// Authorized are the public keys that are let in; Password too, unless empty.
	Authorized []ssh.PublicKey
	Password   string
	// Run plays a program and gives its exit code. `id -u` is answered without it.
	Run func(Command) int
	// UID is who one is there; 0 unless it is changed.
	UID string
	// Mute takes connections and says nothing.
	Mute bool
	// Logins are the names with which somebody tried to log in.
	Logins []string

	keys     []ssh.Signer
	listener net.Listener
	open     map[net.Conn]struct{}
}

// Start begins a server on 127.0.0.1 that ends with the test; no keys makes one.
func Start(t testing.TB, keys ...ssh.Signer) *Server {
	t.Helper()
	if len(keys) == 0 {
		keys = []ssh.Signer{NewKey(t)}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{keys: keys, listener: l, open: make(map[net.Conn]struct{}), UID: "0"}
	go s.serve()
	t.Cleanup(s.Stop)
	return s
}

// NewKey makes an ed25519 key.
func NewKey(t testing.TB) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer(t, private)
}

// NewRSAKey makes an RSA key.
func NewRSAKey(t testing.TB) ssh.Signer {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return signer(t, private)
}

func signer(t testing.TB, private any) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
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
	s.Authorized = append(s.Authorized, signer(t, private).PublicKey())
	return file
}

// HostKey is the host's first key.
func (s *Server) HostKey() ssh.PublicKey { return s.keys[0].PublicKey() }

// Port is where it listens on 127.0.0.1.
func (s *Server) Port() int { return s.listener.Addr().(*net.TCPAddr).Port }

// At is 127.0.0.1:PORT.
func (s *Server) At() string { return s.listener.Addr().String() }

// Stop ends it and all connections.
func (s *Server) Stop() {
	_ = s.listener.Close()
	s.Cut()
}

// Cut ends all connections, as a network that breaks.
func (s *Server) Cut() {
	s.Lock()
	defer s.Unlock()
	for c := range s.open {
		_ = c.Close()
	}
}

func (s *Server) serve() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.Lock()
		s.open[c] = struct{}{}
		mute := s.Mute
		s.Unlock()
		if !mute {
			go s.conn(c)
		}
	}
}

var errStranger = errors.New("not let in")

func (s *Server) conn(c net.Conn) {
	defer func() { _ = c.Close() }()
	cfg := &ssh.ServerConfig{
		PublicKeyCallback: func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			s.Lock()
			defer s.Unlock()
			for _, k := range s.Authorized {
				if string(k.Marshal()) == string(key.Marshal()) {
					return nil, nil
				}
			}
			return nil, errStranger
		},
		AuthLogCallback: func(meta ssh.ConnMetadata, _ string, _ error) {
			s.Lock()
			defer s.Unlock()
			s.Logins = append(s.Logins, meta.User())
		},
	}
	s.Lock()
	if password := s.Password; password != "" {
		cfg.PasswordCallback = func(_ ssh.ConnMetadata, given []byte) (*ssh.Permissions, error) {
			if string(given) == password {
				return nil, nil
			}
			return nil, errStranger
		}
	}
	s.Unlock()
	for _, k := range s.keys {
		cfg.AddHostKey(k)
	}
	conn, chans, reqs, err := ssh.NewServerConn(c, cfg)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	go func() {
		for r := range reqs {
			_ = r.Reply(true, nil) // keepalive
		}
	}()
	for ch := range chans {
		if ch.ChannelType() != "session" {
			_ = ch.Reject(ssh.UnknownChannelType, "")
			continue
		}
		go s.session(ch)
	}
}

func (s *Server) session(nc ssh.NewChannel) {
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	defer func() { _ = ch.Close() }()
	for r := range reqs {
		if r.Type != "exec" || len(r.Payload) < 4 {
			_ = r.Reply(false, nil)
			continue
		}
		_ = r.Reply(true, nil)
		code := s.run(string(r.Payload[4:]), ch)
		_, _ = ch.SendRequest("exit-status", false, binary.BigEndian.AppendUint32(nil, uint32(code))) //nolint:gosec // small
		return
	}
}

func (s *Server) run(line string, ch ssh.Channel) int {
	argv, err := words(line)
	if err != nil {
		_, _ = io.WriteString(ch.Stderr(), err.Error()+"\n")
		return 2
	}
	s.Lock()
	run, uid := s.Run, s.UID
	s.Unlock()
	switch {
	case strings.Join(argv, " ") == "id -u":
		_, _ = io.WriteString(ch, uid+"\n")
		return 0
	case run == nil:
		_, _ = io.WriteString(ch.Stderr(), "sh: "+argv[0]+": not found\n")
		return 127
	}
	return run(Command{Argv: argv, Stdin: ch, Stdout: ch, Stderr: ch.Stderr()})
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

// Line is a key as it stands in files, and Print its fingerprint.
func Line(key ssh.PublicKey) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) }

// Print is a key's fingerprint.
func Print(key ssh.PublicKey) string { return ssh.FingerprintSHA256(key) }
