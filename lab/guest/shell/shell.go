// Package shell runs POSIX shell scripts and simulated programs inside a guest's
// file tree. Nothing of the real machine takes part: no program is executed, no
// real file or variable is seen. A program is a file of the tree whose first
// line says what it is:
//
//	#!hl-lab-tool NAME     one of the tools known here or added with Add
//	#!hl-lab-WORD ...      a program added with AddProgram
//	#!/bin/sh              a script
//
// so what "command -v" finds, what a symbolic link means and what removing a
// file does are as in life. Everything else is 127 or 126.
//
// The interpreter is mvdan.cc/sh; the places where it would look at the real
// machine by itself (sourcing, command -v, pwd -P, ~user, process
// substitution) are closed in runner.go.
package shell

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/homeiac/homelab/lab/guest/tree"
)

// User is who runs a program in the guest.
type User struct {
	Name     string
	UID, GID int
	Home     string
}

// Root is the guest's administrator.
var Root = User{Name: "root", Home: "/root"}

// Path is the search path of a login, as in Ubuntu's sudoers and /etc/environment.
const Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/bin"

// Proc is what surrounds a running program.
type Proc struct {
	User   User
	Dir    string            // absolute, in the guest
	Env    map[string]string // never the real one's
	Stdin  io.Reader         // nil: empty
	Stdout io.Writer
	Stderr io.Writer
	Args   []string // $0, $1, ... of a script
}

// Login is the surroundings of a fresh login of that user.
func Login(u User) Proc {
	return Proc{User: u, Dir: u.Home, Env: map[string]string{
		"HOME": u.Home, "USER": u.Name, "LOGNAME": u.Name, "SHELL": "/bin/bash", "PATH": Path, "LANG": "C.UTF-8",
	}}
}

// Tool is a simulated program. It gives its exit code, and returns early when
// ctx ends.
type Tool func(ctx context.Context, c *Call) int

// Call is one running program.
type Call struct {
	Proc
	Argv []string // Argv[0] is the name it was called by
	File string   // the program's path in the guest
	Rest string   // what stands after the first word of its "#!" line
	sh   *Shell
}

// Shell holds the tools of one guest. Add everything before the first run.
type Shell struct {
	Tree *tree.Tree

	mu       sync.Mutex
	tools    map[string]Tool
	programs map[string]Tool
}

// New gives a shell with the tools that need nothing but the tree.
func New(t *tree.Tree) *Shell {
	s := &Shell{Tree: t, tools: map[string]Tool{}, programs: map[string]Tool{}}
	maps.Copy(s.tools, textTools)
	maps.Copy(s.tools, listTools)
	maps.Copy(s.tools, fileTools)
	maps.Copy(s.tools, processTools)
	maps.Copy(s.tools, hashTools)
	return s
}

// Add adds or replaces tools by name.
func (s *Shell) Add(tools map[string]Tool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(s.tools, tools)
}

// AddProgram adds a program whose file begins with "#!WORD".
func (s *Shell) AddProgram(word string, t Tool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.programs[word] = t
}

// Tools lists the names of all tools, sorted: what an image should hold.
func (s *Shell) Tools() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.tools))
}

// StandIn is the content of the file of a tool.
func StandIn(tool string) []byte { return []byte("#!hl-lab-tool " + tool + "\n") }

// FS is the tree as the call's user sees it.
func (c *Call) FS() *tree.View { return c.sh.Tree.As(c.User.UID, c.User.GID) }

// Shell is the shell that the call runs in.
func (c *Call) Shell() *Shell { return c.sh }

// Name is the program's name without folders.
func (c *Call) Name() string { return path.Base(c.Argv[0]) }

// Abs makes a path absolute from the call's folder.
func (c *Call) Abs(name string) string { return abs(c.Dir, name) }

func abs(dir, name string) string {
	if strings.HasPrefix(name, "/") {
		return name
	}
	return strings.TrimRight(dir, "/") + "/" + name
}

// Printf writes to standard output.
func (c *Call) Printf(format string, a ...any) { fmt.Fprintf(c.Stdout, format, a...) }

// Fail writes "NAME: text" to standard error and gives 1.
func (c *Call) Fail(format string, a ...any) int {
	fmt.Fprintf(c.Stderr, "%s: %s\n", c.Name(), fmt.Sprintf(format, a...))
	return 1
}

// Refuse says that the lab does not simulate this; it gives 2, so a script
// under set -e stops.
func (c *Call) Refuse(what string) int {
	fmt.Fprintf(c.Stderr, "%s: not simulated by hl-lab: %s\n", c.Name(), what)
	return 2
}

