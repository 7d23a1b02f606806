package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"

	"github.com/homeiac/homelab/lab/guest/tree"
)

// nowhere is the interpreter's own temporary folder. It cannot exist, so
// process substitution, which would make a real FIFO, fails instead.
const nowhere = "/dev/null/hl-lab"

// Run runs a script as "sh -c" does, with p.Args as $0 and on, and the options
// ("-e", "-u", "-x") set. It gives the exit code: 2 for a script that cannot be
// parsed, 143 when ctx ended first.
func (s *Shell) Run(ctx context.Context, p Proc, script string, opts ...string) int {
	if p.Stdout == nil {
		p.Stdout = io.Discard
	}
	if p.Stderr == nil {
		p.Stderr = io.Discard
	}
	name := "sh"
	if len(p.Args) > 0 {
		name = p.Args[0]
	}
	run := &run{s: s, p: p, funcs: map[string]bool{}}
	file, err := run.parse(name, script)
	if err != nil {
		fmt.Fprintf(p.Stderr, "%v\n", err)
		return 2
	}
	in, done, err := stdin(p.Stdin)
	if err != nil {
		fmt.Fprintf(p.Stderr, "%s: %v\n", name, err)
		return 2
	}
	defer done()
	params := append(slices.Clone(opts), "--")
	if len(p.Args) > 1 {
		params = append(params, p.Args[1:]...)
	}
	// Background commands write at the same time as the script.
	out, errs := &locked{w: p.Stdout}, &locked{w: p.Stderr}
	r, err := interp.New(
		interp.Env(run.environ()),
		func(r *interp.Runner) error { r.Dir = path.Clean("/" + p.Dir); return nil },
		interp.StdIO(in, out, errs),
		interp.Params(params...),
		interp.CallHandler(run.call),
		interp.ExecHandlers(func(interp.ExecHandlerFunc) interp.ExecHandlerFunc { return run.exec }),
		interp.OpenHandler(run.open),
		interp.StatHandler(run.stat),
		interp.AccessHandler(run.access),
		interp.ReadDirHandler2(run.readDir),
	)
	if err != nil {
		fmt.Fprintf(p.Stderr, "%s: %v\n", name, err)
		return 2
	}
	unset, err := run.parse("sh", "unset TMPDIR")
	if err != nil {
		panic(err) // a constant text
	}
	if err := r.Run(ctx, unset.Stmts[0]); err != nil {
		if ctx.Err() != nil {
			return Signal(ctx)
		}
		fmt.Fprintf(p.Stderr, "%s: %v\n", name, err)
		return 2
	}
	err = r.Run(ctx, file)
	var es interp.ExitStatus
	switch {
	case ctx.Err() != nil:
		return Signal(ctx) // also when a wait ended with it
	case err == nil:
		return 0
	case errors.As(err, &es):
		return int(es)
	}
	fmt.Fprintf(p.Stderr, "%s: %v\n", name, err)
	return 2
}

// stdin gives a reader as the file that the interpreter wants. Of a reader that
// is none, a goroutine copies into a pipe; it ends when the reader does, or at
// its next write after done.
func stdin(r io.Reader) (f *os.File, done func(), err error) {
	switch r := r.(type) {
	case *os.File:
		return r, func() {}, nil
	case nil:
		f, err := os.Open(os.DevNull)
		return f, func() { f.Close() }, err
	default:
		pr, pw, err := os.Pipe()
		if err != nil {
			return nil, nil, err
		}
		go func() {
			_, _ = io.Copy(pw, r) // a broken pipe is the script's end
			pw.Close()
		}()
		return pr, func() { pr.Close() }, nil
	}
}

// Killed is the cause of a context that a signal ended.
type Killed int

// Error names the signal.
func (k Killed) Error() string { return "killed by signal " + strconv.Itoa(int(k)) }

// Signal gives the exit code of a program whose ctx has ended: 128 + the
// signal, SIGTERM when nothing else is known.
func Signal(ctx context.Context) int {
	var k Killed
	if errors.As(context.Cause(ctx), &k) {
		return 128 + int(k)
	}
	return 143
}

type locked struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// run is one script with what it has declared.
type run struct {
	s *Shell
	p Proc

	mu    sync.Mutex
	funcs map[string]bool // declared anywhere in its text
}

func (r *run) parse(name, text string) (*syntax.File, error) {
	f, err := syntax.NewParser().Parse(strings.NewReader(text), name)
	if err != nil {
		return nil, err
	}
	syntax.Walk(f, func(n syntax.Node) bool {
		if d, ok := n.(*syntax.FuncDecl); ok && d.Name != nil {
			r.mu.Lock()
			r.funcs[d.Name.Value] = true
			r.mu.Unlock()
		}
		return true
	})
	return f, nil
}

