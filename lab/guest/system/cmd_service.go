package system

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/homeiac/homelab/lab/guest/shell"
)

// addCommands adds the tools that need the OS.
func (o *OS) addCommands() {
	o.Shell.Add(map[string]shell.Tool{
		"systemctl": o.systemctl, "journalctl": o.journalctl, "hostname": o.cmdHostname, "hostnamectl": o.hostnamectl,
		"uname": uname, "uptime": o.cmdUptime, "nproc": o.nproc, "free": o.free, "df": o.df,
		"reboot": o.power(Reboot), "poweroff": o.power(PowerOff), "halt": o.power(PowerOff), "shutdown": o.cmdShutdown,
		"ip": o.ip, "ss": o.ss, "curl": o.curl, "sudo": o.sudo, "apt-get": o.apt, "apt": o.apt, "dpkg": o.dpkg,
		"dpkg-query": o.dpkg, "modprobe": o.modprobe, "lsmod": o.lsmod, "sysctl": o.sysctl, "swapoff": swapoff,
		"cloud-init": o.cloudInitCommand, "sshd": o.sshd, "qemu-ga": o.qemuGA, "useradd": o.useradd,
		"getent": o.getent, "pgrep": o.pgrep,
	})
}

// systemctl's exit codes, as its manual has them.
const (
	codeInactive = 3
	codeNoUnit   = 4
	codeNotFound = 5
)

func (o *OS) systemctl(ctx context.Context, c *shell.Call) int {
	var args []string
	nowFlag, quiet, value, noBlock := false, false, false, false
	var props []string
	for i := 1; i < len(c.Argv); i++ {
		a := c.Argv[i]
		switch {
		case a == "--now":
			nowFlag = true
		case a == "-q" || a == "--quiet":
			quiet = true
		case a == "--value":
			value = true
		case a == "--no-block":
			noBlock = true
		case a == "-p" && i+1 < len(c.Argv):
			i++
			props = append(props, strings.Split(c.Argv[i], ",")...)
		case strings.HasPrefix(a, "--property="):
			props = append(props, strings.Split(a[len("--property="):], ",")...)
		case a == "--no-pager", a == "--no-ask-password", a == "--full", a == "-l", a == "--system", a == "-f", a == "--force", a == "--no-legend", a == "--plain", a == "--all", a == "-a", a == "--wait":
		case strings.HasPrefix(a, "-p") && len(a) > 2:
			props = append(props, strings.Split(a[2:], ",")...)
		case strings.HasPrefix(a, "-n"), strings.HasPrefix(a, "--lines="), strings.HasPrefix(a, "--type="), strings.HasPrefix(a, "--signal="):
		case a == "-s" && i+1 < len(c.Argv):
			i++
		case strings.HasPrefix(a, "-"):
			return c.Refuse("option " + a)
		default:
			args = append(args, a)
		}
	}
	if len(args) == 0 {
		return c.Refuse("listing units")
	}
	verb, names := args[0], args[1:]
	root := c.User.UID == 0
	switch verb {
	case "start", "stop", "restart", "try-restart", "reload-or-restart", "enable", "disable", "daemon-reload", "reset-failed", "reboot", "poweroff", "kill":
		if !root {
			fmt.Fprintln(c.Stderr, "Failed to "+verb+": Interactive authentication required.")
			return 1
		}
	}
	switch verb {
	case "daemon-reload", "daemon-reexec":
		return 0
	case "reboot":
		o.Shutdown(Reboot)
		return 0
	case "poweroff", "halt":
		o.Shutdown(PowerOff)
		return 0
	case "is-system-running":
		return o.systemRunning(c, quiet)
	}
	if len(names) == 0 {
		fmt.Fprintln(c.Stderr, "Too few arguments.")
		return 1
	}
	code := 0
	if verb == "is-active" {
		code = codeInactive
	}
	for _, n := range names {
		name := unitName(n)
		_, err := findUnit(o.FS(), name)
		missing := err != nil
		switch verb {
		case "start", "restart", "try-restart", "reload-or-restart", "stop":
			if missing && (verb != "stop" || o.units.status(name).run == nil) {
				fmt.Fprintf(c.Stderr, "Failed to %s %s: Unit %s not found.\n", verb, name, name)
				code = codeNotFound
				continue
			}
			if k := o.job(ctx, c, verb, name, noBlock); k != 0 {
				code = k
			}
		case "enable", "disable":
			if missing {
				fmt.Fprintf(c.Stderr, "Failed to %s unit: Unit file %s does not exist.\n", verb, name)
				code = 1
				continue
			}
			if k := o.enableUnit(ctx, c, verb, name, quiet, nowFlag); k != 0 {
				code = k
			}
		case "is-active":
			st := o.units.status(name)
			if !quiet {
				c.Printf("%s\n", st.state)
			}
			if st.state == "active" {
				code = 0
			}
		case "kill":
			if err := o.units.kill(name); err != nil {
				fmt.Fprintf(c.Stderr, "Failed to kill unit %s: %v\n", name, err)
				code = 1
			}
		case "is-failed":
			st := o.units.status(name)
			if !quiet {
				c.Printf("%s\n", st.state)
			}
			if st.state != "failed" {
				code = 1
			}
		case "is-enabled":
			switch e := o.units.enabled(name); e {
			case "":
				fmt.Fprintf(c.Stderr, "Failed to get unit file state for %s: No such file or directory\n", name)
				code = codeNoUnit
			default:
				if !quiet {
					c.Printf("%s\n", e)
				}
				if e == "disabled" {
					code = 1
				}
			}
		case "status":
			if k := o.unitStatus(c, name, missing); k != 0 {
				code = k
			}
		case "show":
			o.unitShow(c, name, missing, props, value)
		case "cat":
			if missing {
				fmt.Fprintf(c.Stderr, "No files found for %s.\n", name)
				code = 1
				continue
			}
			at, _ := findUnit(o.FS(), name)
			b, err := o.FS().ReadFile(at)
			if err != nil {
				return c.Fail("%v", err)
			}
			c.Printf("# %s\n%s", at, b)
		case "reset-failed":
			o.units.mu.Lock()
			if u := o.units.getLocked(name); u.state == "failed" {
				u.state, u.sub, u.result = "inactive", "dead", "success"
			}
			o.units.mu.Unlock()
		default:
			return c.Refuse("verb " + verb)
		}
	}
	return code
}

