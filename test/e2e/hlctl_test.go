//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// What hlctl -o json prints; the names are its contract.
type (
	hostDoc struct {
		Name    string  `json:"name"`
		State   string  `json:"state"`
		Since   *string `json:"since"`
		Address string  `json:"address"`
		Version string  `json:"version"`
	}
	guestDoc struct {
		Name      string   `json:"name"`
		Host      string   `json:"host"`
		VMID      *int     `json:"vmid"`
		UUID      string   `json:"uuid"`
		Power     *string  `json:"power"`
		Health    string   `json:"health"`
		Reason    string   `json:"reason"`
		Addresses []string `json:"addresses"`
	}
	memberDoc struct {
		Name    string `json:"name"`
		ID      string `json:"id"`
		Guest   string `json:"guest"`
		Role    string `json:"role"`
		Voter   bool   `json:"voter"`
		Learner bool   `json:"learner"`
		Healthy bool   `json:"healthy"`
	}
	stepDoc struct {
		ID     string `json:"id"`
		Action string `json:"action"`
		Guest  string `json:"guest"`
		Host   string `json:"host"`
		Reason string `json:"reason"`
		VMID   *int   `json:"vmid"`
	}
	noteDoc struct {
		Kind  string `json:"kind"`
		Guest string `json:"guest"`
		Host  string `json:"host"`
		Text  string `json:"text"`
	}
	planDoc struct {
		Digest string    `json:"digest"`
		Steps  []stepDoc `json:"steps"`
		Notes  []noteDoc `json:"notes"`
	}
	callDoc struct {
		Program  string   `json:"program"`
		Args     []string `json:"args"`
		Exit     int      `json:"exit"`
		Seconds  float64  `json:"seconds"`
		Mutating bool     `json:"mutating"`
		Error    string   `json:"error"`
	}
	eventDoc struct {
		Time  string   `json:"time"`
		Run   int64    `json:"run"`
		Kind  string   `json:"kind"`
		Step  string   `json:"step"`
		Guest string   `json:"guest"`
		Host  string   `json:"host"`
		Phase string   `json:"phase"`
		Text  string   `json:"text"`
		Note  string   `json:"note"`
		Call  *callDoc `json:"call"`
	}
	summaryDoc struct {
		Done          int     `json:"done"`
		Failed        int     `json:"failed"`
		Skipped       int     `json:"skipped"`
		Refused       int     `json:"refused"`
		Unchanged     int     `json:"unchanged"`
		MutatingCalls int     `json:"mutatingCalls"`
		Seconds       float64 `json:"seconds"`
	}
)

// decode reads the JSON of a command that ended with exit.
func decode[T any](l *lab, exit int, r result) T {
	l.t.Helper()
	var v T
	if r.exit != exit {
		l.t.Fatalf("exit %d expected\n%s", exit, r)
	}
	if err := json.Unmarshal([]byte(r.stdout), &v); err != nil {
		l.t.Fatalf("%v\n%s", err, r)
	}
	return v
}

func (l *lab) hosts() map[string]hostDoc {
	l.t.Helper()
	byName := map[string]hostDoc{}
	for _, h := range decode[[]hostDoc](l, 0, l.hlctl("hosts", "-o", "json")) {
		byName[h.Name] = h
	}
	return byName
}

func (l *lab) guests() map[string]guestDoc {
	l.t.Helper()
	byName := map[string]guestDoc{}
	for _, g := range decode[[]guestDoc](l, 0, l.hlctl("guests", "-o", "json")) {
		byName[g.Name] = g
	}
	return byName
}

func (l *lab) members() []memberDoc {
	l.t.Helper()
	return decode[[]memberDoc](l, 0, l.hlctl("k3s", "members", "-o", "json"))
}

// plan is hlctl plan -o json with its exit code.
func (l *lab) plan(spec string) (planDoc, int) {
	l.t.Helper()
	r := l.hlctl("plan", "-f", spec, "-o", "json")
	var p planDoc
	if err := json.Unmarshal([]byte(r.stdout), &p); err != nil {
		l.t.Fatalf("%v\n%s", err, r)
	}
	return p, r.exit
}

// applied is what one hlctl apply --yes -o json left.
type applied struct {
	exit    int
	events  []eventDoc
	summary *summaryDoc // nil when there was no end
	stderr  string
	took    time.Duration
}

// String is the apply as a failed test shows it: its notes and what failed.
func (a applied) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "hlctl apply: exit %d after %.1f s\n", a.exit, a.took.Seconds())
	if a.summary != nil {
		fmt.Fprintf(&b, "  summary %+v\n", *a.summary)
	}
	for _, e := range a.events {
		switch e.Kind {
		case "note", "step-failed", "step-skipped", "waiting", "run-ended":
			fmt.Fprintf(&b, "  %s %s %s %s %s %s\n", e.Kind, e.Note, e.Step, e.Guest, e.Host, e.Text)
		}
	}
	fmt.Fprintf(&b, "  stderr: %s", a.stderr)
	return b.String()
}

// notes are the texts of an apply's notes of one kind about one guest.
func (a applied) notes(kind, guest string) string {
	var texts []string
	for _, e := range a.events {
		if e.Kind == "note" && e.Note == kind && e.Guest == guest {
			texts = append(texts, e.Text)
		}
	}
	return strings.Join(texts, "\n")
}

// steps are the ids of the steps that the apply began.
func (a applied) steps() []string {
	var ids []string
	for _, e := range a.events {
		if e.Kind == "step-started" {
			ids = append(ids, e.Step)
		}
	}
	return ids
}