func (r *run) isFunc(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.funcs[name]
}

// environ is the guest's environment; "HOME name" is how the interpreter asks
// for ~name, and must always be answered or it looks into the real passwd.
type environ struct {
	vars  map[string]string
	homes func(user string) string
}

func (r *run) environ() expand.Environ {
	vars := maps.Clone(r.p.Env)
	if vars == nil {
		vars = map[string]string{}
	}
	vars["TMPDIR"] = nowhere
	for k, v := range map[string]string{
		"UID": strconv.Itoa(r.p.User.UID), "EUID": strconv.Itoa(r.p.User.UID), "GID": strconv.Itoa(r.p.User.GID),
		"HOME": r.p.User.Home,
	} {
		if _, ok := vars[k]; !ok {
			vars[k] = v
		}
	}
	return environ{vars: vars, homes: func(user string) string {
		u, ok := LookupUser(r.s.Tree, user)
		if !ok {
			return "~" + user
		}
		return u.Home
	}}
}

// unexported are set for the interpreter, and are not part of the environment.
var unexported = map[string]bool{"UID": true, "EUID": true, "GID": true}

func (e environ) variable(name, v string) expand.Variable {
	return expand.Variable{Set: true, Exported: !unexported[name], Kind: expand.String, Str: v}
}

// Get implements expand.Environ.
func (e environ) Get(name string) expand.Variable {
	if user, ok := strings.CutPrefix(name, "HOME "); ok {
		return e.variable(name, e.homes(user))
	}
	if v, ok := e.vars[name]; ok {
		return e.variable(name, v)
	}
	return expand.Variable{}
}

// Each implements expand.Environ.
func (e environ) Each(fn func(string, expand.Variable) bool) {
	for _, k := range slices.Sorted(maps.Keys(e.vars)) {
		if !fn(k, e.variable(k, e.vars[k])) {
			return
		}
	}
}

// proc is the surroundings of a command inside the script.
func (r *run) proc(hc interp.HandlerContext) Proc {
	p := r.p
	p.Dir = hc.Dir
	p.Stdin, p.Stdout, p.Stderr = hc.Stdin, hc.Stdout, hc.Stderr
	if f, ok := hc.Stdin.(*os.File); ok && f == nil {
		p.Stdin = nil
	}
	p.Args = nil
	p.Env = map[string]string{}
	hc.Env.Each(func(name string, v expand.Variable) bool {
		if v.Exported && v.Kind == expand.String && v.IsSet() {
			p.Env[name] = v.Str
		} else {
			delete(p.Env, name)
		}
		return true
	})
	return p
}

func (r *run) exec(ctx context.Context, args []string) error {
	p := r.proc(interp.HandlerCtx(ctx))
	var code int
	if name, ok := strings.CutPrefix(args[0], inner); ok {
		code = r.inner(p, name, args[1:])
	} else {
		// PATH need not be exported to be searched.
		if p.Env["PATH"] == "" {
			p.Env["PATH"] = interp.HandlerCtx(ctx).Env.Get("PATH").String()
		}
		code = r.s.Exec(ctx, p, args)
	}
	if code == 0 {
		return nil
	}
	return interp.ExitStatus(uint8(code))
}

func (r *run) view() *tree.View { return r.s.Tree.As(r.p.User.UID, r.p.User.GID) }

func (r *run) open(ctx context.Context, name string, flag int, perm os.FileMode) (io.ReadWriteCloser, error) {
	hc := interp.HandlerCtx(ctx)
	return openFile(r.view(), hc.Stdin, hc.Stdout, hc.Stderr, abs(hc.Dir, name), flag, perm)
}

func (r *run) stat(ctx context.Context, name string, follow bool) (fs.FileInfo, error) {
	name = abs(interp.HandlerCtx(ctx).Dir, name)
	if devices[path.Clean(name)] {
		return device(path.Base(name)), nil
	}
	if follow {
		fi, err := r.view().Stat(name)
		if err != nil {
			return nil, err
		}
		return fi, nil
	}
	fi, err := r.view().Lstat(name)
	if err != nil {
		return nil, err
	}
	return fi, nil
}

func (r *run) access(ctx context.Context, name string, mode interp.AccessMode) error {
	name = abs(interp.HandlerCtx(ctx).Dir, name)
	if devices[path.Clean(name)] {
		return nil
	}
	return r.view().Access(name, fs.FileMode(mode))
}

func (r *run) readDir(ctx context.Context, name string) ([]fs.DirEntry, error) {
	return r.view().ReadDir(abs(interp.HandlerCtx(ctx).Dir, name))
}
