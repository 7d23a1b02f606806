package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/homeiac/homelab/cli/remote/remotetest"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/sshexec/sshtest"
)

// person is somebody at a machine of their own, and a host.
type person struct {
	*testing.T
	host    *remotetest.Server
	home    string
	options Options
	asked   []string
}

func newPerson(t *testing.T, keys ...ssh.Signer) *person {
	p := &person{T: t, host: remotetest.Start(t, keys...), home: t.TempDir()}
	t.Setenv("HOME", p.home)
	t.Setenv("SSH_AUTH_SOCK", "")
	p.options = Options{Identity: p.host.Identity(t, ""), KnownHosts: []string{filepath.Join(p.home, ".ssh", "known_hosts")}, Config: NoConfig}
	return p
}

func (p *person) target() Target {
	return Target{User: "root", Address: "127.0.0.1", Port: p.host.Port()}
}

// answering sits at a terminal and says yes or no to an unknown key.
func (p *person) answering(yes bool) {
	p.options.Confirm = func(_ context.Context, question string) (bool, error) {
		p.asked = append(p.asked, question)
		return yes, nil
	}
}

func (p *person) dial() (*Host, error) {
	p.Helper()
	h, err := Dial(p.Context(), p.target(), p.options)
	if err == nil {
		p.Cleanup(func() { _ = h.Close() })
	}
	return h, err
}

func (p *person) mustDial() *Host {
	p.Helper()
	h, err := p.dial()
	if err != nil {
		p.Fatal(err)
	}
	return h
}

// know writes the host's keys into known_hosts.
func (p *person) know(keys ...ssh.PublicKey) {
	p.Helper()
	var text strings.Builder
	for _, k := range keys {
		text.WriteString(knownhosts.Line([]string{p.host.At()}, k) + "\n")
	}
	p.write(p.options.KnownHosts[0], text.String())
}

func (p *person) write(file, text string) {
	p.Helper()
	err := os.MkdirAll(filepath.Dir(file), 0o700)
	if err == nil {
		err = os.WriteFile(file, []byte(text), 0o600)
	}
	if err != nil {
		p.Fatal(err)
	}
}

func (p *person) known() string {
	p.Helper()
	data, err := os.ReadFile(p.options.KnownHosts[0])
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		p.Fatal(err)
	}
	return string(data)
}

// refused checks that an error is of a kind and says these words, and that nobody
// tried to log in.
func (p *person) refused(err error, kind error, words ...string) {
	p.Helper()
	if !errors.Is(err, kind) {
		p.Errorf("%v, want %v", err, kind)
	}
	for _, w := range words {
		if err != nil && !strings.Contains(err.Error(), w) {
			p.Errorf("%q does not say %q", err, w)
		}
	}
	p.host.Lock()
	defer p.host.Unlock()
	if len(p.host.Logins) > 0 {
		p.Errorf("it was logged in as %v", p.host.Logins)
	}
}

func TestAnUnknownKeyIsAskedAboutOnceAndRemembered(t *testing.T) {
	p := newPerson(t)
	p.answering(true)
	print := ssh.FingerprintSHA256(p.host.HostKey())
	p.write(p.options.KnownHosts[0], "no line of a key\nother.example ssh-unheard-of AAAA") // as it may be; no newline at its end
	p.mustDial()
	if len(p.asked) != 1 || !strings.Contains(p.asked[0], print) || !strings.Contains(p.asked[0], p.host.At()) {
		t.Fatal(p.asked)
	}
	if want := "\n" + knownhosts.Line([]string{p.host.At()}, p.host.HostKey()) + "\n"; !strings.HasSuffix(p.known(), want) {
		t.Errorf("known_hosts is %q", p.known())
	}
	p.options.Confirm = nil
	p.mustDial()
}

func TestAnUnknownKeyIsRefusedWithoutATerminalOrAYes(t *testing.T) {
	p := newPerson(t)
	_, err := p.dial()
	p.refused(err, rpc.ErrDenied, "is not known", "no terminal", "--host-key "+ssh.FingerprintSHA256(p.host.HostKey()), "ssh_host_ed25519_key.pub")
	p.answering(false)
	_, err = p.dial()
	p.refused(err, rpc.ErrDenied, "not accepted")
	if p.known() != "" {
		t.Error(p.known())
	}
}

