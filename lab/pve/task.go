package pve

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// task runs work as a task: with a UPID, a log, and its place in active while
// it runs. The output of work, both streams, goes to the program's stdout and
// to the log. Its error comes back with exit code 255.
func (r *run) task(typ, id string, work func(*run) error) error {
	pid := os.Getpid()
	start := r.clock.Now().Unix()
	upid := fmt.Sprintf("UPID:%s:%08X:%08X:%08X:%s:%s:root@pam:", r.cfg.NodeName, pid, r.processStart(pid), start, typ, id)
	r.upid = upid
	logPath := r.taskLog(upid)
	if err := os.MkdirAll(filepath.Dir(logPath), 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	defer log.Close()
	if err := r.setActive(upid, ""); err != nil {
		return err
	}
	t := *r
	both := io.MultiWriter(lenient{r.out}, log)
	t.out, t.warn, t.inTask, t.warnings = both, both, true, new(int)
	err = work(&t)
	r.upid = upid
	status, last := "OK", "TASK OK\n"
	switch {
	case err != nil:
		status = strings.TrimRight(err.Error(), "\n")
		last = "\nTASK ERROR: " + status + "\n"
		status, _, _ = strings.Cut(status, "\n")
	case *t.warnings > 0:
		status = fmt.Sprintf("WARNINGS: %d", *t.warnings)
		last = "\nTASK " + status + "\n"
	}
	fmt.Fprint(log, last)
	if aerr := r.setActive(upid, status); aerr != nil {
		return aerr
	}
	if err == nil && *t.warnings > 0 {
		fmt.Fprintf(r.stderr, "Task finished with %d warning(s)!\n", *t.warnings)
	}
	if err != nil {
		return fail(255, "%s", strings.TrimRight(err.Error(), "\n"))
	}
	return nil
}

// lenient drops what cannot be written: a task goes on when nobody reads.
type lenient struct{ w io.Writer }

func (l lenient) Write(p []byte) (int, error) {
	_, _ = l.w.Write(p)
	return len(p), nil
}

// taskWarn counts a warning of the running task.
func (r *run) taskWarn(format string, a ...any) {
	r.printf("WARN: "+format+"\n", a...)
	if r.warnings != nil {
		*r.warnings++
	}
}

func (h *Host) taskLog(upid string) string {
	start := strings.Split(upid, ":")[4]
	return h.path("var/log/pve/tasks", start[len(start)-1:], upid)
}

// processStart is the start time of a process in clock ticks since boot: field
// 22 of its stat. With its pid it names a process for good.
func (h *Host) processStart(pid int) int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, after, ok := bytes.Cut(data, []byte(") "))
	fields := bytes.Fields(after)
	if !ok || len(fields) < 20 {
		return 0
	}
	n, _ := strconv.ParseInt(string(fields[19]), 10, 64)
	return n
}

// activeTask is one line of the file active.
type activeTask struct {
	upid   string
	saved  bool // written to index
	end    string
	status string
}

func (a activeTask) running() bool { return a.end == "" }

func (a activeTask) pid() (pid int, start int64) {
	f := strings.Split(a.upid, ":")
	if len(f) < 5 {
		return 0, 0
	}
	p, _ := strconv.ParseInt(f[2], 16, 64)
	s, _ := strconv.ParseInt(f[3], 16, 64)
	return int(p), s
}

func (a activeTask) String() string {
	if a.running() {
		return a.upid + " 0\n"
	}
	return fmt.Sprintf("%s 1 %s %s\n", a.upid, a.end, a.status)
}

// maxActive is how many finished tasks active keeps.
const maxActive = 25

// setActive records the start (status "") or the end of a task, and buries
// tasks whose process is gone.
func (h *Host) setActive(upid, status string) error {
	dir := h.path("var/log/pve/tasks")
	unlock, err := lockFile(filepath.Join(dir, ".active.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	list, err := h.activeTasks()
	if err != nil {
		return err
	}
	end := fmt.Sprintf("%08X", h.clock.Now().Unix())
	var ended []activeTask
	list = slices.DeleteFunc(list, func(a activeTask) bool { return a.upid == upid })
	for i, a := range list {
		pid, start := a.pid()
		if a.running() && (pid != os.Getpid() && h.processStart(pid) != start || h.processStart(pid) == 0) {
			list[i].end, list[i].status, list[i].saved = end, "unexpected status", true
			ended = append(ended, list[i])
		}
	}
	me := activeTask{upid: upid}
	if status != "" {
		me.end, me.status, me.saved = end, status, true
		ended = append(ended, me)
	}
	list = append([]activeTask{me}, list...)
	var b strings.Builder
	finished := 0
	for _, a := range list {
		if !a.running() {
			if finished++; finished > maxActive {
				continue
			}
		}
		b.WriteString(a.String())
	}
	if err := replaceFile(filepath.Join(dir, "active"), []byte(b.String()), 0o644); err != nil {
		return err
	}
	return appendIndex(filepath.Join(dir, "index"), ended)
}

func (h *Host) activeTasks() ([]activeTask, error) {
	data, err := os.ReadFile(h.path("var/log/pve/tasks/active"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var list []activeTask
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSpace(line), " ", 4)
		a := activeTask{upid: f[0]}
		if len(f) == 4 {
			a.saved, a.end, a.status = f[1] == "1", f[2], f[3]
		}
		list = append(list, a)
	}
	return list, nil
}

func appendIndex(path string, ended []activeTask) error {
	if len(ended) == 0 {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	for _, a := range ended {
		_, werr := fmt.Fprintf(f, "%s %s %s\n", a.upid, a.end, a.status)
		err = errors.Join(err, werr)
	}
	return errors.Join(err, f.Close())
}
