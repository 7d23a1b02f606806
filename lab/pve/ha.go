package pve

import (
	"errors"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
)

// What stands here about Proxmox HA is from its documentation and sources; nothing
// of it was recorded. There is no manager: what a request asks for is done at once.

const haResources = "ha/resources.cfg"

var haSection = regexp.MustCompile(`^(vm|ct):\s*(\d+)\s*$`)

// haStates gives the state that HA is to keep each guest in, by "vm:100".
func (h *Host) haStates() (map[string]string, error) {
	data, err := os.ReadFile(h.path("etc/pve", haResources))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	states, at := map[string]string{}, ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, " \r\n")
		if m := haSection.FindStringSubmatch(line); m != nil {
			at = m[1] + ":" + m[2]
			states[at] = "started"
			continue
		}
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "state "); ok && at != "" {
			states[at] = strings.TrimSpace(v)
		}
	}
	return states, nil
}

// haManaged says whether HA looks after a VM, and whether it is named there at all.
func (r *run) haManaged(vmid string) (managed, configured bool, err error) {
	states, err := r.haStates()
	state, configured := states["vm:"+vmid]
	return configured && state != "ignored", configured, err
}

// haRequest hands the start or stop of a VM that HA looks after to HA: done says
// that it was one.
func (r *run) haRequest(what, vmid string, do func(*run) error) (done bool, err error) {
	managed, _, err := r.haManaged(vmid)
	if err != nil || !managed || r.inTask {
		return false, err
	}
	return true, r.task("ha"+what, vmid, func(t *run) error {
		t.printf("Requesting HA %s for VM %s\n", what, vmid)
		if err := t.setHA(vmid, map[string]string{"start": "started", "stop": "stopped"}[what]); err != nil {
			return err
		}
		return t.quietly(func(q *run) error { return q.withLock(vmid, func() error { return do(q) }) })
	})
}

// setHA writes the state of a VM; "" takes the VM out.
func (r *run) setHA(vmid, state string) error {
	data, err := os.ReadFile(r.path("etc/pve", haResources))
	if err != nil {
		return err
	}
	var out []string
	mine := false
	for line := range strings.Lines(string(data)) {
		if m := haSection.FindStringSubmatch(strings.TrimRight(line, " \r\n")); m != nil {
			if mine = m[1] == "vm" && m[2] == vmid; mine && state != "" {
				out = append(out, line, "\tstate "+state+"\n")
				continue
			}
		}
		if mine && (state == "" || strings.HasPrefix(strings.TrimSpace(line), "state ")) {
			continue
		}
		out = append(out, line)
	}
	return r.writePVE(haResources, []byte(strings.Join(out, "")))
}

// purge takes a VM out of what else names it: HA and backup jobs.
func (r *run) purge(vmid string) error {
	if _, configured, err := r.haManaged(vmid); err != nil {
		return err
	} else if configured {
		if err := r.setHA(vmid, ""); err != nil {
			return err
		}
	}
	data, err := os.ReadFile(r.path("etc/pve/jobs.cfg"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var out strings.Builder
	for line := range strings.Lines(string(data)) {
		if ids, ok := strings.CutPrefix(strings.TrimSpace(line), "vmid "); ok {
			list := slices.DeleteFunc(strings.Split(ids, ","), func(id string) bool { return strings.TrimSpace(id) == vmid })
			line = "\tvmid " + strings.Join(list, ",") + "\n"
		}
		out.WriteString(line)
	}
	return r.writePVE("jobs.cfg", []byte(out.String()))
}