func TestAFingerprintThatIsGivenAcceptsThatKeyOnly(t *testing.T) {
	ed, rsa := sshtest.NewKey(t), sshtest.NewRSAKey(t)
	other := ssh.FingerprintSHA256(sshtest.NewKey(t).PublicKey())
	p := newPerson(t, ed, rsa)
	p.answering(true) // --host-key is the stricter word
	p.options.HostKey = other
	_, err := p.dial()
	p.refused(err, rpc.ErrDenied, "not "+other)
	p.options.HostKey = "MD5:00"
	_, err = p.dial()
	p.refused(err, rpc.ErrInvalid)
	if len(p.asked) > 0 || p.known() != "" {
		t.Error(p.asked, p.known())
	}
	// Any of the host's own will do; ssh would show the other one first.
	p.options.HostKey = ssh.FingerprintSHA256(rsa.PublicKey())
	p.mustDial()
	if !strings.Contains(p.known(), "ssh-rsa") {
		t.Error(p.known())
	}
	// Of a known host it must be that of the known key.
	p.host.Lock()
	p.host.Logins = nil
	p.host.Unlock()
	p.options.HostKey = other
	_, err = p.dial()
	p.refused(err, rpc.ErrDenied, "as --host-key says")
}

func TestAChangedKeyIsRefusedWhateverIsSaid(t *testing.T) {
	for _, was := range []ssh.PublicKey{sshtest.NewKey(t).PublicKey(), sshtest.NewRSAKey(t).PublicKey()} {
		t.Run(was.Type(), func(t *testing.T) {
			p := newPerson(t)
			p.answering(true)
			p.know(was)
			p.options.HostKey = ssh.FingerprintSHA256(p.host.HostKey())
			before := p.known()
			_, err := p.dial()
			p.refused(err, rpc.ErrDenied, "CHANGED", "known_hosts:1", ssh.FingerprintSHA256(was), "ssh-keygen -lf /etc/ssh/ssh_host_",
				fmt.Sprintf("ssh-keygen -f %s -R '[127.0.0.1]:%d'", p.options.KnownHosts[0], p.host.Port()))
			if len(p.asked) > 0 || p.known() != before {
				t.Error(p.asked, p.known())
			}
		})
	}
}

func TestAHostWithSeveralKeysIsKnownByAnyOfThem(t *testing.T) {
	ed, rsa := sshtest.NewKey(t), sshtest.NewRSAKey(t)
	p := newPerson(t, ed, rsa)
	p.know(rsa.PublicKey())
	p.mustDial()
	// A line with its name hashed, and one that says it is revoked.
	p.write(p.options.KnownHosts[0], knownhosts.HashHostname(knownhosts.Normalize(p.host.At()))+" "+string(ssh.MarshalAuthorizedKey(ed.PublicKey())))
	p.mustDial()
	p.host.Lock()
	p.host.Logins = nil
	p.host.Unlock()
	p.write(p.options.KnownHosts[0], "@revoked * "+string(ssh.MarshalAuthorizedKey(ed.PublicKey())))
	_, err := p.dial()
	p.refused(err, rpc.ErrDenied, "revoked")
}

func TestOnlyRootIsLetOn(t *testing.T) {
	p := newPerson(t)
	p.know(p.host.HostKey())
	p.host.UID = "1000"
	if _, err := p.dial(); !errors.Is(err, rpc.ErrDenied) || !strings.Contains(err.Error(), "is not root (uid 1000)") {
		t.Error(err)
	}
	p.host.Lock()
	p.host.UID = "Welcome to pve1!\n0"
	p.host.Unlock()
	if _, err := p.dial(); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "Welcome to pve1!") {
		t.Error(err)
	}
}

