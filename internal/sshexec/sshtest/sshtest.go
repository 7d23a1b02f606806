// Package sshtest is a real SSH server for tests, in this process, whose commands a Go
// function answers. What a guest or a host prints it leaves to its users.
package sshtest

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
)

// Command is one command line that the server is asked to run.
type Command struct {
	Line           string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Server is an SSH server. Its fields may be changed under Lock.
type Server struct {
	sync.Mutex
	// User is who may log in; empty is anybody.
	User string
	// Authorized are the public keys that are let in; Password too, unless empty.
	Authorized []ssh.PublicKey
	Password   string
	// Run answers a command with its exit code; nil finds no command.
	Run func(Command) int
	// Signal is the name of one that ends all commands; empty is none.
	Signal string
	// Forward maps addresses that are dialled through the server to real ones.
	Forward map[string]string
	// Mute takes connections and says nothing.
	Mute bool
	// Deaf leaves connections that are there without any answer, as a machine that hangs.
	Deaf bool
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
	s := &Server{keys: keys, listener: l, open: make(map[net.Conn]struct{})}
	go s.listen()
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
	return Signer(t, private)
}

// NewRSAKey makes an RSA key.
func NewRSAKey(t testing.TB) ssh.Signer {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return Signer(t, private)
}

// Signer is a private key of package crypto.
func Signer(t testing.TB, private any) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Line is a key in authorized_keys format.
func Line(key ssh.PublicKey) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) }

// HostKey is the server's first key.
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

func (s *Server) listen() {
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
			go s.Serve(c)
		}
	}
}

var errStranger = errors.New("not let in")

func (s *Server) config() *ssh.ServerConfig {
	s.Lock()
	defer s.Unlock()
	cfg := &ssh.ServerConfig{
		PublicKeyCallback: func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			s.Lock()
			defer s.Unlock()
			known := slices.ContainsFunc(s.Authorized, func(k ssh.PublicKey) bool { return Line(k) == Line(key) })
			if !known || s.User != "" && meta.User() != s.User {
				return nil, errStranger
			}
			return nil, nil
		},
		AuthLogCallback: func(meta ssh.ConnMetadata, _ string, _ error) {
			s.Lock()
			defer s.Unlock()
			s.Logins = append(s.Logins, meta.User())
		},
	}
	if password := s.Password; password != "" {
		cfg.PasswordCallback = func(_ ssh.ConnMetadata, given []byte) (*ssh.Permissions, error) {
			if string(given) == password {
				return nil, nil
			}
			return nil, errStranger
		}
	}
	for _, k := range s.keys {
		cfg.AddHostKey(k)
	}
	return cfg
}

// Serve serves one connection, as those that come to its port, until it ends.
func (s *Server) Serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	conn, chans, reqs, err := ssh.NewServerConn(c, s.config())
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	go func() {
		for r := range reqs {
			if !s.deaf() {
				_ = r.Reply(true, nil) // keepalive
			}
		}
	}()
	for ch := range chans {
		if s.deaf() {
			continue
		}
		switch ch.ChannelType() {
		case "session":
			go s.session(ch)
		case "direct-tcpip":
			go s.forward(ch)
		default:
			_ = ch.Reject(ssh.UnknownChannelType, "")
		}
	}
}

func (s *Server) deaf() bool {
	s.Lock()
	defer s.Unlock()
	return s.Deaf
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
		s.Lock()
		run, signal := s.Run, s.Signal
		s.Unlock()
		if signal != "" {
			_, _ = ch.SendRequest("exit-signal", false, ssh.Marshal(ended{Signal: signal}))
			return
		}
		code := 127
		if run != nil {
			code = run(Command{Line: string(r.Payload[4:]), Stdin: ch, Stdout: ch, Stderr: ch.Stderr()})
		}
		_, _ = ch.SendRequest("exit-status", false, binary.BigEndian.AppendUint32(nil, uint32(code))) //nolint:gosec // small
		return
	}
}

// ended is a command's end by a signal (RFC 4254, 6.10).
type ended struct {
	Signal      string
	Core        bool
	Text, Speak string
}

func (s *Server) forward(nc ssh.NewChannel) {
	var to struct {
		Host  string
		Port  uint32
		From  string
		FPort uint32
	}
	if err := ssh.Unmarshal(nc.ExtraData(), &to); err != nil {
		_ = nc.Reject(ssh.ConnectionFailed, "")
		return
	}
	s.Lock()
	real, ok := s.Forward[to.Host]
	s.Unlock()
	if !ok {
		_ = nc.Reject(ssh.ConnectionFailed, "connection refused")
		return
	}
	out, err := net.Dial("tcp", real)
	if err != nil {
		_ = nc.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	defer func() { _ = out.Close() }()
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	defer func() { _ = ch.Close() }()
	go ssh.DiscardRequests(reqs)
	over := make(chan struct{}, 2)
	go func() { _, _ = io.Copy(out, ch); over <- struct{}{} }()
	go func() { _, _ = io.Copy(ch, out); over <- struct{}{} }()
	<-over
}
