// Package sshd is the guest's SSH server: the real protocol, public keys only,
// commands run by the caller's function. What a guest has no use for in the lab
// (terminals, X11, agents, sftp, remote forwarding) is refused.
package sshd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/lab/guest/shell"
)

// Server serves one guest. All fields must be set.
type Server struct {
	HostKeys []ssh.Signer
	// Authorized gives a user's keys as they are at that moment; an unknown user
	// has none.
	Authorized func(user string) []ssh.PublicKey
	// Anybody lets in whoever has a key, as no real guest does.
	Anybody bool
	// Run runs a command as that user and gives its exit code; an empty command
	// is a shell that reads its commands from stdin. It ends with ctx, whose
	// cause may be a shell.Killed.
	Run func(ctx context.Context, user, command string, stdin io.Reader, stdout, stderr io.Writer) int
	// Dial connects to what the guest would reach under that address.
	Dial func(ctx context.Context, host string, port int) (net.Conn, error)
	// Log notes what sshd writes to its log.
	Log func(text string)
}

// Serve accepts connections until ctx ends, then closes them all and returns.
// The listener is closed.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	cfg := &ssh.ServerConfig{
		ServerVersion: "SSH-2.0-OpenSSH_9.6p1 Ubuntu-3ubuntu13.14",
		PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if s.Anybody {
				return nil, nil
			}
			for _, k := range s.Authorized(c.User()) {
				if string(k.Marshal()) == string(key.Marshal()) {
					return nil, nil
				}
			}
			return nil, errors.New("not authorized")
		},
	}
	for _, k := range s.HostKeys {
		cfg.AddHostKey(k)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			l.Close()
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			s.connection(ctx, conn, cfg)
		})
	}
}

func (s *Server) connection(ctx context.Context, conn net.Conn, cfg *ssh.ServerConfig) {
	defer conn.Close()
	c, chans, reqs, err := ssh.NewServerConn(conn, cfg)
	if err != nil {
		s.Log("Connection closed by " + conn.RemoteAddr().String() + ": " + err.Error())
		return
	}
	defer c.Close()
	s.Log("Accepted publickey for " + c.User() + " from " + conn.RemoteAddr().String())
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for r := range reqs {
			// keepalive@openssh.com wants any answer.
			if r.WantReply {
				_ = r.Reply(false, nil)
			}
		}
	})
	for ch := range chans {
		switch ch.ChannelType() {
		case "session":
			wg.Go(func() { s.session(ctx, c.User(), ch) })
		case "direct-tcpip":
			wg.Go(func() { s.forward(ctx, ch) })
		default:
			_ = ch.Reject(ssh.UnknownChannelType, "not simulated by hl-lab")
		}
	}
}

func (s *Server) session(ctx context.Context, user string, nc ssh.NewChannel) {
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	defer ch.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan int, 1)
	running := false
	for {
		select {
		case code := <-done:
			s.exit(ch, code)
			return
		case r, ok := <-reqs:
			if !ok {
				// The client is gone. As in life the command goes on, until it writes
				// or the guest stops; only what reads its input sees the end.
				if running {
					<-done
				}
				return
			}
			reply := func(ok bool) {
				if r.WantReply {
					_ = r.Reply(ok, nil)
				}
			}
			switch r.Type {
			case "env":
				reply(false) // AcceptEnv is LANG LC_* in life; the lab has one locale
			case "exec", "shell":
				var m struct{ Command string }
				if r.Type == "exec" {
					if err := ssh.Unmarshal(r.Payload, &m); err != nil {
						reply(false)
						continue
					}
				}
				if running {
					reply(false)
					continue
				}
				running = true
				reply(true)
				go func() { done <- s.Run(ctx, user, m.Command, ch, ch, ch.Stderr()) }()
			case "signal":
				var m struct{ Signal string }
				if err := ssh.Unmarshal(r.Payload, &m); err == nil {
					if n, ok := signals[m.Signal]; ok {
						cancel(shell.Killed(n))
					}
				}
				reply(true)
			default: // pty-req, subsystem, x11-req, auth-agent-req
				reply(false)
			}
		}
	}
}

var signals = map[string]int{"HUP": 1, "INT": 2, "QUIT": 3, "KILL": 9, "TERM": 15}

func (s *Server) exit(ch ssh.Channel, code int) {
	_ = ch.CloseWrite()
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(code)) //nolint:gosec // an exit code is small
	_, _ = ch.SendRequest("exit-status", false, b[:])
}

func (s *Server) forward(ctx context.Context, nc ssh.NewChannel) {
	var m struct {
		Host string
		Port uint32
		From string
		FP   uint32
	}
	if err := ssh.Unmarshal(nc.ExtraData(), &m); err != nil || m.Port > 65535 {
		_ = nc.Reject(ssh.ConnectionFailed, "malformed request")
		return
	}
	conn, err := s.Dial(ctx, m.Host, int(m.Port))
	if err != nil {
		_ = nc.Reject(ssh.ConnectionFailed, fmt.Sprintf("open failed: connect failed: %v", err))
		return
	}
	defer conn.Close()
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	defer ch.Close()
	go ssh.DiscardRequests(reqs)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(conn, ch)
		if t, ok := conn.(*net.TCPConn); ok {
			_ = t.CloseWrite()
		}
	})
	_, _ = io.Copy(ch, conn)
	_ = ch.CloseWrite()
	conn.Close()
	ch.Close()
	wg.Wait()
}

// Address joins a guest's address and port.
func Address(ip string, port int) string { return net.JoinHostPort(ip, strconv.Itoa(port)) }
