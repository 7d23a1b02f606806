package system

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/lab/guest/shell"
	"github.com/homeiac/homelab/lab/guest/sshd"

	"io"
)

func (o *OS) apt(_ context.Context, c *shell.Call) int {
	var args []string
	for i := 1; i < len(c.Argv); i++ {
		switch a := c.Argv[i]; {
		case a == "-o" || a == "-t":
			i++
		case strings.HasPrefix(a, "-"):
		default:
			args = append(args, a)
		}
	}
	if len(args) == 0 {
		return c.Refuse("no command")
	}
	if c.User.UID != 0 {
		fmt.Fprintln(c.Stderr, "E: Could not open lock file /var/lib/dpkg/lock-frontend - open (13: Permission denied)\nE: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), are you root?")
		return 100
	}
	switch args[0] {
	case "update", "upgrade", "dist-upgrade", "autoremove", "clean":
		c.Printf("Reading package lists...\n")
	case "install":
		for _, p := range args[1:] {
			name, _, _ := strings.Cut(p, "=")
			if err := o.installPackage(name); err != nil {
				fmt.Fprintln(c.Stderr, "E: "+err.Error())
				return 100
			}
			c.Printf("Setting up %s ...\n", name)
		}
	default:
		return c.Refuse("command " + args[0])
	}
	return 0
}

func (o *OS) dpkg(_ context.Context, c *shell.Call) int {
	names := slices.DeleteFunc(slices.Clone(c.Argv[1:]), func(a string) bool { return strings.HasPrefix(a, "-") })
	if !slices.ContainsFunc(c.Argv[1:], func(a string) bool { return a == "-s" || a == "-W" || a == "--status" || a == "-l" }) {
		return c.Refuse("anything but -s")
	}
	b, err := o.FS().ReadFile("/var/lib/dpkg/status")
	if err != nil {
		b = nil
	}
	for _, n := range names {
		if !strings.Contains(string(b), "Package: "+n+"\n") {
			fmt.Fprintf(c.Stderr, "dpkg-query: package '%s' is not installed and no information is available\n", n)
			return 1
		}
		c.Printf("Package: %s\nStatus: install ok installed\n", n)
	}
	return 0
}

func (o *OS) modprobe(_ context.Context, c *shell.Call) int {
	if c.User.UID != 0 {
		return c.Fail("ERROR: could not insert module: Operation not permitted")
	}
	for _, m := range c.Argv[1:] {
		if strings.HasPrefix(m, "-") {
			continue
		}
		if err := o.loadModule(m); err != nil {
			return c.Fail("FATAL: %v", err)
		}
	}
	return 0
}

// modules are those the lab's kernel has.
var modules = []string{
	"br_netfilter", "overlay", "ip_tables", "ip6_tables", "nf_conntrack", "ip_vs", "ip_vs_rr", "ip_vs_wrr", "ip_vs_sh",
	"vxlan", "wireguard", "iscsi_tcp", "nfs", "dm_crypt", "xt_comment", "iptable_nat", "iptable_filter", "veth", "dummy",
}

func (o *OS) loadModule(name string) error {
	name = strings.ReplaceAll(name, "-", "_")
	if !slices.Contains(modules, name) {
		return fmt.Errorf("Module %s not found in directory /lib/modules/%s", name, kernelRelease)
	}
	b, err := o.FS().ReadFile("/proc/modules")
	if err != nil {
		return err
	}
	if strings.Contains(string(b), name+" ") {
		return nil
	}
	if name == "br_netfilter" {
		for _, k := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"} {
			if err := o.FS().Put("/proc/sys/net/bridge/"+k, []byte("1\n"), 0o644); err != nil {
				return err
			}
		}
	}
	return o.FS().Put("/proc/modules", append(b, name+" 16384 0 - Live 0x0\n"...), 0o444)
}

func (o *OS) lsmod(_ context.Context, c *shell.Call) int {
	b, err := o.FS().ReadFile("/proc/modules")
	if err != nil {
		return c.Fail("%v", err)
	}
	c.Printf("Module                  Size  Used by\n")
	for l := range strings.Lines(string(b)) {
		name, _, _ := strings.Cut(l, " ")
		c.Printf("%-22s 16384  0\n", name)
	}
	return 0
}

func (o *OS) loadModuleFiles() {
	es, err := o.FS().ReadDir("/etc/modules-load.d")
	if err != nil {
		return
	}
	for _, e := range es {
		b, err := o.FS().ReadFile("/etc/modules-load.d/" + e.Name())
		if err != nil {
			continue
		}
		for l := range strings.Lines(string(b)) {
			if l = strings.TrimSpace(l); l != "" && l[0] != '#' {
				if err := o.loadModule(l); err != nil {
					o.Console("systemd-modules-load: " + err.Error())
				}
			}
		}
	}
}

