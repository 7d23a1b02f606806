package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/internal/rpc"
)

const (
	connectTimeout = 10 * time.Second
	// handshakeTimeout does not count while a person is asked.
	handshakeTimeout = 30 * time.Second
)

// Options say how a host is reached and recognised.
type Options struct {
	// KnownHosts are the files of known host keys; the first is written to. None are
	// those of the SSH configuration, else ~/.ssh/known_hosts and the machine's.
	KnownHosts []string
	// HostKey is the fingerprint (SHA256:...) with which a key that is not known is
	// accepted; it never stands for a key that has changed.
	HostKey string
	// Confirm asks a person whether an unknown key is right. nil: nobody is there to be
	// asked, and it is refused.
	Confirm func(ctx context.Context, question string) (bool, error)
	// Secret asks a person for a passphrase or password, which is not shown. nil:
	// nobody is there.
	Secret func(ctx context.Context, question string) (string, error)
	// Identity is a key file; empty are the SSH agent's keys and those of the SSH
	// configuration, else ~/.ssh/id_*.
	Identity string
	// Config is the SSH configuration file: empty is ~/.ssh/config and the machine's,
	// NoConfig none.
	Config string
}

// Dial opens root's shell on a host. Before anything is sent its key is compared with
// those that are known; one that has changed is Denied, whatever the options say. An
// unknown one that is accepted is written into the file of known hosts. Who is not root
// there is Denied too.
func Dial(ctx context.Context, t Target, o Options) (*Host, error) {
	p, err := settle(t, o)
	if err != nil {
		return nil, err
	}
	if o.HostKey != "" && !strings.HasPrefix(o.HostKey, "SHA256:") {
		return nil, rpc.Errorf(rpc.ErrInvalid, "--host-key %q is no SHA256:... as ssh-keygen -lf prints it", o.HostKey)
	}
	known, err := readKeyring(p)
	if err != nil {
		return nil, err
	}
	h, err := p.dial(ctx, o, known, known.wanted())
	var unknown *unknownKeyError
	if errors.As(err, &unknown) {
		if err := p.introduce(ctx, o, known, unknown.key); err != nil {
			return nil, err
		}
		if known, err = readKeyring(p); err != nil {
			return nil, err
		}
		h, err = p.dial(ctx, o, known, known.wanted())
	}
	if err != nil {
		return nil, err
	}
	if err := h.mustBeRoot(ctx, p.user); err != nil {
		_ = h.Close()
		return nil, err
	}
	return h, nil
}

// introduce has an unknown key accepted and remembered, or refuses it.
func (p place) introduce(ctx context.Context, o Options, known *keyring, key ssh.PublicKey) error {
	print := ssh.FingerprintSHA256(key)
	who := fmt.Sprintf("%s shows the host key %s (%s), which is not known", known.at, print, key.Type())
	compare := "compare it with what the host itself says: ssh-keygen -lf " + keyFileOn(key.Type())
	switch {
	case o.HostKey != "":
		// It may be that of another of the host's keys.
		found, err := p.look(ctx, known, key, o.HostKey)
		if err != nil {
			return err
		}
		if found == nil {
			return rpc.Errorf(rpc.ErrDenied, "%s, and not %s as --host-key says\n  %s", who, o.HostKey, compare)
		}
		key = found
	case o.Confirm == nil:
		return rpc.Errorf(rpc.ErrDenied, "%s, and there is no terminal to ask on\n  %s\n  and accept it with --host-key %s", who, compare, print)
	default:
		yes, err := o.Confirm(ctx, fmt.Sprintf("%s.\n%s\nIs it the right one?", who, strings.ToUpper(compare[:1])+compare[1:]))
		if err != nil {
			return err
		}
		if !yes {
			return rpc.Errorf(rpc.ErrDenied, "the host key of %s was not accepted; nothing was sent to it", known.at)
		}
	}
	if err := p.add(known.at, key); err != nil {
		return fmt.Errorf("remember the host key of %s: %w", known.at, err)
	}
	return nil
}

