package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// scene is one command of the tour with the exit code that it must end with.
type scene struct {
	say  string
	argv []string // "hlctl" or "hl-lab" first
	exit int
	// want must stand in what the command prints.
	want string
	// until repeats the command while want is not printed: for what takes seconds to be noticed.
	until time.Duration
}

// Tour shows the main job from nothing: a cluster is made, the second apply
// does nothing, a host is switched off and the third apply says so. It prints
// each command with what it printed, and returns an error when one did not do
// what it should. Nothing is left running, and dir is removed.
func Tour(ctx context.Context, bin string, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "hl-tour")
	if err != nil {
		return err
	}
	start := time.Now()
	t := &tour{dir: dir, bin: bin, out: out}
	defer func() {
		err = errors.Join(err, t.end(err != nil))
	}()
	fmt.Fprintf(out, "A datacenter of five simulated Proxmox hosts, in %s.\n\n", dir)
	lab := []string{"hl-lab", "--dir", dir}
	spec := filepath.Join(dir, "homelab.yaml")
	scenes := []scene{
		{say: "Start it:", argv: []string{"hl-lab", "up", "--dir", dir, "--hosts", "5", "--detach"}, want: "ready"},
		{say: "Who is there? The controller found them by gossip.", argv: t.hlctl("hosts"), want: "online"},
		{say: "What would be done?", argv: t.hlctl("plan", "-f", spec), exit: 2},
		{say: "Do it:", argv: t.hlctl("apply", "-f", spec, "--yes")},
		{say: "The guests, and the cluster they made:", argv: t.hlctl("guests"), want: "healthy"},
		{argv: t.hlctl("k3s", "members"), want: "k3s-3"},
		{say: "The same command again does nothing:", argv: t.hlctl("apply", "-f", spec, "--yes"), want: "nothing to do"},
		{say: "One host loses its power ...", argv: []string{lab[0], "fault", lab[1], lab[2], "host-off", "pve5"}},
		{argv: t.hlctl("hosts"), want: "silent", until: 15 * time.Second},
		{say: "... the others are looked after, and the exit code 3 says partial:", argv: t.hlctl("apply", "-f", spec, "--yes"), exit: 3, want: "silent since"},
		{say: "It is back: nothing to type but the same command.", argv: []string{lab[0], "fault", lab[1], lab[2], "host-on", "pve5", "20m"}},
		{argv: t.hlctl("hosts"), want: "pve5  online", until: 20 * time.Second},
		{argv: t.hlctl("apply", "-f", spec, "--yes"), want: "nothing to do", until: 30 * time.Second},
	}
	for _, s := range scenes {
		if err := t.play(ctx, s); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "That is the tour: %.0f s. README.md says how to go on.\n", time.Since(start).Seconds())
	return nil
}

type tour struct {
	dir, bin string
	out      io.Writer
}

func (t *tour) hlctl(args ...string) []string {
	return append([]string{"hlctl", "--config", filepath.Join(t.dir, "hlctl.yaml")}, args...)
}

// play runs one scene and prints it as a terminal would show it.
func (t *tour) play(ctx context.Context, s scene) error {
	if s.say != "" {
		fmt.Fprintf(t.out, "# %s\n", s.say)
	}
	line := strings.Join(s.argv, " ")
	fmt.Fprintf(t.out, "$ %s\n", line)
	deadline := time.Now().Add(s.until)
	for {
		text, code, err := t.run(ctx, s.argv)
		ok := err == nil && code == s.exit && strings.Contains(squeeze(text), squeeze(s.want))
		switch {
		case ok:
			fmt.Fprintln(t.out, text)
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", line, err)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case s.until == 0 || time.Now().After(deadline):
			fmt.Fprintln(t.out, text)
			return fmt.Errorf("%s: exit %d (expected %d), and it should have printed %q", line, code, s.exit, s.want)
		}
		time.Sleep(300 * time.Millisecond)
	}
}

// squeeze makes runs of blanks one, so that a table's width does not matter.
func squeeze(s string) string { return strings.Join(strings.Fields(s), " ") }

func (t *tour) run(ctx context.Context, argv []string) (text string, code int, err error) {
	cmd := exec.CommandContext(ctx, filepath.Join(t.bin, argv[0]), argv[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return out.String(), exit.ExitCode(), nil
	}
	return out.String(), 0, err
}

// end stops the lab and removes its folder; after a failure it is kept to be
// looked at.
func (t *tour) end(failed bool) error {
	l, err := Open(t.dir)
	if err == nil {
		err = l.Down()
	}
	if failed {
		fmt.Fprintf(t.out, "The lab's files and logs are kept in %s.\n", t.dir)
		return err
	}
	return errors.Join(err, removeAll(t.dir))
}

// removeAll removes a lab's folder, in which guests have made folders that
// cannot be written.
func removeAll(dir string) error {
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}