func (o *OS) systemRunning(c *shell.Call, quiet bool) int {
	state, code := "running", 0
	o.mu.Lock()
	if o.ci.Stage != "" {
		state, code = "starting", 1
	}
	o.mu.Unlock()
	o.units.mu.Lock()
	for _, u := range o.units.all {
		if u.state == "failed" {
			state, code = "degraded", 1
		}
	}
	o.units.mu.Unlock()
	if !quiet {
		c.Printf("%s\n", state)
	}
	return code
}

// job runs one start, stop or restart and tells its outcome as systemctl does.
func (o *OS) job(ctx context.Context, c *shell.Call, verb, name string, noBlock bool) int {
	run := func(ctx context.Context) error {
		if verb == "try-restart" && o.units.status(name).state != "active" {
			return nil
		}
		if verb != "start" {
			if err := o.units.stop(ctx, name); err != nil {
				return err
			}
		}
		if verb == "stop" {
			return nil
		}
		return o.units.start(ctx, name)
	}
	if noBlock {
		go func() { _ = run(context.WithoutCancel(ctx)) }() // the journal tells
		return 0
	}
	err := run(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errJobFailed):
		fmt.Fprintf(c.Stderr, "Job for %s failed because the control process exited with error code.\nSee \"systemctl status %s\" and \"journalctl -xeu %s\" for details.\n", name, name, name)
		return 1
	case ctx.Err() != nil:
		return shell.Signal(ctx)
	}
	fmt.Fprintf(c.Stderr, "Failed to %s %s: %v\n", verb, name, err)
	return 1
}

