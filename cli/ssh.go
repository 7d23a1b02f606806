package cli

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/homeiac/homelab/cli/onhost"
	"github.com/homeiac/homelab/cli/remote"
	"github.com/homeiac/homelab/internal/rpc"
)

// sshFlags are the flags of commands that reach hosts as root.
type sshFlags struct{ hostKey, identity, config string }

func (f *sshFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.hostKey, "host-key", "", "accept an unknown host key with this fingerprint (SHA256:...)")
	f.addLogin(cmd)
}

// addLogin adds those flags that are the same for several hosts.
func (f *sshFlags) addLogin(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.identity, "identity", "", "private key file for SSH (default the SSH agent's keys and those of ~/.ssh)")
	cmd.Flags().StringVar(&f.config, "ssh-config", "", "SSH configuration file, or none (default ~/.ssh/config)")
	_ = cmd.MarkFlagFilename("identity")
	_ = cmd.MarkFlagFilename("ssh-config")
}

// sshOptions are how hosts are reached: questions are asked on a terminal only.
func (a *app) sshOptions(f sshFlags) remote.Options {
	o := remote.Options{HostKey: f.hostKey, Identity: f.identity, Config: f.config}
	if !a.inIsTerm {
		return o
	}
	o.Confirm = func(ctx context.Context, question string) (bool, error) { return a.yesNo(ctx, question+" [y/N] ") }
	o.Secret = a.secret()
	return o
}

// lookAt opens the shell of a host of the fleet and looks what of ours is there. Another
// host of the fleet is refused: what is done to it would be told of the one that is meant.
func (a *app) lookAt(ctx context.Context, name, target string, flags sshFlags) (*onhost.Host, error) {
	t, err := remote.ParseTarget(target)
	if err != nil {
		return nil, err
	}
	on, err := onhost.Open(ctx, func(ctx context.Context) (*remote.Host, error) { return remote.Dial(ctx, t, a.sshOptions(flags)) })
	if err == nil && on.Name != "" && on.Name != name {
		_ = on.Close()
		return nil, rpc.Errorf(rpc.ErrRefused, "%s is not %s: %s on it says that it is %s; say where %s is with --ssh root@HOST", target, name, onhost.AgentConfig, on.Name, name)
	}
	return on, err
}

// secret asks for what is not shown; nil when there is no terminal.
func (a *app) secret() func(ctx context.Context, question string) (string, error) {
	in, ok := a.in.(*os.File)
	if !ok || !a.inIsTerm {
		return nil
	}
	return func(ctx context.Context, question string) (string, error) {
		// What is not waited for any more does not put it back: after Ctrl-C people would
		// type unseen in their shell.
		fd := int(in.Fd())
		was, err := term.GetState(fd)
		if err != nil {
			return "", err
		}
		defer func() { _ = term.Restore(fd, was) }()
		fmt.Fprint(a.errw, question)
		defer fmt.Fprintln(a.errw)
		return patiently(ctx, func() (string, error) {
			text, err := term.ReadPassword(fd)
			return string(text), err
		})
	}
}

// yesNo asks a question that only a clear yes answers.
func (a *app) yesNo(ctx context.Context, question string) (bool, error) {
	fmt.Fprint(a.errw, question)
	answer, err := a.readLine(ctx)
	return strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes"), err
}