// failures are the texts of the steps that failed.
func (a applied) failures() string {
	var texts []string
	for _, e := range a.events {
		if e.Kind == "step-failed" {
			texts = append(texts, e.Step+": "+e.Text)
		}
	}
	return strings.Join(texts, "\n")
}

// applying is an apply at work.
type applying struct {
	l      *lab
	cmd    *exec.Cmd
	cancel context.CancelFunc
	ctx    context.Context
	began  time.Time
	done   chan struct{}
	stderr bytes.Buffer
	out    applied
	err    error
}

// startApply starts hlctl apply --yes -o json; on is told each event, on a
// goroutine of its own, and may be nil.
func (l *lab) startApply(config, spec string, on func(eventDoc)) *applying {
	l.t.Helper()
	return l.startRun(config, on, "apply", "-f", spec)
}

// startRun starts any command of hlctl that carries out a plan.
func (l *lab) startRun(config string, on func(eventDoc), args ...string) *applying {
	l.t.Helper()
	a := &applying{l: l, began: time.Now(), done: make(chan struct{})}
	a.ctx, a.cancel = context.WithTimeout(context.Background(), commandLimit)
	argv := append(append(l.network(), filepath.Join(bin, "hlctl"), "--config", config), args...)
	a.cmd = exec.CommandContext(a.ctx, argv[0], append(argv[1:], "--yes", "-o", "json")...)
	a.cmd.Stderr = &a.stderr
	stdout, err := a.cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := a.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	go func() {
		defer close(a.done)
		a.err = a.read(stdout, on)
		err := a.cmd.Wait()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			a.err = errors.Join(a.err, err)
		}
		a.out.exit, a.out.stderr, a.out.took = a.cmd.ProcessState.ExitCode(), a.stderr.String(), time.Since(a.began)
	}()
	return a
}

func (a *applying) read(stdout io.Reader, on func(eventDoc)) error {
	lines := bufio.NewReader(stdout)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // a killed hlctl leaves half a line
		}
		if err != nil {
			return err
		}
		var doc struct {
			eventDoc
			Summary *summaryDoc `json:"summary"`
		}
		if err := json.Unmarshal(line, &doc); err != nil {
			return fmt.Errorf("%w: %s", err, line)
		}
		if doc.Summary != nil {
			a.out.summary = doc.Summary
			continue
		}
		a.out.events = append(a.out.events, doc.eventDoc)
		if on != nil {
			on(doc.eventDoc)
		}
	}
}

// wait waits for the end of the apply.
func (a *applying) wait() applied {
	a.l.t.Helper()
	defer a.cancel()
	<-a.done
	if a.ctx.Err() != nil {
		a.l.t.Fatalf("apply did not end within %s\n%s", commandLimit, a.out)
	}
	if a.err != nil {
		a.l.t.Fatalf("%v\n%s", a.err, a.out)
	}
	return a.out
}

// kill is kill -9 of hlctl.
func (a *applying) kill() { _ = a.cmd.Process.Signal(syscall.SIGKILL) }

func (l *lab) apply(spec string) applied {
	l.t.Helper()
	return l.startApply(l.config, spec, nil).wait()
}

// mustApply applies and wants the exit code.
func (l *lab) mustApply(spec string, exit int) applied {
	l.t.Helper()
	a := l.apply(spec)
	if a.exit != exit {
		l.t.Fatalf("exit %d expected\n%s", exit, a)
	}
	if a.summary == nil {
		l.t.Fatalf("no summary\n%s", a)
	}
	return a
}

// mustChangeNothing applies and wants nothing to be done, nor any program be called.
func (l *lab) mustChangeNothing(spec string) applied {
	l.t.Helper()
	before := len(l.calls())
	a := l.mustApply(spec, 0)
	if n := a.summary.MutatingCalls; n != 0 || a.summary.Done != 0 {
		l.t.Errorf("the second apply did something: %d mutating calls\n%s\nsteps %q", n, a, a.steps())
	}
	for _, c := range l.calls()[before:] {
		if !c.byHand() {
			l.t.Errorf("the second apply called %s: %q", c.Host, c.Argv)
		}
	}
	return a
}

// mustBeHealthy wants exactly the guests named to be healthy and running.
func (l *lab) mustBeHealthy(names ...string) {
	l.t.Helper()
	guests := l.guests()
	for _, name := range names {
		g := guests[name]
		if g.Health != "healthy" || g.Power == nil || *g.Power != "running" {
			l.t.Errorf("%s is not healthy: %+v", name, g)
		}
	}
	for name, g := range guests {
		if g.Health == "healthy" && !slices.Contains(names, name) {
			l.t.Errorf("%s is healthy and should not be: %+v", name, g)
		}
	}
}

// agreeOnALeader waits until guests are healthy again whose leader may just have gone.
func (l *lab) agreeOnALeader(names ...string) {
	l.t.Helper()
	l.eventually(20*time.Second, fmt.Sprintf("%s to be healthy", names), func() (bool, string) {
		guests := l.guests()
		for _, name := range names {
			if g := guests[name]; g.Health != "healthy" {
				return false, name + ": " + g.Reason
			}
		}
		return true, ""
	})
}

// awaitState waits until hlctl hosts shows a host in a state.
func (l *lab) awaitState(host, state string, limit time.Duration) hostDoc {
	l.t.Helper()
	var h hostDoc
	l.eventually(limit, host+" "+state, func() (bool, string) {
		h = l.hosts()[host]
		return h.State == state, fmt.Sprintf("%+v", h)
	})
	return h
}

// names are k3s-1..n.
func names(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("k3s-%d", i+1)
	}
	return list
}