func TestWhoIsLetIn(t *testing.T) {
	p := newPerson(t)
	p.know(p.host.HostKey())
	good := p.options.Identity
	var secrets []string
	answer := func(texts ...string) {
		secrets = nil
		p.options.Secret = func(_ context.Context, question string) (string, error) {
			secrets = append(secrets, question)
			if len(secrets) > len(texts) {
				return "", errors.New("asked too often")
			}
			return texts[len(secrets)-1], nil
		}
	}
	t.Run("a key of the SSH agent", func(t *testing.T) {
		data, err := os.ReadFile(good)
		if err != nil {
			t.Fatal(err)
		}
		key, err := ssh.ParseRawPrivateKey(data)
		if err != nil {
			t.Fatal(err)
		}
		ring := agent.NewKeyring()
		if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
			t.Fatal(err)
		}
		dir, err := os.MkdirTemp("", "hl") //nolint:usetesting // a socket's path must be short
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		l, err := net.Listen("unix", filepath.Join(dir, "a"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _ = agent.ServeAgent(ring, c) }()
			}
		}()
		t.Setenv("SSH_AUTH_SOCK", l.Addr().String())
		p.options.Identity = ""
		p.mustDial()
	})
	t.Run("a key with a passphrase", func(t *testing.T) {
		p.options.Identity = p.host.Identity(t, "sesame")
		answer("wrong", "sesame")
		p.mustDial()
		if want := "Passphrase of " + p.options.Identity + ": "; !slices.Equal(secrets, []string{want, want}) {
			t.Error(secrets)
		}
		p.options.Secret = nil
		if _, err := p.dial(); err == nil || !strings.Contains(err.Error(), "ssh-add") {
			t.Error(err)
		}
	})
	p.host.Lock()
	p.host.Authorized = nil
	p.host.Unlock()
	p.options.Identity = good
	t.Run("nobody, without a terminal", func(t *testing.T) {
		_, err := p.dial()
		if !errors.Is(err, rpc.ErrDenied) || !strings.Contains(err.Error(), good) || !strings.Contains(err.Error(), "ssh-copy-id root@127.0.0.1") {
			t.Error(err)
		}
	})
	t.Run("a password, when no key is good", func(t *testing.T) {
		p.host.Lock()
		p.host.Password = "s3cret"
		p.host.Unlock()
		answer("wrong", "s3cret")
		p.mustDial()
		if len(secrets) != 2 || secrets[0] != "Password of root@127.0.0.1: " {
			t.Error(secrets)
		}
		answer("1", "2", "3", "4", "5", "6")
		if _, err := p.dial(); !errors.Is(err, rpc.ErrDenied) || len(secrets) != attempts || strings.Contains(err.Error(), "s3cret") {
			t.Error(err, secrets)
		}
	})
}

func TestTheSSHConfigurationSaysWhereAHostIs(t *testing.T) {
	p := newPerson(t)
	known := filepath.Join(p.home, "known")
	p.options.KnownHosts = []string{known}
	p.know(p.host.HostKey())
	config := fmt.Sprintf("Host pve1\n  HostName 127.0.0.1\n  Port %d\n  User toor\n  UserKnownHostsFile ~/known\n  IdentityFile %s\n", p.host.Port(), p.options.Identity)
	p.options = Options{}
	p.write(filepath.Join(p.home, ".ssh", "config"), config)
	h, err := Dial(t.Context(), Target{Address: "pve1"}, p.options)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = h.Close() }()
	if h.Name() != "127.0.0.1" || h.IP().String() != "127.0.0.1" || !slices.Contains(p.host.Logins, "toor") {
		t.Error(h.Name(), h.IP(), p.host.Logins)
	}
	p.write(filepath.Join(p.home, ".ssh", "config"), config+"Host *\n  ProxyJump bastion\n")
	if _, err := Dial(t.Context(), Target{Address: "pve1"}, p.options); !errors.Is(err, rpc.ErrUnsupported) || !strings.Contains(err.Error(), "ProxyJump bastion") {
		t.Error(err)
	}
}

func TestTargets(t *testing.T) {
	for text, want := range map[string]Target{
		"root@192.168.4.11":      {"root", "192.168.4.11", 0},
		"root@192.168.4.11:2222": {"root", "192.168.4.11", 2222},
		"pve1":                   {"", "pve1", 0},
		"root@pve1.lan:22":       {"root", "pve1.lan", 22},
		"root@fd00::1":           {"root", "fd00::1", 0},
		"root@[fd00::1]":         {"root", "fd00::1", 0},
		"root@[fd00::1]:2222":    {"root", "fd00::1", 2222},
	} {
		got, err := ParseTarget(text)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", text, err, diff)
		}
	}
	for _, text := range []string{"", "root@", "@pve1", "root@pve1:0", "root@pve1:x", "root@pve1:70000", "-oProxyCommand=x", "root@a b", "root@a;id", "root@$(id)", "root@pve1/x", "root@a\n"} {
		if got, err := ParseTarget(text); !errors.Is(err, rpc.ErrInvalid) {
			t.Errorf("%q is %+v, %v", text, got, err)
		}
	}
}

