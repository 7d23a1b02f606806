// Package sshexec runs command lines over an SSH connection that is there, and lets
// nobody wait for longer than was said, whatever the other side does. How a connection
// comes about, and whose key is trusted, it leaves to others.
package sshexec

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/internal/rpc"
)

const (
	// closeTimeout is how long the other side may take to let go of a command that is
	// given up.
	closeTimeout = time.Second
	pulseEvery   = 10 * time.Second
	pulseTimeout = 15 * time.Second
	// outputLimit bounds what an Output keeps, in bytes.
	outputLimit = 4 << 20
)

// Command is one command line for the login shell there. The streams may be nil.
type Command struct {
	Line           string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Words are what an error says before its cause.
type Words struct {
	// Slow: the time was over before the command was begun. NotBegun: it was not begun
	// for another reason.
	Slow, NotBegun string
	// Late: the time was over before the command ended. Lost: the connection was.
	Late, Lost string
}

// Run runs a command and gives its exit code, which is 128 and more for one that a signal
// ended, as in a shell. An error means that it is not known how the command ended:
// Unavailable. When ctx ends the command is given up, and the connection too if the other
// side does not let go of it at once; what was started there may go on.
func Run(ctx context.Context, client *ssh.Client, c Command, say Words) (exit int, err error) {
	session, err := begin(ctx, client)
	switch {
	case err != nil && ctx.Err() != nil:
		return 0, unavailable(say.Slow, ctx.Err())
	case err != nil:
		return 0, unavailable(say.NotBegun, err)
	}
	defer func() { _ = session.Close() }()
	session.Stdin, session.Stdout, session.Stderr = c.Stdin, c.Stdout, c.Stderr
	done := make(chan struct{})
	defer close(done)
	stop := context.AfterFunc(ctx, func() {
		_ = session.Close()
		select {
		case <-done:
		case <-time.After(closeTimeout):
			// The end that a machine that hangs cannot delay.
			_ = client.Close()
		}
	})
	defer stop()
	go pulse(client, done)

	err = session.Run(c.Line)
	var status *ssh.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &status):
		return status.ExitStatus(), nil // with 128 and the signal's number, too
	case ctx.Err() != nil:
		return 0, unavailable(say.Late, ctx.Err())
	}
	return 0, unavailable(say.Lost, err)
}

// begin opens a session. A machine that hangs does not answer this either; and where the
// connection ends in that very moment x/crypto/ssh waits for an answer for ever, so that
// closing it would not be enough.
func begin(ctx context.Context, client *ssh.Client) (*ssh.Session, error) {
	type opened struct {
		session *ssh.Session
		err     error
	}
	done := make(chan opened, 1)
	go func() {
		session, err := client.NewSession()
		done <- opened{session, err}
	}()
	select {
	case o := <-done:
		return o.session, o.err
	case <-ctx.Done():
		_ = client.Close()
		return nil, ctx.Err()
	}
}

func unavailable(what string, err error) error {
	return rpc.Errorf(rpc.ErrUnavailable, "%s: %w", what, err)
}

// pulse asks sshd for a sign of life while a command runs: a machine that hangs, or
// whose power was cut, would otherwise hold us for minutes.
func pulse(client *ssh.Client, done <-chan struct{}) {
	tick := time.NewTicker(pulseEvery)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		dead := time.AfterFunc(pulseTimeout, func() { _ = client.Close() })
		_, _, err := client.SendRequest("keepalive@openssh.com", true, nil)
		dead.Stop()
		if err != nil {
			return
		}
	}
}

// Output keeps the first 4 MiB of a stream and forgets the rest.
type Output struct{ buf bytes.Buffer }

func (o *Output) Write(p []byte) (int, error) {
	room := outputLimit - o.buf.Len()
	o.buf.Write(p[:min(len(p), room)])
	return len(p), nil
}

// Bytes is what was kept.
func (o *Output) Bytes() []byte { return o.buf.Bytes() }
