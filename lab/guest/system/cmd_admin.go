package system

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/homeiac/homelab/lab/guest/shell"
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