func (o *OS) enableUnit(ctx context.Context, c *shell.Call, verb, name string, quiet, start bool) int {
	if verb == "disable" {
		was := o.units.enabled(name)
		if err := o.units.disable(name); err != nil {
			return c.Fail("%v", err)
		}
		if !quiet && was == "enabled" {
			fmt.Fprintf(c.Stderr, "Removed \"%s/%s\".\n", wantsDir, name)
		}
		if start {
			return o.job(ctx, c, "stop", name, false)
		}
		return 0
	}
	link, err := o.units.enable(name)
	if err != nil {
		return c.Fail("%v", err)
	}
	if link != "" && !quiet {
		at, _ := findUnit(o.FS(), name)
		fmt.Fprintf(c.Stderr, "Created symlink %s → %s.\n", link, at)
	}
	if o.units.enabled(name) == "static" && !quiet {
		fmt.Fprintln(c.Stderr, "The unit files have no installation config (WantedBy=, RequiredBy=, UpheldBy=,\nAlso=, or Alias= settings in the [Install] section, and DefaultInstance= for\ntemplate units). This means they are not meant to be enabled or disabled using systemctl.")
	}
	if start {
		return o.job(ctx, c, "start", name, false)
	}
	return 0
}

func (o *OS) unitStatus(c *shell.Call, name string, missing bool) int {
	st := o.units.status(name)
	if missing && st.run == nil {
		fmt.Fprintf(c.Stderr, "Unit %s could not be found.\n", name)
		return codeNoUnit
	}
	desc := ""
	at := ""
	if f, err := readUnit(o.FS(), name); err == nil {
		desc, at = " - "+f.description, f.path
	}
	why := ""
	if st.result != "success" {
		why = fmt.Sprintf(" (Result: %s)", st.result)
	}
	c.Printf("● %s%s\n     Loaded: loaded (%s; %s; preset: enabled)\n     Active: %s (%s)%s since %s\n", name, desc, at, o.units.enabled(name),
		st.state, st.sub, why, st.since.UTC().Format("Mon 2006-01-02 15:04:05 UTC"))
	if st.pid != 0 {
		c.Printf("   Main PID: %d\n", st.pid)
	}
	es, err := o.journal.read(func(e entry) bool { return e.Unit == name })
	if err == nil {
		c.Printf("\n")
		for _, e := range es[max(0, len(es)-10):] {
			c.Printf("%s\n", o.short(e, ""))
		}
	}
	if st.state != "active" {
		return codeInactive
	}
	return 0
}

func (o *OS) unitShow(c *shell.Call, name string, missing bool, props []string, value bool) {
	st := o.units.status(name)
	load := "loaded"
	if missing {
		load = "not-found"
	}
	all := [][2]string{
		{"Id", name}, {"LoadState", load}, {"ActiveState", st.state}, {"SubState", st.sub}, {"Result", st.result},
		{"ExecMainStatus", strconv.Itoa(st.exit)}, {"MainPID", strconv.Itoa(st.pid)}, {"NRestarts", strconv.Itoa(st.restarts)},
		{"UnitFileState", o.units.enabled(name)},
		{"StateChangeTimestamp", st.since.UTC().Format("Mon 2006-01-02 15:04:05 UTC")},
	}
	for _, kv := range all {
		if len(props) > 0 && !slices.Contains(props, kv[0]) {
			continue
		}
		if value {
			c.Printf("%s\n", kv[1])
		} else {
			c.Printf("%s=%s\n", kv[0], kv[1])
		}
	}
}

// short is journalctl's line; format is "", "cat" or "short-iso".
func (o *OS) short(e entry, format string) string {
	stamp := e.Time.Format("Jan 02 15:04:05")
	switch format {
	case "cat":
		return e.Text
	case "short-iso":
		stamp = e.Time.Format("2006-01-02T15:04:05-0700")
	case "json":
		b, err := json.Marshal(map[string]string{
			"__REALTIME_TIMESTAMP": strconv.FormatInt(e.Time.UnixMicro(), 10), "_SYSTEMD_UNIT": e.Unit,
			"SYSLOG_IDENTIFIER": e.Ident, "_PID": strconv.Itoa(e.PID), "MESSAGE": e.Text, "_BOOT_ID": e.Boot,
		})
		if err != nil {
			return "{}"
		}
		return string(b)
	}
	if e.PID == 0 {
		return fmt.Sprintf("%s %s %s: %s", stamp, o.Hostname(), e.Ident, e.Text)
	}
	return fmt.Sprintf("%s %s %s[%d]: %s", stamp, o.Hostname(), e.Ident, e.PID, e.Text)
}

