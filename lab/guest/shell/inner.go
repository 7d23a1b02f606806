package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// inner marks calls that this package answers in place of the interpreter's
// builtin. No guest can type it.
const inner = "\x00hl-lab:"

// call replaces the builtins that would look at the real machine or that the
// interpreter lacks.
func (r *run) call(ctx context.Context, args []string) ([]string, error) {
	hc := interp.HandlerCtx(ctx)
	for i := range args {
		if strings.HasPrefix(args[i], inner) {
			args[i] = "invalid"
		}
	}
	if r.isFunc(args[0]) {
		return args, nil
	}
	switch args[0] {
	case "builtin":
		if len(args) == 1 {
			return []string{"true"}, nil
		}
		if !interp.IsBuiltin(args[1]) {
			fmt.Fprintf(hc.Stderr, "builtin: %s: not a shell builtin\n", args[1])
			return []string{"false"}, nil
		}
		return r.call(ctx, args[1:])
	case "command":
		return r.command(ctx, args)
	case "type", "which":
		if args[0] == "type" {
			return append([]string{inner + "type"}, args[1:]...), nil
		}
	case ".", "source":
		return r.source(hc, args)
	case "eval":
		// What is declared in there counts for "command -v".
		_, _ = r.parse("eval", strings.Join(args[1:], " ")) // the builtin reports what is wrong with it
	case "pwd":
		return append([]string{inner + "pwd"}, args[1:]...), nil
	case "cd":
		for len(args) > 1 && (args[1] == "-P" || args[1] == "-L" || args[1] == "--") {
			args = append([]string{"cd"}, args[2:]...)
		}
	case "umask", "ulimit", "jobs", "bg", "fg", "fc", "newgrp", "times":
		return append([]string{inner + args[0]}, args[1:]...), nil
	case "kill":
		return append([]string{"/usr/bin/kill"}, args[1:]...), nil
	case "trap":
		return trap(args), nil
	}
	return args, nil
}

func (r *run) command(ctx context.Context, args []string) ([]string, error) {
	rest := args[1:]
	for len(rest) > 0 && strings.HasPrefix(rest[0], "-") {
		switch rest[0] {
		case "-v", "-V":
			return append([]string{inner + "command " + rest[0]}, rest[1:]...), nil
		case "-p", "--":
			rest = rest[1:]
			continue
		}
		return []string{"command", rest[0]}, nil // its own complaint
	}
	if len(rest) == 0 {
		return []string{"true"}, nil
	}
	if interp.IsBuiltin(rest[0]) && !r.isFunc(rest[0]) {
		return r.call(ctx, rest)
	}
	return append([]string{"command", "--"}, rest...), nil
}

// source turns ". FILE" into eval of the file's text.
func (r *run) source(hc interp.HandlerContext, args []string) ([]string, error) {
	if len(args) < 2 {
		fmt.Fprintln(hc.Stderr, "sh: .: filename argument required")
		return []string{"exit", "2"}, nil
	}
	if len(args) > 2 {
		fmt.Fprintln(hc.Stderr, "sh: .: arguments are not simulated by hl-lab")
		return []string{"exit", "2"}, nil
	}
	name := args[1]
	file := abs(hc.Dir, name)
	if !strings.Contains(name, "/") {
		for dir := range strings.SplitSeq(hc.Env.Get("PATH").String(), ":") {
			at := path.Join(abs(hc.Dir, dir), name)
			if fi, err := r.view().Stat(at); err == nil && !fi.IsDir() {
				file = at
				break
			}
		}
	}
	b, err := r.view().ReadFile(file)
	if err != nil {
		fmt.Fprintf(hc.Stderr, "sh: 1: .: cannot open %s: %s\n", name, why(err))
		return []string{"exit", "2"}, nil
	}
	if _, err := r.parse(name, string(b)); err != nil {
		fmt.Fprintln(hc.Stderr, err)
		return []string{"exit", "2"}, nil
	}
	return []string{"eval", string(b)}, nil
}

