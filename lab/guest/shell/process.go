package shell

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

var processTools = map[string]Tool{
	"true":  func(context.Context, *Call) int { return 0 },
	"false": func(context.Context, *Call) int { return 1 },
	"sync":  func(context.Context, *Call) int { return 0 },
	"sh":    sh, "bash": sh, "dash": sh, "env": env, "printenv": printenv, "sleep": sleep, "timeout": timeout,
	"id": id, "whoami": whoami, "echo": echo, "printf": printf, "test": test, "[": test,
	"nohup": prefix, "nice": prefix, "setsid": prefix, "exec": prefix, "which": which, "pwd": pwd, "kill": kill,
	"logger": func(context.Context, *Call) int { return 0 },
}

// sh is "sh [-eux] [-c SCRIPT [NAME ARGS...] | -s ARGS... | FILE ARGS...]".
func sh(ctx context.Context, c *Call) int {
	args := c.Argv[1:]
	var opts []string
	command, stdin := false, false
	for len(args) > 0 && len(args[0]) > 1 && (args[0][0] == '-' || args[0][0] == '+') {
		a := args[0]
		args = args[1:]
		if a == "--" {
			break
		}
		if a == "--login" || a == "--norc" || a == "--noprofile" {
			continue
		}
		for _, ch := range a[1:] {
			switch ch {
			case 'c':
				command = true
			case 's':
				stdin = true
			case 'l', 'i':
			case 'o':
				if len(args) == 0 {
					return c.Refuse("option -o without a name")
				}
				opts, args = append(opts, a[:1]+"o", args[0]), args[1:]
			case 'e', 'u', 'x', 'f', 'n', 'a':
				opts = append(opts, a[:1]+string(ch))
			default:
				return c.Refuse("option " + a)
			}
		}
	}
	if len(args) > 0 && args[0] == "-" {
		args = args[1:] // ends the options too
	}
	p := c.Proc
	switch {
	case command:
		if len(args) == 0 {
			return c.Fail("0: -c requires an argument")
		}
		p.Args = []string{c.Argv[0]}
		if len(args) > 1 {
			p.Args = args[1:]
		}
		return c.sh.Run(ctx, p, args[0], opts...)
	case stdin || len(args) == 0:
		b, err := io.ReadAll(c.In(ctx))
		if err != nil {
			if ctx.Err() != nil {
				return Signal(ctx)
			}
			return c.Fail("0: %v", err)
		}
		p.Stdin = nil
		p.Args = append([]string{c.Argv[0]}, args...)
		return c.sh.Run(ctx, p, string(b), opts...)
	}
	b, err := c.FS().ReadFile(c.Abs(args[0]))
	if err != nil {
		c.Fail("0: cannot open %s: %s", args[0], why(err))
		return 127
	}
	p.Args = args
	return c.sh.Run(ctx, p, string(b), opts...)
}

func env(ctx context.Context, c *Call) int {
	args := c.Argv[1:]
	p := c.Proc
	p.Env = maps.Clone(c.Env)
	for len(args) > 0 {
		switch {
		case args[0] == "-i":
			p.Env = map[string]string{}
		case args[0] == "-u" && len(args) > 1:
			delete(p.Env, args[1])
			args = args[1:]
		case args[0] == "--":
		case strings.HasPrefix(args[0], "-"):
			return c.Refuse("option " + args[0])
		case strings.Contains(args[0], "="):
			k, v, _ := strings.Cut(args[0], "=")
			p.Env[k] = v
		default:
			if p.Env["PATH"] == "" {
				p.Env["PATH"] = Path
			}
			return c.sh.Exec(ctx, p, args)
		}
		args = args[1:]
	}
	for _, k := range slices.Sorted(maps.Keys(p.Env)) {
		c.Printf("%s=%s\n", k, p.Env[k])
	}
	return 0
}

func printenv(ctx context.Context, c *Call) int {
	if len(c.Argv) == 1 {
		return env(ctx, c)
	}
	code := 0
	for _, k := range c.Argv[1:] {
		v, ok := c.Env[k]
		if !ok {
			code = 1
			continue
		}
		c.Printf("%s\n", v)
	}
	return code
}