// look asks the host for its keys of other kinds, and gives the one with that
// fingerprint; nil when it has none. shown is the one that was seen.
func (p place) look(ctx context.Context, known *keyring, shown ssh.PublicKey, print string) (ssh.PublicKey, error) {
	if ssh.FingerprintSHA256(shown) == print {
		return shown, nil
	}
	for _, algorithm := range algorithms {
		if algorithm == shown.Type() {
			continue
		}
		_, err := p.dial(ctx, Options{}, known, []string{algorithm})
		var unknown *unknownKeyError
		if errors.As(err, &unknown) && ssh.FingerprintSHA256(unknown.key) == print {
			return unknown.key, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return nil, nil
}

// dial makes one connection.
func (p place) dial(ctx context.Context, o Options, known *keyring, algorithms []string) (*Host, error) {
	at := net.JoinHostPort(p.name, strconv.Itoa(p.port))
	raw, err := (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, "tcp", at)
	if err != nil {
		return nil, noConnection(ctx, at, err)
	}
	limit := time.AfterFunc(handshakeTimeout, func() { _ = raw.Close() })
	defer limit.Stop()
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	var ask func(string) (string, error)
	if o.Secret != nil {
		ask = func(question string) (string, error) {
			limit.Stop()
			defer limit.Reset(handshakeTimeout)
			return o.Secret(ctx, question)
		}
	}
	keys, err := gather(ctx, p, ask)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	defer keys.close()
	whom := p.user + "@" + p.name
	var fault error // the library passes on its text only
	conn, chans, reqs, err := ssh.NewClientConn(raw, at, &ssh.ClientConfig{
		User: p.user, HostKeyAlgorithms: algorithms, Auth: keys.methods(whom, ask),
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			fault = known.verify(key, o.HostKey)
			return fault
		},
	})
	if err == nil && !stop() {
		_ = conn.Close()
		err = ctx.Err()
	}
	switch {
	case err == nil:
		return &Host{client: ssh.NewClient(conn, chans, reqs), name: p.name}, nil
	case ctx.Err() != nil:
		err = fmt.Errorf("ssh to %s: %w", whom, ctx.Err())
	case fault != nil:
		err = fault
	default:
		err = noHandshake(at, whom, known, keys, err)
	}
	_ = raw.Close()
	return nil, err
}

func noConnection(ctx context.Context, at string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("ssh to %s: %w", at, ctx.Err())
	}
	next := "is its sshd running? ping it, and look at its console"
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return rpc.Errorf(rpc.ErrNotFound, "ssh to %s: no address is known of that name; give the host's IP address", at)
	case errors.Is(err, syscall.ECONNREFUSED):
		err = errors.New("connection refused")
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		err = errors.New("there is no way to it")
		next = "is it on, and in this network?"
	case isTimeout(err):
		err = fmt.Errorf("no answer within %.0f s", connectTimeout.Seconds())
		next = "is it on? is there a firewall before its port?"
	}
	return rpc.Errorf(rpc.ErrUnavailable, "ssh to %s: %w\n  %s", at, err, next)
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// noHandshake says why nobody was let in.
func noHandshake(at, whom string, known *keyring, keys *proofs, err error) error {
	switch text := err.Error(); {
	case strings.Contains(text, "no common algorithm for host key"):
		if len(known.known) > 0 {
			return known.changed(nil)
		}
		return rpc.Errorf(rpc.ErrUnsupported, "ssh to %s: it has no host key of a kind that is taken (ed25519, ecdsa, rsa)", at)
	case strings.Contains(text, "unable to authenticate"), strings.Contains(text, "too many authentication failures"):
		tried := "there was no key to try"
		if len(keys.told) > 0 {
			tried = "tried: " + strings.Join(keys.told, ", ")
		}
		return rpc.Errorf(rpc.ErrDenied, "%s is not let in by its sshd; %s\n  put your key there: ssh-copy-id %s, or name another one with --identity FILE", whom, tried, whom)
	case errors.Is(err, net.ErrClosed), strings.Contains(text, "use of closed network connection"):
		return rpc.Errorf(rpc.ErrUnavailable, "ssh to %s: it took the connection and did not speak in time", at)
	default:
		return rpc.Errorf(rpc.ErrUnavailable, "ssh to %s: %s", at, strings.TrimPrefix(strings.TrimPrefix(text, "ssh: "), "handshake failed: "))
	}
}

// mustBeRoot asks who we are there.
func (h *Host) mustBeRoot(ctx context.Context, user string) error {
	bounded, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	out, err := h.Run(bounded, nil, "id", "-u")
	if err != nil {
		return err
	}
	switch id := strings.TrimSpace(string(out)); {
	case id == "0":
		return nil
	case strings.ContainsFunc(id, func(r rune) bool { return r < '0' || r > '9' }) || id == "":
		return rpc.Errorf(rpc.ErrRefused, "the shell of %s on %s prints more than what is run there (%s); its profile must be silent when no terminal is there", user, h.name, tail(id))
	default:
		return rpc.Errorf(rpc.ErrDenied, "%s on %s is not root (uid %s), and only root can install there: root@%s", user, h.name, id, h.name)
	}
}
