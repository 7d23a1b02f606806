package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// scenario is one of the demo's stories, in a lab of its own that is made from
// nothing.
type scenario struct {
	name  string
	says  string // what it shows
	hosts int
	play  func(d *demo, ctx context.Context) error
}

var scenarios = []scenario{
	{"stuck-vm", "a server that was stopped, paused, hangs or crashed is made anew and joins again", 3, (*demo).stuckVM},
	{"new-node", "a host and a guest are added, nothing else is touched", 3, (*demo).newNode},
	{"second-run", "the same apply again changes nothing", 5, (*demo).secondRun},
	{"api-closed", "an expired API certificate and a closed port 8006 make no difference", 3, (*demo).apiClosed},
	{"join", "guests become a cluster of the pinned version, and the token stays secret", 3, (*demo).joinCluster},
}

func demoCommand() *cobra.Command {
	var list strings.Builder
	for _, s := range scenarios {
		fmt.Fprintf(&list, "  %-11s %s\n", s.name, s.says)
	}
	return &cobra.Command{
		Use: "demo [NAME...]", Short: "Show the validation scenarios from nothing, and check each",
		Long: "demo plays scenarios, each in a lab of its own, and prints a table of how they ended.\n\n" + list.String(),
		RunE: func(cmd *cobra.Command, args []string) error {
			bin, err := ownFolder()
			if err != nil {
				return err
			}
			return Demo(cmd.Context(), bin, cmd.OutOrStdout(), args...)
		},
	}
}

// Demo plays the scenarios of those names, or all, with the programs in bin, and
// prints a table. It returns an error when one did not do what it should.
func Demo(ctx context.Context, bin string, out io.Writer, names ...string) error {
	var chosen []scenario
	for _, name := range names {
		i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })
		if i < 0 {
			return fmt.Errorf("no scenario %q; hl-lab demo --help lists them", name)
		}
		chosen = append(chosen, scenarios[i])
	}
	if len(names) == 0 {
		chosen = scenarios
	}
	fmt.Fprintf(out, "%-11s %-6s %6s\n", "NAME", "RESULT", "TIME")
	failed := 0
	for _, s := range chosen {
		start := time.Now()
		err := s.run(ctx, bin)
		result := "ok"
		if err != nil {
			result = "FAILED"
			failed++
		}
		fmt.Fprintf(out, "%-11s %-6s %4.0f s\n", s.name, result, time.Since(start).Seconds())
		if err != nil {
			fmt.Fprintf(out, "    %s\n", strings.ReplaceAll(err.Error(), "\n", "\n    "))
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d scenarios failed", failed, len(chosen))
	}
	return nil
}

// run plays one scenario. After a failure its lab's folder is kept.
func (s scenario) run(ctx context.Context, bin string) (err error) {
	dir, err := os.MkdirTemp("", "hl-demo")
	if err != nil {
		return err
	}
	d := &demo{dir: dir, bin: bin}
	defer func() {
		l, oerr := Open(dir)
		if oerr == nil {
			oerr = l.Down()
		}
		if err != nil {
			err = fmt.Errorf("%w\nthe lab's files and logs are kept in %s", errors.Join(err, oerr), dir)
			return
		}
		err = errors.Join(oerr, removeAll(dir))
	}()
	if err := d.up(ctx, s.hosts); err != nil {
		return err
	}
	return s.play(d, ctx)
}

// demo is a scenario's lab.
type demo struct {
	*Lab
	dir, bin string
}

// demoTick is how often learners are promoted: k3s's own 15 s would be most of the
// time of every scenario.
const demoTick = 500 * time.Millisecond

// up starts the lab with that many hosts, or adds to it.
func (d *demo) up(ctx context.Context, hosts int) error {
	r, err := d.call(ctx, "hl-lab", "up", "--dir", d.dir, "--hosts", strconv.Itoa(hosts), "--learner-tick", demoTick.String(), "--detach")
	if err == nil && r.exit != 0 {
		err = r.unexpected(0)
	}
	if err != nil {
		return err
	}
	d.Lab, err = Open(d.dir)
	return err
}

// called is what a program did.
type called struct {
	argv           []string
	stdout, stderr string
	exit           int
}

// unexpected is the error of a command that should have ended otherwise.
func (c called) unexpected(exit int) error {
	return fmt.Errorf("%s: exit %d, expected %d\n%s%s", strings.Join(c.argv, " "), c.exit, exit, c.stdout, c.stderr)
}

