package system

import (
	"context"
	"fmt"
	"io"
	"net"
	"path"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/lab/guest/shell"
	"github.com/homeiac/homelab/lab/guest/sshd"
)

// sshd is the SSH server's service, on every address of the guest.
func (o *OS) sshd(ctx context.Context, c *shell.Call) int {
	if len(c.Argv) > 1 && c.Argv[1] == "-t" {
		return 0
	}
	var keys []ssh.Signer
	for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
		b, err := o.FS().ReadFile("/etc/ssh/ssh_host_" + kind + "_key")
		if err != nil {
			continue
		}
		k, err := ssh.ParsePrivateKey(b)
		if err != nil {
			fmt.Fprintf(c.Stderr, "error loading host key /etc/ssh/ssh_host_%s_key: %v\n", kind, err)
			continue
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		fmt.Fprintln(c.Stderr, "sshd: no hostkeys available -- exiting.")
		return 1
	}
	srv := &sshd.Server{
		HostKeys: keys, Authorized: o.authorized, Run: o.login, Dial: o.Dial,
		Log: func(s string) { o.journal.add("ssh.service", "sshd", 800, s) },
	}
	addrs := o.Addresses()
	var listeners []net.Listener
	for _, a := range addrs {
		l, err := o.gate(ctx, sshd.Address(a.String(), o.m.Settings.SSHPort), o.m.Settings.SSHPort)
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			fmt.Fprintf(c.Stderr, "error: Bind to port 22 on %s failed: %v.\n", a, err)
			return 255
		}
		listeners = append(listeners, l)
	}
	Notify(ctx)
	if len(listeners) == 0 {
		<-ctx.Done() // nothing to listen on; as in life that is no error
		return 0
	}
	done := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { done <- srv.Serve(ctx, l) }()
	}
	code := 0
	for range listeners {
		if err := <-done; err != nil {
			fmt.Fprintf(c.Stderr, "error: %v\n", err)
			code = 255
		}
	}
	return code
}

// listenRetry waits for an address that a guest which has just died still
// holds; after two seconds it is an address conflict.
func (o *OS) listenRetry(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	deadline := time.Now().Add(2 * time.Second)
	for {
		l, err := lc.Listen(ctx, "tcp", addr)
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return l, err
		}
		t := time.NewTimer(50 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}

func (o *OS) authorized(user string) []ssh.PublicKey {
	u, ok := shell.LookupUser(o.tree, user)
	if !ok {
		return nil
	}
	b, err := o.FS().ReadFile(path.Join(u.Home, ".ssh/authorized_keys"))
	if err != nil {
		return nil
	}
	var out []ssh.PublicKey
	for len(b) > 0 {
		k, _, _, rest, err := ssh.ParseAuthorizedKey(b)
		if err != nil {
			break
		}
		out, b = append(out, k), rest
	}
	return out
}

// login runs one command of an SSH session.
func (o *OS) login(ctx context.Context, user, command string, stdin io.Reader, stdout, stderr io.Writer) int {
	u, ok := shell.LookupUser(o.tree, user)
	if !ok {
		return 255
	}
	p := shell.Login(u)
	p.Stdin, p.Stdout, p.Stderr = stdin, stdout, stderr
	if command == "" {
		return o.Shell.Exec(ctx, p, []string{"sh"})
	}
	p.Args = []string{"bash"}
	return o.Shell.Run(ctx, p, command)
}