// trap keeps what the interpreter knows (EXIT and ERR). A trap on a signal is
// accepted and never called: signals end a simulated script at once.
func trap(args []string) []string {
	if len(args) < 3 || strings.HasPrefix(args[1], "-") && args[1] != "-" && args[1] != "--" {
		return args
	}
	out := []string{"trap", args[1]}
	if args[1] == "--" {
		out = []string{"trap", "--"}
		args = args[1:]
		out = append(out, args[1])
	}
	some := false
	for _, sig := range args[2:] {
		switch sig {
		case "0", "EXIT":
			out, some = append(out, "EXIT"), true
		case "ERR":
			out, some = append(out, "ERR"), true
		}
	}
	if !some {
		return []string{"true"}
	}
	return out
}

// inner answers the replaced builtins.
func (r *run) inner(p Proc, name string, args []string) int {
	word, _, _ := strings.Cut(name, " ")
	switch word {
	case "pwd":
		dir := p.Dir
		for _, a := range args {
			switch a {
			case "-P":
				real, err := r.view().Real(dir)
				if err != nil {
					fmt.Fprintf(p.Stderr, "pwd: %s\n", why(err))
					return 1
				}
				dir = real
			case "-L":
			default:
				fmt.Fprintf(p.Stderr, "pwd: invalid option: %q\n", a)
				return 2
			}
		}
		fmt.Fprintln(p.Stdout, dir)
		return 0
	case "command", "type":
		return r.where(p, name, args)
	case "umask":
		if len(args) == 0 {
			fmt.Fprintln(p.Stdout, "0022")
			return 0
		}
		return 0 // the modes that matter are set by install and chmod
	case "ulimit":
		fmt.Fprintln(p.Stdout, "unlimited")
		return 0
	}
	fmt.Fprintf(p.Stderr, "%s: not simulated by hl-lab\n", word)
	return 2
}

// where is "command -v", "command -V" and "type".
func (r *run) where(p Proc, name string, args []string) int {
	code := 0
	for _, a := range args {
		var what, text string
		switch {
		case syntax.IsKeyword(a):
			what, text = a, "is a shell keyword"
		case r.isFunc(a):
			what, text = a, "is a shell function"
		case interp.IsBuiltin(a):
			what, text = a, "is a shell builtin"
		default:
			file, err := r.s.Find(p, a)
			if err != nil {
				if name != "command -v" {
					fmt.Fprintf(p.Stderr, "%s: not found\n", a)
				}
				code = 127
				if name == "type" {
					code = 1
				}
				continue
			}
			what, text = file, "is "+file
		}
		if name == "command -v" {
			fmt.Fprintln(p.Stdout, what)
		} else {
			fmt.Fprintln(p.Stdout, a, text)
		}
	}
	return code
}

// devices are the special files that a guest's programs may open.
var devices = map[string]bool{
	"/dev/null": true, "/dev/stdin": true, "/dev/stdout": true, "/dev/stderr": true, "/dev/zero": true,
	"/dev/fd/0": true, "/dev/fd/1": true, "/dev/fd/2": true, "/dev/tty": true, "/dev/urandom": true, "/dev/random": true,
}

type stream struct {
	io.Reader
	io.Writer
}

// Close leaves the stream open: it belongs to the program's surroundings.
func (stream) Close() error { return nil }

type nothing struct{}

func (nothing) Read([]byte) (int, error)    { return 0, io.EOF }
func (nothing) Write(b []byte) (int, error) { return len(b), nil }

// openFile opens a file of the tree, or one of the few devices.
func openFile(v interface {
	OpenFile(string, int, fs.FileMode) (*os.File, error)
}, in io.Reader, out, errs io.Writer, name string, flag int, perm fs.FileMode) (io.ReadWriteCloser, error) {
	clean := path.Clean(name)
	if devices[clean] {
		if in == nil {
			in = nothing{}
		}
		switch clean {
		case "/dev/null":
			return stream{nothing{}, nothing{}}, nil
		case "/dev/stdin", "/dev/fd/0":
			return stream{in, nothing{}}, nil
		case "/dev/stdout", "/dev/fd/1":
			return stream{nothing{}, out}, nil
		case "/dev/stderr", "/dev/fd/2":
			return stream{nothing{}, errs}, nil
		}
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("no such device or address")}
	}
	f, err := v.OpenFile(name, flag, perm)
	if err != nil {
		// The interpreter knows only an unwrapped PathError as no fatal error.
		var pe *fs.PathError
		if errors.As(err, &pe) {
			return nil, pe
		}
		return nil, err
	}
	return f, nil
}
