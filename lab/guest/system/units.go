package system

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/homeiac/homelab/lab/guest/shell"
)

// unit is one service and what became of it.
type unit struct {
	name string

	// Guarded by units.mu.
	state    string // inactive, activating, active, deactivating, failed
	sub      string // dead, start, running, exited, auto-restart, failed
	result   string // success, exit-code
	exit     int
	since    time.Time
	pid      int
	restarts int
	run      *serviceRun
	kill     context.CancelCauseFunc // of the running process, nil without one
}

// serviceRun is one life of a unit, from its start job to its stop, through all
// automatic restarts.
type serviceRun struct {
	stop  context.CancelCauseFunc
	done  chan struct{} // closed at its end
	hurry chan struct{} // a start job cuts the wait for the next restart short

	// Guarded by units.mu.
	started chan struct{} // closed when the present attempt is up or has failed
	err     error         // of the attempt that closed it
}

// units is the guest's systemd.
type units struct {
	o   *OS
	ctx context.Context

	mu  sync.Mutex
	all map[string]*unit
	pid int
	wg  sync.WaitGroup
}

func newUnits(ctx context.Context, o *OS) *units {
	return &units{o: o, ctx: ctx, all: map[string]*unit{}, pid: 600}
}

func (us *units) getLocked(name string) *unit {
	u := us.all[name]
	if u == nil {
		u = &unit{name: name, state: "inactive", sub: "dead", result: "success", since: time.Now()}
		us.all[name] = u
	}
	return u
}

// status is a snapshot.
func (us *units) status(name string) unit {
	us.mu.Lock()
	defer us.mu.Unlock()
	return *us.getLocked(name)
}

func (us *units) set(u *unit, state, sub string) {
	us.mu.Lock()
	defer us.mu.Unlock()
	u.state, u.sub, u.since = state, sub, time.Now()
}

// errJobFailed is a start that did not get the service up.
var errJobFailed = errors.New("the control process exited with error code")