// duration reads "1.5", "2s", "3m", "1h".
func duration(s string) (time.Duration, error) {
	unit := time.Second
	if s != "" {
		switch s[len(s)-1] {
		case 's':
			s = s[:len(s)-1]
		case 'm':
			unit, s = time.Minute, s[:len(s)-1]
		case 'h':
			unit, s = time.Hour, s[:len(s)-1]
		case 'd':
			unit, s = 24*time.Hour, s[:len(s)-1]
		}
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f < 0 {
		return 0, errors.New("invalid time interval")
	}
	return time.Duration(f * float64(unit)), nil
}

func sleep(ctx context.Context, c *Call) int {
	if len(c.Argv) < 2 {
		return c.Fail("missing operand")
	}
	var d time.Duration
	for _, a := range c.Argv[1:] {
		one, err := duration(a)
		if err != nil && a != "infinity" {
			return c.Fail("invalid time interval '%s'", a)
		}
		if a == "infinity" {
			one = 1 << 50
		}
		d += one
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return Signal(ctx)
	case <-t.C:
		return 0
	}
}

func timeout(ctx context.Context, c *Call) int {
	args := c.Argv[1:]
	sig, preserve := 15, false
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		switch {
		case args[0] == "-s" && len(args) > 1:
			if args[1] == "KILL" || args[1] == "9" {
				sig = 9
			}
			args = args[1:]
		case args[0] == "-k" && len(args) > 1:
			args = args[1:]
		case strings.HasPrefix(args[0], "--kill-after="), args[0] == "--foreground":
		case args[0] == "--preserve-status":
			preserve = true
		default:
			return c.Refuse("option " + args[0])
		}
		args = args[1:]
	}
	if len(args) < 2 {
		c.Fail("missing operand")
		return 125
	}
	d, err := duration(args[0])
	if err != nil {
		c.Fail("invalid time interval '%s'", args[0])
		return 125
	}
	if d == 0 {
		return c.sh.Exec(ctx, c.Proc, args[1:])
	}
	tctx, cancel := context.WithTimeoutCause(ctx, d, Killed(sig))
	defer cancel()
	code := c.sh.Exec(tctx, c.Proc, args[1:])
	if ctx.Err() == nil && tctx.Err() != nil && !preserve {
		if sig == 9 {
			return 137
		}
		return 124
	}
	return code
}

func id(_ context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "u g n G r")
	if err != nil {
		return c.Refuse(err.Error())
	}
	u := c.User
	if len(o.args) > 0 {
		var ok bool
		if u, ok = LookupUser(c.sh.Tree, o.args[0]); !ok {
			return c.Fail("'%s': no such user", o.args[0])
		}
	}
	switch {
	case o.has("u") && o.has("n"):
		c.Printf("%s\n", u.Name)
	case o.has("u"):
		c.Printf("%d\n", u.UID)
	case (o.has("g") || o.has("G")) && o.has("n"):
		c.Printf("%s\n", u.Name)
	case o.has("g"), o.has("G"):
		c.Printf("%d\n", u.GID)
	default:
		c.Printf("uid=%d(%s) gid=%d(%s) groups=%d(%s)\n", u.UID, u.Name, u.GID, u.Name, u.GID, u.Name)
	}
	return 0
}

func whoami(_ context.Context, c *Call) int { c.Printf("%s\n", c.User.Name); return 0 }

// echo, printf, test and pwd are builtins of the shell; as programs of their
// own (under sudo, env, xargs) they run through it.
func asBuiltin(ctx context.Context, c *Call, name string) int {
	p := c.Proc
	p.Args = append([]string{"sh"}, c.Argv[1:]...)
	return c.sh.Run(ctx, p, name+` "$@"`)
}

func echo(_ context.Context, c *Call) int {
	args, nl := c.Argv[1:], "\n"
	if len(args) > 0 && args[0] == "-n" {
		args, nl = args[1:], ""
	}
	if tell(c.Stdout, strings.Join(args, " ")+nl) != nil {
		return 141
	}
	return 0
}

func printf(ctx context.Context, c *Call) int { return asBuiltin(ctx, c, "printf") }

func test(ctx context.Context, c *Call) int {
	if c.Name() == "[" {
		return asBuiltin(ctx, c, "[")
	}
	return asBuiltin(ctx, c, "test")
}

func pwd(_ context.Context, c *Call) int { c.Printf("%s\n", c.Dir); return 0 }

// prefix runs the rest of the arguments: nohup, nice, setsid.
func prefix(ctx context.Context, c *Call) int {
	args := c.Argv[1:]
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		if args[0] == "-n" && len(args) > 1 {
			args = args[1:]
		}
		args = args[1:]
	}
	if len(args) == 0 {
		return c.Fail("missing operand")
	}
	return c.sh.Exec(ctx, c.Proc, args)
}

func which(_ context.Context, c *Call) int {
	code := 0
	for _, n := range c.Argv[1:] {
		f, err := c.sh.Find(c.Proc, n)
		if err != nil {
			code = 1
			continue
		}
		c.Printf("%s\n", f)
	}
	return code
}

func kill(_ context.Context, c *Call) int {
	return c.Refuse("processes have no numbers here; use systemctl")
}