func sysctlPath(key string) string { return "/proc/sys/" + strings.ReplaceAll(key, ".", "/") }

func (o *OS) setSysctl(line string) error {
	k, v, ok := strings.Cut(line, "=")
	k = strings.TrimPrefix(strings.TrimSpace(k), "-")
	if !ok || k == "" || strings.Contains(k, "..") {
		return fmt.Errorf("cannot parse %q", line)
	}
	if strings.HasPrefix(k, "net.bridge.") {
		if _, err := o.FS().Stat("/proc/sys/net/bridge"); err != nil {
			return fmt.Errorf("cannot stat %s: No such file or directory", sysctlPath(k))
		}
	}
	return o.FS().Put(sysctlPath(k), []byte(strings.TrimSpace(v)+"\n"), 0o644)
}

func (o *OS) applySysctlFiles() {
	es, err := o.FS().ReadDir("/etc/sysctl.d")
	if err != nil {
		return
	}
	for _, e := range es {
		if err := o.applySysctlFile("/etc/sysctl.d/"+e.Name(), nil); err != nil {
			o.Console("systemd-sysctl: " + err.Error())
		}
	}
}

func (o *OS) applySysctlFile(name string, c *shell.Call) error {
	b, err := o.FS().ReadFile(name)
	if err != nil {
		return err
	}
	var errs []error
	for l := range strings.Lines(string(b)) {
		l = strings.TrimSpace(l)
		if l == "" || l[0] == '#' || l[0] == ';' {
			continue
		}
		err := o.setSysctl(l)
		errs = append(errs, err)
		if c != nil && err == nil {
			k, v, _ := strings.Cut(l, "=")
			c.Printf("%s = %s\n", strings.TrimSpace(k), strings.TrimSpace(v))
		}
	}
	return errors.Join(errs...)
}

func (o *OS) sysctl(_ context.Context, c *shell.Call) int {
	write, system, quiet, only, load := false, false, false, false, false
	var args []string
	for _, a := range c.Argv[1:] {
		switch a {
		case "-w", "--write":
			write = true
		case "--system":
			system = true
		case "-p", "--load":
			load = true
		case "-q", "--quiet":
			quiet = true
		case "-n", "--values":
			only = true
		case "-e":
		default:
			if strings.HasPrefix(a, "-") {
				return c.Refuse("option " + a)
			}
			args = append(args, a)
		}
	}
	if (write || system || load) && c.User.UID != 0 {
		return c.Fail("permission denied")
	}
	show := c
	if quiet {
		show = nil
	}
	switch {
	case system:
		es, err := o.FS().ReadDir("/etc/sysctl.d")
		if err != nil {
			return c.Fail("%v", err)
		}
		code := 0
		for _, e := range es {
			if !quiet {
				c.Printf("* Applying /etc/sysctl.d/%s ...\n", e.Name())
			}
			if err := o.applySysctlFile("/etc/sysctl.d/"+e.Name(), show); err != nil {
				code = c.Fail("%v", err)
			}
		}
		return code
	case load:
		if len(args) == 0 {
			args = []string{"/etc/sysctl.conf"}
		}
		for _, f := range args {
			if err := o.applySysctlFile(c.Abs(f), show); err != nil {
				return c.Fail("%v", err)
			}
		}
		return 0
	}
	code := 0
	for _, a := range args {
		if strings.Contains(a, "=") {
			if c.User.UID != 0 {
				return c.Fail("permission denied on key \"%s\"", a)
			}
			if err := o.setSysctl(a); err != nil {
				code = c.Fail("%v", err)
				continue
			}
			if !quiet {
				c.Printf("%s\n", strings.Replace(a, "=", " = ", 1))
			}
			continue
		}
		b, err := o.FS().ReadFile(sysctlPath(a))
		if err != nil || strings.Contains(a, "..") {
			code = c.Fail("cannot stat %s: No such file or directory", sysctlPath(a))
			continue
		}
		if only {
			c.Printf("%s", b)
		} else {
			c.Printf("%s = %s", a, b)
		}
	}
	return code
}

func swapoff(_ context.Context, c *shell.Call) int {
	if c.User.UID != 0 {
		return c.Fail("Not superuser.")
	}
	return 0
}

func (o *OS) useradd(_ context.Context, c *shell.Call) int {
	if len(c.Argv) != 2 && (len(c.Argv) != 3 || c.Argv[1] != "-m") {
		return c.Refuse("anything but useradd [-m] NAME")
	}
	if c.User.UID != 0 {
		return c.Fail("Permission denied.")
	}
	if _, err := o.addUser(c.Argv[len(c.Argv)-1], ""); err != nil {
		return c.Fail("%v", err)
	}
	return 0
}