// why gives an error's text as a C program would print it.
func why(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "No such file or directory"
	case errors.Is(err, fs.ErrPermission):
		if strings.Contains(err.Error(), "not permitted") {
			return "Operation not permitted"
		}
		return "Permission denied"
	case errors.Is(err, fs.ErrExist):
		return "File exists"
	}
	s := err.Error()
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// In gives standard input, never nil, whose reads end with ctx.
func (c *Call) In(ctx context.Context) io.Reader {
	if c.Stdin == nil {
		return strings.NewReader("")
	}
	return &untilDone{ctx: ctx, r: c.Stdin}
}

// untilDone lets a read of a pipe end when the program is killed.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u *untilDone) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	f, ok := u.r.(*os.File)
	if !ok {
		return u.r.Read(p)
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(u.ctx, func() { interruptRead(f); close(interrupted) })
	defer func() {
		if !stop() {
			<-interrupted
			resumeRead(f) // the pipe may be shared with what runs next
		}
	}()
	return f.Read(p)
}

// Find looks a program up like execvp: a name with a slash is a path, another
// is searched in PATH. The error is fs.ErrNotExist or fs.ErrPermission.
func (s *Shell) Find(p Proc, name string) (string, error) {
	v := s.Tree.As(p.User.UID, p.User.GID)
	if strings.Contains(name, "/") {
		file := abs(p.Dir, name)
		return file, runnable(v, file)
	}
	if name == "" {
		return "", fs.ErrNotExist
	}
	err := fs.ErrNotExist
	for dir := range strings.SplitSeq(p.Env["PATH"], ":") {
		file := path.Join(abs(p.Dir, dir), name)
		switch e := runnable(v, file); {
		case e == nil:
			return file, nil
		case errors.Is(e, fs.ErrPermission):
			err = fs.ErrPermission
		}
	}
	return "", err
}

func runnable(v *tree.View, file string) error {
	fi, err := v.Stat(file)
	if err != nil {
		return err
	}
	if fi.IsDir() {
		return fs.ErrPermission
	}
	return v.Access(file, 1)
}

// Exec runs one program and gives its exit code.
func (s *Shell) Exec(ctx context.Context, p Proc, argv []string) int {
	if p.Stdout == nil {
		p.Stdout = io.Discard
	}
	if p.Stderr == nil {
		p.Stderr = io.Discard
	}
	file, err := s.Find(p, argv[0])
	switch {
	case errors.Is(err, fs.ErrPermission):
		fmt.Fprintf(p.Stderr, "sh: 1: %s: Permission denied\n", argv[0])
		return 126
	case err != nil:
		fmt.Fprintf(p.Stderr, "sh: 1: %s: not found\n", argv[0])
		return 127
	}
	line, err := s.firstLine(file)
	if err != nil {
		fmt.Fprintf(p.Stderr, "sh: 1: %s: %s\n", argv[0], why(err))
		return 126
	}
	bang, ok := strings.CutPrefix(line, "#!")
	if !ok {
		if strings.ContainsRune(line, 0) {
			fmt.Fprintf(p.Stderr, "sh: 1: %s: Exec format error\n", argv[0])
			return 126
		}
		return s.script(ctx, p, file, argv)
	}
	word, rest, _ := strings.Cut(strings.TrimSpace(bang), " ")
	rest = strings.TrimSpace(rest)
	s.mu.Lock()
	tool := s.programs[word]
	if word == "hl-lab-tool" {
		tool = s.tools[rest]
	}
	s.mu.Unlock()
	if tool != nil {
		c := &Call{Proc: p, Argv: argv, File: file, Rest: rest, sh: s}
		return tool(ctx, c)
	}
	if strings.HasPrefix(word, "/") {
		if path.Base(word) == "env" {
			word, rest, _ = strings.Cut(rest, " ")
		}
		switch path.Base(word) {
		case "sh", "bash", "dash":
			return s.script(ctx, p, file, argv, strings.Fields(rest)...)
		}
	}
	fmt.Fprintf(p.Stderr, "sh: 1: %s: %s: bad interpreter: No such file or directory\n", argv[0], word)
	return 126
}

func (s *Shell) firstLine(file string) (string, error) {
	f, err := s.Tree.Super().OpenFile(file, os.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, 256)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.TrimRight(line, "\n"), nil
}

func (s *Shell) script(ctx context.Context, p Proc, file string, argv []string, opts ...string) int {
	b, err := s.Tree.As(p.User.UID, p.User.GID).ReadFile(file)
	if err != nil {
		fmt.Fprintf(p.Stderr, "sh: 0: cannot open %s: %s\n", file, why(err))
		return 126
	}
	p.Args = append([]string{argv[0]}, argv[1:]...)
	return s.Run(ctx, p, string(b), opts...)
}
