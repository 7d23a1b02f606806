// Package guest is the way into a guest: a shell over SSH or, where that fails,
// through the guest agent; the user-data that a guest is born with; the keys of
// both sides; and the wait until a guest has booted. What is run inside, and
// when, it leaves to others.
package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/sshexec"
)

// Why says how reaching a guest over SSH failed.
type Why string

// The ways in which it fails.
const (
	// Refused: the machine answers, nothing listens on the port.
	Refused Why = "refused"
	// Filtered: nothing answered on the port at all.
	Filtered Why = "filtered"
	// Unreachable: there is no way to the address.
	Unreachable Why = "unreachable"
	// Timeout: something took the connection and then did not speak in time.
	Timeout Why = "timeout"
	// Auth: the guest does not accept this agent's key.
	Auth Why = "auth"
	// WrongHostKey: another machine than the guest answers at its address.
	WrongHostKey Why = "host key"
	// NoAddress: no address of the guest is known.
	NoAddress Why = "no address"
	// NoHostKey: no host key is known, so nobody could be recognised.
	NoHostKey Why = "no host key known"
	// Broken: it spoke something else than SSH, or ended the connection.
	Broken Why = "broken"
)

// SSHError is a failed attempt to reach a guest over SSH.
type SSHError struct {
	Why     Why
	Address string // host:port, empty when none was tried
	Err     error
}

func (e *SSHError) Error() string {
	at := ""
	if e.Address != "" {
		at = " at " + e.Address
	}
	if e.Err == nil {
		return fmt.Sprintf("ssh%s: %s", at, e.Why)
	}
	return fmt.Sprintf("ssh%s: %s: %v", at, e.Why, e.Err)
}

// Unwrap gives the kind first: another machine at the guest's address is
// Denied, all else may be over in a moment.
func (e *SSHError) Unwrap() []error {
	kind := rpc.ErrUnavailable
	if e.Why == WrongHostKey {
		kind = rpc.ErrDenied
	}
	if e.Err == nil {
		return []error{kind}
	}
	return []error{kind, e.Err}
}