func (o *OS) getent(_ context.Context, c *shell.Call) int {
	if len(c.Argv) < 3 || c.Argv[1] != "passwd" && c.Argv[1] != "hosts" && c.Argv[1] != "group" {
		return c.Refuse("this database")
	}
	b, err := c.FS().ReadFile("/etc/" + c.Argv[1])
	if err != nil {
		return c.Fail("%v", err)
	}
	for l := range strings.Lines(string(b)) {
		f := strings.FieldsFunc(l, func(r rune) bool { return r == ':' || r == ' ' || r == '\t' || r == '\n' })
		if slices.Contains(f[:min(len(f), 3)], c.Argv[2]) {
			c.Printf("%s", l)
			return 0
		}
	}
	return 2
}

// cloudInitCommand is "cloud-init status [--wait] [--long] [--format json]".
func (o *OS) cloudInitCommand(ctx context.Context, c *shell.Call) int {
	args := c.Argv[1:]
	if len(args) == 0 || args[0] != "status" {
		if len(args) == 1 && args[0] == "--version" {
			c.Printf("/usr/bin/cloud-init 24.4\n")
			return 0
		}
		return c.Refuse("anything but status")
	}
	wait, long, format := false, false, ""
	for i := 1; i < len(args); i++ {
		switch {
		case args[i] == "--wait" || args[i] == "-w":
			wait = true
		case args[i] == "--long" || args[i] == "-l":
			long = true
		case args[i] == "--format" && i+1 < len(args):
			i++
			format = args[i]
		case strings.HasPrefix(args[i], "--format="):
			format = args[i][9:]
		default:
			return c.Refuse("option " + args[i])
		}
	}
	if wait {
		select {
		case <-o.ciDone:
		case <-ctx.Done():
			return shell.Signal(ctx)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	status, extended, detail, boot, code := "running", "running", "Running in stage: "+o.ci.Stage, "enabled-by-generator", 0
	errs := []string{}
	for _, s := range ciStages {
		if st := o.ci.Stages[s]; st != nil {
			errs = append(errs, st.Errors...)
		}
	}
	recoverable := map[string][]string{}
	if len(o.ci.Recoverable) > 0 {
		recoverable["WARNING"] = slices.Clone(o.ci.Recoverable)
	}
	if o.ci.Stage == "" && o.ci.Stages != nil {
		status, extended, detail = "done", "done", o.ci.Datasource
		switch {
		case o.ci.Datasource == "":
			status, extended, boot = "disabled", "disabled", "disabled-by-generator"
			detail = "Cloud-init disabled by cloud-init-generator"
		case len(errs) > 0:
			status, extended, code = "error", "error - done", 1
			detail = strings.Join(errs, "\n")
		case len(recoverable) > 0:
			extended, code = "degraded done", 2
		}
	} else if len(errs) > 0 {
		extended = "error - running"
	}
	last := o.ci.Ended
	if last.IsZero() {
		last = time.Now()
	}
	switch format {
	case "json":
		stages := map[string]any{}
		for _, s := range ciStages {
			if st := o.ci.Stages[s]; st != nil {
				stages[s] = *st
			}
		}
		ds := ""
		if o.ci.Datasource != "" {
			ds = "nocloud"
		}
		out := map[string]any{
			"boot_status_code": boot, "datasource": ds, "detail": detail, "errors": errs, "extended_status": extended,
			"last_update": last.UTC().Format(time.RFC1123Z), "recoverable_errors": recoverable, "status": status,
			"schema_version": "1", "schemas": map[string]any{},
		}
		for k, v := range stages {
			out[k] = v
		}
		b, err := json.MarshalIndent(out, "", "  ")
		if err != nil {
			return c.Fail("%v", err)
		}
		c.Printf("%s\n", b)
	case "", "tabular":
		if wait {
			c.Printf("\n")
		}
		c.Printf("status: %s\n", status)
		if long {
			c.Printf("extended_status: %s\nboot_status_code: %s\nlast_update: %s\ndetail: %s\nerrors: %s\n", extended, boot,
				last.UTC().Format(time.RFC1123Z), detail, strings.Join(errs, "; "))
		}
	default:
		return c.Refuse("format " + format)
	}
	return code
}

// qemuGA is the guest agent's service: while it runs, the channel is answered.
func (o *OS) qemuGA(ctx context.Context, _ *shell.Call) int {
	o.setAgent(true)
	defer o.setAgent(false)
	<-ctx.Done()
	return 0
}

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
		l, err := o.listenRetry(ctx, sshd.Address(a.String(), o.m.Settings.SSHPort))
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