// commandLimit bounds each of the demo's commands.
const commandLimit = 5 * time.Minute

func (d *demo) call(ctx context.Context, program string, args ...string) (called, error) {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, program), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	c := called{argv: append([]string{program}, args...), stdout: stdout.String(), stderr: stderr.String()}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		c.exit, err = exit.ExitCode(), nil
	}
	if err != nil {
		return c, fmt.Errorf("%s: %w", strings.Join(c.argv, " "), err)
	}
	return c, nil
}

// hlctl runs hlctl, which must end with that exit code.
func (d *demo) hlctl(ctx context.Context, exit int, args ...string) (called, error) {
	c, err := d.call(ctx, "hlctl", append([]string{"--config", d.path("hlctl.yaml")}, args...)...)
	if err == nil && c.exit != exit {
		err = c.unexpected(exit)
	}
	return c, err
}

func (d *demo) spec() string { return d.path("homelab.yaml") }

// apply makes what the Spec says.
func (d *demo) apply(ctx context.Context, spec string) (called, error) {
	return d.hlctl(ctx, 0, "apply", "-f", spec, "--yes")
}

// ask reads what hlctl prints as JSON.
func ask[T any](ctx context.Context, d *demo, args ...string) (T, error) {
	var v T
	c, err := d.hlctl(ctx, 0, append(args, "-o", "json")...)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal([]byte(c.stdout), &v); err != nil {
		return v, fmt.Errorf("%s: %w", strings.Join(c.argv, " "), err)
	}
	return v, nil
}

type guestLine struct {
	Name   string `json:"name"`
	Health string `json:"health"`
	Reason string `json:"reason"`
}

type memberLine struct {
	Name    string `json:"name"`
	Voter   bool   `json:"voter"`
	Healthy bool   `json:"healthy"`
}

// settle waits until all n guests are healthy and the servers among them are the
// cluster's voters, all healthy, and nobody else.
func (d *demo) settle(ctx context.Context, n int) error {
	last := errors.New("nothing was seen")
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(300 * time.Millisecond) {
		if last = d.whole(ctx, n); last == nil || ctx.Err() != nil {
			break
		}
	}
	return last
}

func (d *demo) whole(ctx context.Context, n int) error {
	guests, err := ask[[]guestLine](ctx, d, "guests")
	if err != nil {
		return err
	}
	if len(guests) != n {
		return fmt.Errorf("there are %d guests, not %d", len(guests), n)
	}
	for _, g := range guests {
		if g.Health != "healthy" {
			return fmt.Errorf("guest %s is %s: %s", g.Name, g.Health, g.Reason)
		}
	}
	members, err := ask[[]memberLine](ctx, d, "k3s", "members")
	if err != nil {
		return err
	}
	have := 0
	for _, m := range members {
		if m.Voter && !m.Healthy {
			return fmt.Errorf("member %s is not healthy", m.Name)
		}
		if m.Voter {
			have++
		}
	}
	if have != servers(n) {
		return fmt.Errorf("the cluster has %d voters, not %d", have, servers(n))
	}
	return nil
}

// programCall is a line of calls.jsonl.
type programCall struct {
	Host string   `json:"host"`
	Argv []string `json:"argv"`
}

func (c programCall) String() string {
	return fmt.Sprintf("%s: %s %s", c.Host, filepath.Base(c.Argv[0]), strings.Join(c.Argv[1:], " "))
}

// calls are all calls of simulated programs so far.
func (d *demo) calls() ([]programCall, error) {
	data, err := os.ReadFile(d.path("calls.jsonl"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []programCall
	for line := range strings.Lines(string(data)) {
		var c programCall
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			return nil, fmt.Errorf("calls.jsonl: %w", err)
		}
		if len(c.Argv) > 0 {
			list = append(list, c)
		}
	}
	return list, nil
}

// looks are the calls that change nothing.
var looks = []string{
	"qm list", "qm status", "qm config", "qm pending", "qm showcmd", "qm listsnapshot", "pvesm status", "pvesm list", "pvesm path", "pvesh get", "pveversion",
}

func (c programCall) changes() bool {
	text := filepath.Base(c.Argv[0]) + " " + strings.Join(c.Argv[1:], " ")
	return !slices.ContainsFunc(looks, func(l string) bool { return strings.HasPrefix(text+" ", l+" ") })
}