func TestAProgramGetsItsArgumentsAsTheyAre(t *testing.T) {
	p := newPerson(t)
	p.know(p.host.HostKey())
	var got []string
	p.host.Run = func(c remotetest.Command) int {
		got = c.Argv
		in, _ := io.ReadAll(c.Stdin)
		_, _ = fmt.Fprintf(c.Stdout, "heard %s", in)
		_, _ = fmt.Fprint(c.Stderr, "one\ntwo\n\nit is broken\n")
		if c.Argv[0] == "false" {
			return 3
		}
		return 0
	}
	h := p.mustDial()
	argv := []string{"printf", "it's $(id) `id` \"x\"", "", "-n", "a\nb"}
	out, err := h.Run(t.Context(), strings.NewReader("secret"), argv...)
	if err != nil || string(out) != "heard secret" || !slices.Equal(got, argv) {
		t.Errorf("%q %v %q", out, err, got)
	}
	_, err = h.Run(t.Context(), strings.NewReader("secret"), "false", "a", "b")
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 3 || !strings.Contains(err.Error(), "false a: exit 3: ") || !strings.HasSuffix(err.Error(), "it is broken") || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
}

func TestAProgramThatHangsIsGivenUp(t *testing.T) {
	p := newPerson(t)
	p.know(p.host.HostKey())
	begun, over := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(over) })
	p.host.Run = func(remotetest.Command) int { close(begun); <-over; return 0 }
	h := p.mustDial()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	if _, err := h.Run(ctx, nil, "sleep", "1000"); !errors.Is(err, rpc.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// really plays programs by running them here.
func really(c remotetest.Command) int {
	cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

func TestAFileIsPutWholeOrNotAtAll(t *testing.T) {
	p := newPerson(t)
	p.know(p.host.HostKey())
	p.host.Run = really
	dir := t.TempDir()
	file := filepath.Join(dir, "it's a file")
	put := func(text string, size int64) error {
		return p.mustDial().Put(t.Context(), file, 0o640, strings.NewReader(text), size)
	}
	whole := func(want string) {
		t.Helper()
		data, err := os.ReadFile(file)
		st, serr := os.Stat(file)
		left, gerr := filepath.Glob(filepath.Join(dir, ".hlctl*"))
		if err := errors.Join(err, serr, gerr); err != nil || string(data) != want || st.Mode().Perm() != 0o640 || len(left) > 0 {
			t.Errorf("%d bytes, %v, %v, left %v", len(data), st, err, left)
		}
	}
	if err := put("first", 5); err != nil {
		t.Fatal(err)
	}
	whole("first")
	if err := put("shorter than it was", 100); err == nil || !strings.Contains(err.Error(), "only 19 of 100 bytes") {
		t.Error(err)
	}
	whole("first")
	// The network breaks in the middle.
	h, half := p.mustDial(), bytes.Repeat([]byte("x"), 1<<20)
	ended := make(chan struct{})
	p.host.Lock()
	p.host.Run = func(c remotetest.Command) int { defer close(ended); return really(c) }
	p.host.Unlock()
	broken := io.MultiReader(bytes.NewReader(half), readFunc(func([]byte) (int, error) { p.host.Cut(); return 0, io.ErrUnexpectedEOF }))
	if err := h.Put(t.Context(), file, 0o640, broken, 2<<20); err == nil {
		t.Error("it was put")
	}
	<-ended
	whole("first")
	p.host.Lock()
	p.host.Run = really
	p.host.Unlock()
	if err := put("second", 6); err != nil {
		t.Fatal(err)
	}
	whole("second")
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(b []byte) (int, error) { return f(b) }

func TestAHostThatSaysNothingDoesNotHoldUsUp(t *testing.T) {
	p := newPerson(t)
	p.host.Mute = true
	ctx, cancel := context.WithCancel(t.Context())
	go cancel()
	if _, err := Dial(ctx, p.target(), p.options); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	p.host.Stop()
	if _, err := p.dial(); !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "connection refused") {
		t.Error(err)
	}
}

func TestAnErrorHoldsNothingThatATerminalObeys(t *testing.T) {
	err := &ExitError{Program: "dpkg -i", Code: 1, Stderr: "gone\n\nfirst\nzweitens: für\x1b]0;x\a\n\xff\u202e\tlast\n"}
	if got, want := err.Error(), "dpkg -i: exit 1: first | zweitens: für?]0;x? | ???last"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
