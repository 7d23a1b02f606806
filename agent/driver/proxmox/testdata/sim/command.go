package main

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"sync"
)

// commands are what the guest agent was asked to run: on this machine, without
// harm, as the tests choose them.
var commands running

type running struct {
	mu   sync.Mutex
	last int
	all  map[int]*command
}

type command struct {
	done     chan struct{}
	out, err bytes.Buffer
	cmd      *exec.Cmd
}

// answer is what a guest agent says to guest-exec and guest-exec-status. What became
// of a command it tells once.
func (r *running) answer(question string, arguments json.RawMessage) any {
	var a struct {
		PID  int      `json:"pid"`
		Path string   `json:"path"`
		Arg  []string `json:"arg"`
		In   []byte   `json:"input-data"`
	}
	_ = json.Unmarshal(arguments, &a)
	r.mu.Lock()
	defer r.mu.Unlock()
	if question == "guest-exec" {
		c := &command{done: make(chan struct{}), cmd: exec.Command(a.Path, a.Arg...)}
		c.cmd.Stdout, c.cmd.Stderr, c.cmd.Stdin = &c.out, &c.err, bytes.NewReader(a.In)
		go func() {
			_ = c.cmd.Run()
			close(c.done)
		}()
		if r.all == nil {
			r.all = map[int]*command{}
		}
		r.last++
		r.all[r.last] = c
		return map[string]any{"pid": r.last}
	}
	c := r.all[a.PID]
	if c == nil {
		return map[string]any{"exited": true, "exitcode": 255}
	}
	select {
	case <-c.done:
	default:
		return map[string]any{"exited": false}
	}
	delete(r.all, a.PID)
	return map[string]any{"exited": true, "exitcode": c.cmd.ProcessState.ExitCode(), "out-data": c.out.Bytes(), "err-data": c.err.Bytes()}
}
