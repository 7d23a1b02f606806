package proxmox

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/homeiac/homelab/agent/driver/proxmox/args"
)

// work is a program that runs, or ran. It may outlive this process; its record in
// the state folder is how the next one finds it, also in the half second before qm
// has registered a task with Proxmox.
type work struct {
	call                 args.Call
	base, stdout, stderr string
	pid, start           int64
	done                 chan struct{} // closed when out is there
	out                  output
}

// workRecord is what is written of a work.
type workRecord struct {
	VMID  int32  `json:"vmid"`
	Other int32  `json:"other,omitempty"` // a second VM that it works on
	PID   int64  `json:"pid"`
	Start int64  `json:"start"` // clock ticks since boot, against reuse of the pid
	Call  string `json:"call"`
}

// vmids are the VMs that the program works on.
func (r workRecord) vmids() []int32 {
	if r.Other == 0 {
		return []int32{r.VMID}
	}
	return []int32{r.VMID, r.Other}
}

func (d *Driver) calls() string { return filepath.Join(d.state, "calls") }

// record writes the record. A crash right before it leaves a qm that nobody knows
// of, which its task and its lock still show.
func (w *work) record() {
	data, err := json.Marshal(workRecord{VMID: w.call.VMID, Other: w.call.Other, PID: w.pid, Start: w.start, Call: words(w.call)})
	if err == nil {
		_ = os.WriteFile(w.base+".run", data, 0o600)
	}
}

// forget removes the record and the output files.
func (w *work) forget() {
	for _, suffix := range []string{".run", ".out", ".err"} {
		_ = os.Remove(w.base + suffix)
	}
}

// records reads the records of programs on a VMID (0: of all) that still run.
func (d *Driver) records(vmid int32) []workRecord {
	entries, err := os.ReadDir(d.calls())
	if err != nil {
		return nil
	}
	var alive []workRecord
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".run") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(d.calls(), e.Name()))
		var r workRecord
		if err != nil || json.Unmarshal(data, &r) != nil || vmid != 0 && !slices.Contains(r.vmids(), vmid) {
			continue
		}
		if d.alive(r.PID, r.Start) {
			alive = append(alive, r)
		}
	}
	return alive
}

// sweepCalls removes what programs of an earlier process left: those that have
// ended since, and outputs that nobody waits for any more. What a guest printed may
// be among them, and be a secret.
func (d *Driver) sweepCalls() {
	entries, err := os.ReadDir(d.calls())
	if err != nil {
		return
	}
	for _, e := range entries {
		path := filepath.Join(d.calls(), e.Name())
		if base, ok := strings.CutSuffix(path, ".run"); ok {
			data, err := os.ReadFile(path)
			var r workRecord
			if err == nil && json.Unmarshal(data, &r) == nil && !d.alive(r.PID, r.Start) {
				(&work{base: base}).forget()
			}
			continue
		}
		info, err := e.Info()
		if err == nil && (time.Since(info.ModTime()) > 24*time.Hour || !d.waitedFor(path)) {
			_ = os.Remove(path)
		}
	}
}

// waitedFor tells whether an output file may still be read: its program has a
// record, or the process that began it lives, whose id is in the file's name.
func (d *Driver) waitedFor(path string) bool {
	if there, err := exists(strings.TrimSuffix(path, filepath.Ext(path)) + ".run"); there || err != nil {
		return true
	}
	parts := strings.Split(filepath.Base(path), "-")
	if len(parts) != 3 {
		return false
	}
	pid, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil {
		return false
	}
	_, alive := d.startTime(pid)
	return alive
}