// Target says where a guest is and how it is recognised.
type Target struct {
	User string
	// Addresses are tried in this order, without port or prefix length.
	Addresses []string
	Port      int
	// HostKeys are the keys of which one must be the guest's, authorized_keys
	// format. None means that nobody is let in.
	HostKeys []string
	// Key is this agent's.
	Key ssh.Signer
	// Dial opens the TCP connection; nil is net.Dialer's.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Limits of one connection.
const (
	connectTimeout   = 3 * time.Second
	handshakeTimeout = 5 * time.Second
)

// Conn is an SSH connection to a guest. Its host key was verified. It may be
// used by several goroutines.
type Conn struct {
	client  *ssh.Client
	address string
}

// Dial connects to the first address that lets us in. The error is an
// *SSHError: of the address that came furthest.
func Dial(ctx context.Context, t Target) (*Conn, error) {
	if len(t.HostKeys) == 0 {
		return nil, &SSHError{Why: NoHostKey}
	}
	keys, err := parseKeys(t.HostKeys)
	if err != nil {
		return nil, err
	}
	if len(t.Addresses) == 0 {
		return nil, &SSHError{Why: NoAddress}
	}
	var worst *SSHError
	for _, a := range t.Addresses {
		c, serr := dialOne(ctx, t, keys, net.JoinHostPort(a, strconv.Itoa(t.Port)))
		if serr == nil {
			return c, nil
		}
		if worst == nil || rank[serr.Why] > rank[worst.Why] {
			worst = serr
		}
	}
	return nil, worst
}

// rank orders failures by how much they tell.
var rank = map[Why]int{Unreachable: 0, Filtered: 1, Refused: 2, Broken: 3, Timeout: 4, WrongHostKey: 5, Auth: 6}

func parseKeys(lines []string) ([]ssh.PublicKey, error) {
	keys := make([]ssh.PublicKey, 0, len(lines))
	for _, l := range lines {
		k, _, _, _, err := ssh.ParseAuthorizedKey([]byte(l))
		if err != nil {
			return nil, rpc.Errorf(rpc.ErrInvalid, "host key %q: %w", l, err)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// errWrongKey is what the host key callback ends the handshake with.
var errWrongKey = errors.New("another machine answers there")

func dialOne(ctx context.Context, t Target, keys []ssh.PublicKey, address string) (*Conn, *SSHError) {
	dial := t.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	tcp, cancel := context.WithTimeout(ctx, connectTimeout)
	raw, err := dial(tcp, "tcp", address)
	cancel()
	if err != nil {
		return nil, &SSHError{Why: whyNoConnection(err), Address: address, Err: plain(err)}
	}
	algorithms := make([]string, 0, len(keys))
	for _, k := range keys {
		algorithms = append(algorithms, keyAlgorithms(k.Type())...)
	}
	cfg := &ssh.ClientConfig{
		User: t.User,
		Auth: []ssh.AuthMethod{ssh.PublicKeys(t.Key)},
		// Only what we can verify is asked for, or a guest with several host
		// keys would show another one than the pinned.
		HostKeyAlgorithms: algorithms,
		HostKeyCallback: func(_ string, _ net.Addr, got ssh.PublicKey) error {
			known := slices.ContainsFunc(keys, func(k ssh.PublicKey) bool { return bytes.Equal(k.Marshal(), got.Marshal()) })
			if !known {
				return fmt.Errorf("%w: its host key is %s", errWrongKey, ssh.FingerprintSHA256(got))
			}
			return nil
		},
	}
	shake, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(shake, func() { _ = raw.Close() })
	conn, chans, reqs, err := ssh.NewClientConn(raw, address, cfg)
	if !stop() && err == nil {
		err = shake.Err() // closed under our hands
		_ = conn.Close()
	}
	if err != nil {
		_ = raw.Close()
		return nil, &SSHError{Why: whyNoHandshake(shake, err), Address: address, Err: shorter(err)}
	}
	return &Conn{client: ssh.NewClient(conn, chans, reqs), address: address}, nil
}

// keyAlgorithms are the signature algorithms for a type of key.
func keyAlgorithms(kind string) []string {
	if kind == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return []string{kind}
}

func whyNoConnection(err error) Why {
	var ne net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return Unreachable
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		return Filtered
	}
	return Broken
}

func whyNoHandshake(ctx context.Context, err error) Why {
	switch {
	case errors.Is(err, errWrongKey), strings.Contains(err.Error(), "no common algorithm for host key"):
		return WrongHostKey
	case ctx.Err() != nil:
		return Timeout
	case strings.Contains(err.Error(), "unable to authenticate"):
		return Auth
	}
	return Broken
}

// plain is the cause without the operation and address that are said already.
func plain(err error) error {
	var oe *net.OpError
	if errors.As(err, &oe) {
		err = oe.Err
	}
	var se syscall.Errno
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer within %s", connectTimeout)
	case errors.As(err, &se):
		return se
	}
	return err
}

// shorter drops what x/crypto/ssh puts before the cause.
func shorter(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("no answer within %s", handshakeTimeout)
	}
	text := strings.TrimPrefix(err.Error(), "ssh: ")
	return errors.New(strings.TrimPrefix(text, "handshake failed: "))
}

// Address is where the guest was reached, host:port.
func (c *Conn) Address() string { return c.address }

// Close ends the connection and whatever runs over it.
func (c *Conn) Close() error { return c.client.Close() }

// DialContext opens a connection from inside the guest, as its sshd allows
// (direct-tcpip). It fits gRPC and HTTP clients.
func (c *Conn) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return c.client.DialContext(ctx, network, address)
}

// Exec runs one command line under the login shell of the guest's user. The
// streams may be nil. A command that a signal ended has exit code 128 and more,
// as in a shell. An error means that it is not known how the command ended:
// Unavailable. When ctx ends the command is given up, and the connection too if
// the guest does not let go of it at once; what was started in the guest may go
// on there.
func (c *Conn) Exec(ctx context.Context, command string, stdin io.Reader, stdout, stderr io.Writer) (exit int, err error) {
	at := "ssh at " + c.address
	return sshexec.Run(ctx, c.client, sshexec.Command{Line: command, Stdin: stdin, Stdout: stdout, Stderr: stderr}, sshexec.Words{
		Slow: at + ": no command could be begun in time", NotBegun: at,
		Late: at + ": the command did not end in time", Lost: at + ": the connection was lost before the command ended",
	})
}
