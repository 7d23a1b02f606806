package system

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/homeiac/homelab/lab/guest/shell"
)

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
		return fmt.Errorf("Module %s not found in directory /lib/modules/%s", name, kernelRelease) //nolint:staticcheck // the real text
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