// start runs a start job and waits until the unit is up or has failed. A unit
// that is up is left alone. When ctx ends the job goes on without a waiter.
func (us *units) start(ctx context.Context, name string) error {
	if _, err := readUnit(us.o.FS(), name); err != nil {
		return err
	}
	us.mu.Lock()
	u := us.getLocked(name)
	if u.run != nil {
		select {
		case <-u.run.done:
			u.run = nil
		default:
		}
	}
	if us.ctx.Err() != nil {
		us.mu.Unlock()
		return errors.New("the system is going down")
	}
	if u.run == nil {
		rctx, cancel := context.WithCancelCause(us.ctx)
		u.run = &serviceRun{stop: cancel, done: make(chan struct{}), hurry: make(chan struct{}, 1), started: make(chan struct{})}
		u.restarts = 0
		us.wg.Add(1)
		go us.live(rctx, u, u.run)
	} else if u.sub == "auto-restart" {
		// A new attempt now, and its outcome is the job's.
		u.run.started = make(chan struct{})
		select {
		case u.run.hurry <- struct{}{}:
		default:
		}
	}
	run, started := u.run, u.run.started
	us.mu.Unlock()
	select {
	case <-started:
		us.mu.Lock()
		defer us.mu.Unlock()
		return run.err
	case <-run.done:
		return errJobFailed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stop ends a unit and waits for it.
func (us *units) stop(ctx context.Context, name string) error {
	us.mu.Lock()
	u := us.getLocked(name)
	run := u.run
	if run == nil {
		if u.state != "failed" {
			u.state, u.sub = "inactive", "dead"
		}
		us.mu.Unlock()
		return nil
	}
	select {
	case <-run.done:
	default:
		u.state, u.sub = "deactivating", "stop-sigterm"
	}
	us.mu.Unlock()
	run.stop(shell.Killed(15))
	select {
	case <-run.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// kill ends the unit's present process; what follows is up to Restart=.
func (us *units) kill(name string) error {
	us.mu.Lock()
	defer us.mu.Unlock()
	u := us.getLocked(name)
	if u.kill == nil {
		return errors.New("No process to kill") //nolint:staticcheck // systemd's own text
	}
	u.kill(shell.Killed(9))
	return nil
}

func (us *units) log(name, text string) { us.o.journal.add(name, "systemd", 1, text) }

// live is the life of a unit.
func (us *units) live(ctx context.Context, u *unit, run *serviceRun) {
	defer us.wg.Done()
	defer close(run.done)
	var starts []time.Time
	for {
		starts = append(starts, time.Now())
		up, code := us.attempt(ctx, u, run)
		f, err := readUnit(us.o.FS(), u.name)
		stopped := ctx.Err() != nil
		again := err == nil && !stopped && (f.restart == "always" || f.restart == "on-failure" && code != 0)
		if n := len(starts); n >= startBurst && starts[n-1].Sub(starts[n-startBurst]) < startInterval && f != nil && f.restartWait < 2*time.Second {
			us.log(u.name, u.name+": Start request repeated too quickly.")
			again = false
		}
		us.mu.Lock()
		u.exit, u.since = code, time.Now()
		u.result = "success"
		if code != 0 && !stopped {
			u.result = "exit-code"
		}
		if !up {
			us.finishLocked(run, errJobFailed)
		}
		switch {
		case again:
			u.state, u.sub = "activating", "auto-restart"
		case stopped || code == 0 && !restarts(f):
			u.state, u.sub = "inactive", "dead"
		default:
			u.state, u.sub = "failed", "failed"
		}
		u.pid = 0
		us.mu.Unlock()
		what := u.name
		if f != nil && f.description != "" {
			what = u.name + " - " + f.description
		}
		if stopped {
			us.log(u.name, u.name+": Deactivated successfully.")
			us.log(u.name, "Stopped "+what+".")
			return
		}
		if code != 0 {
			us.log(u.name, fmt.Sprintf("%s: Main process exited, code=exited, status=%d/FAILURE", u.name, code))
			us.log(u.name, u.name+": Failed with result 'exit-code'.")
			if !up {
				us.log(u.name, "Failed to start "+what+".")
			}
		}
		if !again {
			return
		}
		wait := f.restartWait
		if us.o.m.Settings.RestartMs >= 0 {
			wait = ms(us.o.m.Settings.RestartMs)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-run.hurry:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			us.set(u, "inactive", "dead")
			us.log(u.name, "Stopped "+what+".")
			return
		}
		us.mu.Lock()
		u.restarts++
		n := u.restarts
		us.mu.Unlock()
		us.log(u.name, fmt.Sprintf("%s: Scheduled restart job, restart counter is at %d.", u.name, n))
	}
}

// restarts tells a service that is not meant to end, however it ends.
func restarts(f *unitFile) bool { return f != nil && f.restart == "always" }

func (us *units) setKill(u *unit, kill context.CancelCauseFunc) {
	us.mu.Lock()
	defer us.mu.Unlock()
	u.kill = kill
}

// finishLocked ends the start job of the present attempt.
func (us *units) finishLocked(run *serviceRun, err error) {
	select {
	case <-run.started:
	default:
		run.err = err
		close(run.started)
	}
}

// A unit that starts this often in this time is given up, as systemd's defaults
// have it.
const (
	startBurst    = 5
	startInterval = 10 * time.Second
)

type notifyKey struct{}

// Notify tells systemd that the service is ready (sd_notify READY=1). Outside
// a service it does nothing.
func Notify(ctx context.Context) {
	if f, ok := ctx.Value(notifyKey{}).(func()); ok {
		f()
	}
}

// attempt runs the unit's program once. It tells whether the unit was up.
func (us *units) attempt(ctx context.Context, u *unit, run *serviceRun) (up bool, code int) {
	f, err := readUnit(us.o.FS(), u.name)
	if err != nil {
		us.log(u.name, "Failed to load: "+err.Error())
		return false, 1
	}
	what := u.name
	if f.description != "" {
		what = u.name + " - " + f.description
	}
	for _, c := range f.condition {
		if _, err := us.o.FS().Stat(c); err != nil {
			us.log(u.name, what+" was skipped because of an unmet condition check (ConditionPathExists="+c+").")
			us.mu.Lock()
			us.finishLocked(run, nil)
			us.mu.Unlock()
			return true, 0
		}
	}
	us.mu.Lock()
	us.pid += 7
	pid := us.pid
	u.state, u.sub, u.since, u.pid = "activating", "start", time.Now(), pid
	us.mu.Unlock()
	us.log(u.name, "Starting "+what+"...")
	env, err := f.environment(us.o.FS())
	if err != nil {
		us.log(u.name, u.name+": Failed to load environment files: "+err.Error())
		return false, 1
	}
	if len(f.start) == 0 {
		us.log(u.name, u.name+": Service has no ExecStart=. Refusing.")
		return false, 1
	}
	out := &lineWriter{line: func(s string) { us.o.journal.add(u.name, path.Base(f.start[0]), pid, s) }}
	defer out.flush()
	p := shell.Proc{User: shell.Root, Dir: "/", Env: env, Stdout: out, Stderr: out}
	for _, pre := range f.pre {
		us.o.Shell.Exec(ctx, p, pre) // "-": its code does not matter
	}
	var once sync.Once
	ready := func() {
		once.Do(func() {
			us.mu.Lock()
			u.state, u.sub, u.since = "active", "running", time.Now()
			up = true
			us.finishLocked(run, nil)
			us.mu.Unlock()
			us.log(u.name, "Started "+what+".")
		})
	}
	if f.kind != "notify" && f.kind != "oneshot" {
		ready()
	}
	if us.ctx.Err() == nil {
		pctx, kill := context.WithCancelCause(ctx)
		us.setKill(u, kill)
		code = us.o.Shell.Exec(context.WithValue(pctx, notifyKey{}, ready), p, f.start)
		if pctx.Err() != nil && ctx.Err() == nil {
			code = shell.Signal(pctx)
		}
		us.setKill(u, nil)
		kill(nil)
	}
	if f.kind == "oneshot" && code == 0 {
		ready()
		if f.remain {
			us.set(u, "active", "exited")
			<-ctx.Done()
		}
	}
	us.mu.Lock()
	defer us.mu.Unlock()
	return up, code
}

// enable links the unit into the boot.
func (us *units) enable(name string) (link string, err error) {
	f, err := readUnit(us.o.FS(), name)
	if err != nil {
		return "", err
	}
	if len(f.wantedBy) == 0 {
		return "", nil
	}
	link = path.Join(wantsDir, name)
	if err := us.o.FS().MkdirAll(wantsDir, 0o755); err != nil {
		return "", err
	}
	if _, err := us.o.FS().Lstat(link); err == nil {
		return "", nil
	}
	return link, us.o.FS().Symlink(f.path, link)
}

func (us *units) disable(name string) error {
	err := us.o.FS().Remove(path.Join(wantsDir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (us *units) enabled(name string) string {
	if _, err := us.o.FS().Lstat(path.Join(wantsDir, name)); err == nil {
		return "enabled"
	}
	f, err := readUnit(us.o.FS(), name)
	if err != nil {
		return ""
	}
	if len(f.wantedBy) == 0 {
		return "static"
	}
	return "disabled"
}

// wanted lists the units of the boot.
func (us *units) wanted() []string {
	es, err := us.o.FS().ReadDir(wantsDir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range es {
		if strings.HasSuffix(e.Name(), ".service") {
			out = append(out, e.Name())
		}
	}
	return out
}

// settle waits for all units after their context has ended.
func (us *units) settle() {
	us.mu.Lock()
	n := len(us.all) // whoever starts a unit after this sees the ended context
	us.mu.Unlock()
	if n > 0 {
		us.wg.Wait()
	}
}

// stopAll ends every unit, as a shutdown does.
func (us *units) stopAll(ctx context.Context) {
	us.mu.Lock()
	var names []string
	for n, u := range us.all {
		if u.run != nil {
			names = append(names, n)
		}
	}
	us.mu.Unlock()
	var wg sync.WaitGroup
	for _, n := range names {
		wg.Go(func() { _ = us.stop(ctx, n) })
	}
	wg.Wait()
}
