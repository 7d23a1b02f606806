// Package guesttest is a guest for tests, as far as a shell in it is concerned:
// a real SSH server in this process whose commands a Go function answers.
package guesttest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
)

// Command is one command line that a test guest is asked to run.
type Command struct {
	Line           string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Script gives the script of `sudo -n sh -c 'SCRIPT'` and whether it is one.
func (c Command) Script() (string, bool) {
	quoted, ok := strings.CutPrefix(c.Line, "sudo -n sh -c '")
	if !ok || !strings.HasSuffix(quoted, "'") {
		return "", false
	}
	return strings.ReplaceAll(strings.TrimSuffix(quoted, "'"), `'\''`, "'"), true
}

// Server is the guest's SSH server. Its fields may be changed under Lock.
type Server struct {
	sync.Mutex
	// User and Authorized are who may log in (authorized_keys format).
	User       string
	Authorized string
	// Run answers a command with its exit code.
	Run func(Command) int
	// Forward maps addresses that are dialled through the guest to real ones.
	Forward map[string]string
	// Mute takes connections and says nothing.
	Mute bool

	key      ssh.Signer
	listener net.Listener
	open     map[net.Conn]struct{}
	// Deaf leaves connections that are there without any answer, as a guest that hangs.
	Deaf bool
}

// Start begins a server on 127.0.0.1 that ends with the test. key nil makes one.
func Start(t testing.TB, key ssh.Signer) *Server {
	t.Helper()
	if key == nil {
		key = NewKey(t)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{key: key, listener: l, open: make(map[net.Conn]struct{})}
	go s.serve()
	t.Cleanup(s.Stop)
	return s
}

// NewKey makes an SSH key.
func NewKey(t testing.TB) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// Line is a key in authorized_keys format.
func Line(k ssh.PublicKey) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k))) }

// HostKey is the server's, authorized_keys format.
func (s *Server) HostKey() string { return Line(s.key.PublicKey()) }

// Port is where it listens on 127.0.0.1.
func (s *Server) Port() int { return s.listener.Addr().(*net.TCPAddr).Port }

// Stop ends it and all connections.
func (s *Server) Stop() {
	_ = s.listener.Close()
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

func (s *Server) conn(c net.Conn) {
	defer c.Close()
	cfg := &ssh.ServerConfig{PublicKeyCallback: func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		s.Lock()
		defer s.Unlock()
		if meta.User() != s.User || Line(key) != s.Authorized {
			return nil, io.EOF
		}
		return nil, nil
	}}
	cfg.AddHostKey(s.key)
	conn, chans, reqs, err := ssh.NewServerConn(c, cfg)
	if err != nil {
		return
	}
	defer conn.Close()
	go func() {
		for r := range reqs {
			_ = r.Reply(true, nil) // keepalive
		}
	}()
	for ch := range chans {
		s.Lock()
		deaf := s.Deaf
		s.Unlock()
		if deaf {
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

func (s *Server) session(nc ssh.NewChannel) {
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	defer ch.Close()
	for r := range reqs {
		if r.Type != "exec" {
			_ = r.Reply(false, nil)
			continue
		}
		line := string(r.Payload[4:])
		_ = r.Reply(true, nil)
		s.Lock()
		run := s.Run
		s.Unlock()
		exit := run(Command{Line: line, Stdin: ch, Stdout: ch, Stderr: ch.Stderr()})
		_, _ = ch.SendRequest("exit-status", false, binary.BigEndian.AppendUint32(nil, uint32(exit)))
		return
	}
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
	defer out.Close()
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	defer ch.Close()
	go ssh.DiscardRequests(reqs)
	ended := make(chan struct{}, 2)
	go func() { _, _ = io.Copy(out, ch); ended <- struct{}{} }()
	go func() { _, _ = io.Copy(ch, out); ended <- struct{}{} }()
	<-ended
}

// Sections prints what a script of internal/k3s prints for the named sections.
type Sections struct{ bytes.Buffer }

// Add adds a section with its text and exit code.
func (s *Sections) Add(name, text string, exit string) {
	s.WriteString("@@hl begin " + name + "\n" + text + "\n@@hl end " + name + " " + exit + "\n")
}

// Parse reads a private key in PEM.
func Parse(t testing.TB, private string) ssh.Signer {
	t.Helper()
	signer, err := ssh.ParsePrivateKey([]byte(private))
	if err != nil {
		t.Fatal(err)
	}
	return signer
}
