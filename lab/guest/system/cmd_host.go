package system

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/homeiac/homelab/lab/guest/shell"
)

func (o *OS) cmdHostname(_ context.Context, c *shell.Call) int {
	switch {
	case len(c.Argv) == 1:
		c.Printf("%s\n", o.Hostname())
	case c.Argv[1] == "-I" || c.Argv[1] == "--all-ip-addresses":
		var out []string
		o.mu.Lock()
		for _, i := range o.ifaces {
			for _, a := range i.addrs {
				out = append(out, a.Addr().String())
			}
		}
		o.mu.Unlock()
		c.Printf("%s \n", strings.Join(out, " "))
	case c.Argv[1] == "-s", c.Argv[1] == "-f", c.Argv[1] == "--fqdn":
		c.Printf("%s\n", o.Hostname())
	case strings.HasPrefix(c.Argv[1], "-"):
		return c.Refuse("option " + c.Argv[1])
	case c.User.UID != 0:
		return c.Fail("you must be root to change the host name")
	default:
		if err := o.SetHostname(c.Argv[1], false); err != nil {
			return c.Fail("%v", err)
		}
	}
	return 0
}

func (o *OS) hostnamectl(_ context.Context, c *shell.Call) int {
	args := c.Argv[1:]
	switch {
	case len(args) == 2 && (args[0] == "set-hostname" || args[0] == "hostname"):
		if c.User.UID != 0 {
			return c.Fail("Could not set static hostname: Interactive authentication required.")
		}
		if err := o.SetHostname(args[1], true); err != nil {
			return c.Fail("%v", err)
		}
	case len(args) == 1 && args[0] == "hostname", len(args) == 1 && args[0] == "--static":
		c.Printf("%s\n", o.Hostname())
	case len(args) == 0, len(args) == 1 && args[0] == "status":
		c.Printf(" Static hostname: %s\n  Virtualization: kvm\nOperating System: Ubuntu 24.04.3 LTS\n          Kernel: Linux %s\n", o.Hostname(), kernelRelease)
	default:
		return c.Refuse(strings.Join(args, " "))
	}
	return 0
}

func uname(_ context.Context, c *shell.Call) int {
	parts := map[byte]string{'s': "Linux", 'n': "", 'r': kernelRelease, 'm': "x86_64", 'v': "#89-Ubuntu SMP PREEMPT_DYNAMIC", 'p': "x86_64", 'o': "GNU/Linux", 'i': "x86_64"}
	if b, err := c.FS().ReadFile("/proc/sys/kernel/hostname"); err == nil {
		parts['n'] = strings.TrimSpace(string(b))
	}
	letters := strings.TrimLeft(strings.Join(c.Argv[1:], ""), "-")
	letters = strings.ReplaceAll(letters, "-", "")
	if letters == "" {
		letters = "s"
	}
	if letters == "a" {
		letters = "snrvmo"
	}
	var out []string
	for i := range len(letters) {
		p, ok := parts[letters[i]]
		if !ok {
			return c.Refuse("option -" + string(letters[i]))
		}
		out = append(out, p)
	}
	c.Printf("%s\n", strings.Join(out, " "))
	return 0
}

func (o *OS) cmdUptime(_ context.Context, c *shell.Call) int {
	up := o.Uptime()
	switch {
	case len(c.Argv) == 1:
		c.Printf(" up %d min,  0 user,  load average: 0.00, 0.01, 0.00\n", int(up.Minutes()))
	case c.Argv[1] == "-s":
		c.Printf("%s\n", o.booted.UTC().Format("2006-01-02 15:04:05"))
	case c.Argv[1] == "-p":
		c.Printf("up %d minutes\n", int(up.Minutes()))
	default:
		return c.Refuse("option " + c.Argv[1])
	}
	return 0
}

func (o *OS) nproc(_ context.Context, c *shell.Call) int {
	c.Printf("%d\n", max(o.m.CPUs, 1))
	return 0
}