func (o *OS) journalctl(_ context.Context, c *shell.Call) int {
	if c.User.UID != 0 {
		fmt.Fprintln(c.Stderr, "No journal files were opened due to insufficient permissions.")
		return 1
	}
	var units []string
	lines, format, thisBoot, quiet, reverse := -1, "", false, false, false
	var since time.Time
	for i := 1; i < len(c.Argv); i++ {
		a := c.Argv[i]
		val := func() string {
			if i++; i < len(c.Argv) {
				return c.Argv[i]
			}
			return ""
		}
		switch {
		case a == "-u" || a == "--unit":
			units = append(units, unitName(val()))
		case a == "-xeu" || a == "-eu" || a == "-xu":
			units = append(units, unitName(val()))
		case strings.HasPrefix(a, "--unit="):
			units = append(units, unitName(a[7:]))
		case a == "-n" || a == "--lines":
			lines = number(val())
		case strings.HasPrefix(a, "--lines="):
			lines = number(a[8:])
		case strings.HasPrefix(a, "-n"):
			lines = number(a[2:])
		case a == "-o" || a == "--output":
			format = val()
		case strings.HasPrefix(a, "-o"):
			format = a[2:]
		case strings.HasPrefix(a, "--output="):
			format = a[9:]
		case a == "-b" || a == "--boot" || a == "-b0":
			thisBoot = true
		case a == "-q" || a == "--quiet":
			quiet = true
		case a == "-r" || a == "--reverse":
			reverse = true
		case a == "--no-pager", a == "-e", a == "-x", a == "--no-hostname", a == "-l", a == "--full":
		case a == "--since" || a == "-S" || strings.HasPrefix(a, "--since="):
			v := strings.TrimPrefix(a, "--since=")
			if v == a {
				v = val()
			}
			t, ok := sinceTime(v)
			if !ok {
				return c.Refuse("time " + v)
			}
			since = t
		default:
			return c.Refuse("argument " + a)
		}
	}
	if !slices.Contains([]string{"", "short", "cat", "short-iso", "json"}, format) {
		return c.Refuse("output " + format)
	}
	if format == "short" {
		format = ""
	}
	es, err := o.journal.read(func(e entry) bool {
		return (len(units) == 0 || slices.Contains(units, e.Unit)) && (!thisBoot || e.Boot == o.journal.boot) && !e.Time.Before(since)
	})
	if err != nil {
		return c.Fail("%v", err)
	}
	if lines >= 0 {
		es = es[max(0, len(es)-lines):]
	}
	if reverse {
		slices.Reverse(es)
	}
	if len(es) == 0 && !quiet && format != "json" {
		c.Printf("-- No entries --\n")
	}
	for _, e := range es {
		c.Printf("%s\n", o.short(e, format))
	}
	return 0
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 10
	}
	return n
}

// sinceTime reads "@EPOCH", "-5min", "5 min ago" in its commonest forms and
// absolute times.
func sinceTime(s string) (time.Time, bool) {
	if n, ok := strings.CutPrefix(s, "@"); ok {
		f, err := strconv.ParseFloat(n, 64)
		return time.Unix(0, int64(f*1e9)), err == nil
	}
	for _, f := range []string{"2006-01-02 15:04:05", time.RFC3339, "2006-01-02"} {
		if t, err := time.Parse(f, strings.TrimSuffix(s, " UTC")); err == nil {
			return t, true
		}
	}
	d := strings.NewReplacer("ago", "", "-", "", " ", "", "seconds", "s", "sec", "s", "minutes", "m", "min", "m", "hours", "h", "hour", "h").Replace(s)
	if p, err := time.ParseDuration(d); err == nil {
		return time.Now().Add(-p), true
	}
	return time.Time{}, false
}

// pgrep tells whether a service's program runs, which is what scripts ask.
func (o *OS) pgrep(_ context.Context, c *shell.Call) int {
	args := slices.DeleteFunc(slices.Clone(c.Argv[1:]), func(a string) bool { return strings.HasPrefix(a, "-") })
	if len(args) != 1 {
		return c.Refuse("these arguments")
	}
	o.units.mu.Lock()
	defer o.units.mu.Unlock()
	code := 1
	for _, u := range o.units.all {
		f, err := readUnit(o.FS(), u.name)
		if err != nil || u.pid == 0 || len(f.start) == 0 || !strings.Contains(path.Base(f.start[0]), args[0]) {
			continue
		}
		c.Printf("%d\n", u.pid)
		code = 0
	}
	return code
}