func (o *OS) free(_ context.Context, c *shell.Call) int {
	unit := int64(1024)
	for _, a := range c.Argv[1:] {
		switch a {
		case "-b":
			unit = 1
		case "-k":
		case "-m":
			unit = 1 << 20
		case "-g":
			unit = 1 << 30
		default:
			return c.Refuse("option " + a)
		}
	}
	m := o.m.Memory
	c.Printf("               total        used        free      shared  buff/cache   available\n")
	c.Printf("Mem:    %12d%12d%12d%12d%12d%12d\n", m/unit, m/5/unit, m*6/10/unit, 0, m/5/unit, m*8/10/unit)
	c.Printf("Swap:   %12d%12d%12d\n", 0, 0, 0)
	return 0
}

func (o *OS) df(_ context.Context, c *shell.Call) int {
	for _, a := range c.Argv[1:] {
		if strings.HasPrefix(a, "-") && strings.Trim(a, "-hkPBTm1") != "" && !strings.HasPrefix(a, "--output") {
			return c.Refuse("option " + a)
		}
	}
	const size, used = 50 << 20, 3 << 20 // KiB
	c.Printf("Filesystem     1K-blocks     Used Available Use%% Mounted on\n/dev/sda1       %9d %8d %9d   %d%% /\n", size, used, size-used, used*100/size)
	return 0
}

func (o *OS) power(r Reason) shell.Tool {
	return func(_ context.Context, c *shell.Call) int {
		if c.User.UID != 0 {
			return c.Fail("must be superuser.")
		}
		o.Shutdown(r)
		return 0
	}
}

func (o *OS) cmdShutdown(ctx context.Context, c *shell.Call) int {
	r := PowerOff
	for _, a := range c.Argv[1:] {
		switch a {
		case "-r":
			r = Reboot
		case "-h", "-P", "now", "+0":
		default:
			return c.Refuse("argument " + a)
		}
	}
	return o.power(r)(ctx, c)
}

// sudo runs a command as another user. A user without a NOPASSWD rule is
// refused: nobody could type a password here.
func (o *OS) sudo(ctx context.Context, c *shell.Call) int {
	args := c.Argv[1:]
	target, keep, login := shell.Root, false, false
	p := c.Proc
	set := map[string]string{}
	for len(args) > 0 && strings.HasPrefix(args[0], "-") && args[0] != "--" {
		switch a := args[0]; {
		case a == "-u" && len(args) > 1, strings.HasPrefix(a, "--user="):
			name := strings.TrimPrefix(a, "--user=")
			if name == a {
				name, args = args[1], args[1:]
			}
			u, ok := shell.LookupUser(o.tree, name)
			if !ok {
				return c.Fail("unknown user %s", name)
			}
			target = u
		case strings.Trim(a, "-nEHiSkbs") == "" && !strings.HasPrefix(a, "--"):
			keep = keep || strings.Contains(a, "E")
			login = login || strings.Contains(a, "i") || strings.Contains(a, "s")
		case a == "--preserve-env", strings.HasPrefix(a, "--preserve-env="):
			keep = true
		case a == "--non-interactive", a == "--login":
			login = login || a == "--login"
		default:
			return c.Refuse("option " + a)
		}
		args = args[1:]
	}
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if !o.maySudo(c.User) {
		return c.Fail("a password is required")
	}
	for len(args) > 0 && strings.Contains(args[0], "=") && !strings.HasPrefix(args[0], "/") {
		k, v, _ := strings.Cut(args[0], "=")
		set[k] = v
		args = args[1:]
	}
	env := shell.Login(target).Env
	if keep {
		for k, v := range c.Env {
			if k != "HOME" && k != "PATH" && k != "USER" && k != "LOGNAME" {
				env[k] = v
			}
		}
	}
	for k, v := range set {
		env[k] = v
	}
	env["SUDO_USER"], env["SUDO_UID"], env["SUDO_GID"] = c.User.Name, strconv.Itoa(c.User.UID), strconv.Itoa(c.User.GID)
	p.Env, p.User = env, target
	if login {
		p.Dir = target.Home
		if len(args) == 0 {
			args = []string{"sh"}
		} else {
			args = append([]string{"sh", "-c"}, strings.Join(args, " "))
		}
	}
	if len(args) == 0 {
		fmt.Fprintln(c.Stderr, "usage: sudo -h | -K | -k | -V")
		return 1
	}
	if _, err := o.Shell.Find(p, args[0]); err != nil {
		return c.Fail("%s: command not found", args[0])
	}
	return o.Shell.Exec(ctx, p, args)
}
