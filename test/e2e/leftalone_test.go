//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/homeiac/homelab/lab/pve"
)

// manageByHA puts a VM under Proxmox HA, or takes it out with VMID "".
func (l *lab) manageByHA(vmid string) {
	l.t.Helper()
	file := l.path("pmxcfs/ha/resources.cfg")
	text := ""
	if vmid != "" {
		text = "vm: " + vmid + "\n\tstate stopped\n"
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o640); err != nil {
		l.t.Fatal(err)
	}
	if err := pve.Refresh(l.path("pmxcfs")); err != nil {
		l.t.Fatal(err)
	}
}

// A guest that is unwell, and would be made anew, is left as it is when something
// on it or beside it says that it must be; the reason is told. So is the standby.
func TestAnUnwellGuestThatMustNotBeDestroyedIsRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{hosts: 4})
	spec := l.hasty(l.spec, oneServer, func(d doc) {
		delete(at(d, "guests", "k3s-3"), "vmid")             // the Spec may protect no VMID that it gives itself
		at(d, "hosts", "pve2", "storage")["disks"] = "local" // the lab clones with links there only
		at(d, "guests", "k3s-4")["state"] = "stopped"
		at(d, "guests", "k3s-4")["onboot"] = false
	})
	l.mustApply(spec, 0)
	l.mustBeHealthy("k3s-1", "k3s-2", "k3s-3")
	id := l.confOf("k3s-3").vmid
	standby := l.keep("204")
	l.qm("pve3", "stop", id)
	for _, c := range []struct {
		name     string
		spec     string
		do, undo func(l *lab)
		want     []string
		// unnamed says that naming it would confirm its destruction.
		unnamed bool
	}{
		{
			name: "it is in the Spec's protect list",
			spec: l.edited(spec, func(d doc) { d["protect"] = []any{203} }),
			want: []string{"VM " + id, "protect list"},
		},
		{
			name: "its protection flag is set",
			do:   func(l *lab) { l.qm("pve3", "set", id, "--protection", "1") },
			undo: func(l *lab) { l.qm("pve3", "set", id, "--protection", "0") },
			want: []string{"protection flag", "qm set " + id + " --protection 0"},
		},
		{
			name: "Proxmox HA manages it",
			do:   func(l *lab) { l.manageByHA(id) },
			undo: func(l *lab) { l.manageByHA("") },
			want: []string{"managed by Proxmox HA", "ha-manager remove vm:" + id},
		},
		{
			name:    "it has snapshots",
			do:      func(l *lab) { l.qm("pve3", "snapshot", id, "before-upgrade") },
			undo:    func(l *lab) { l.qm("pve3", "delsnapshot", id, "before-upgrade") },
			want:    []string{"snapshots (before-upgrade)", "--destroy k3s-3"},
			unnamed: true,
		},
		{
			name: "a clone of it carries its mark and its name",
			do:   func(l *lab) { l.qm("pve3", "clone", id, "950", "--name", "k3s-3", "--full", "1") },
			undo: func(l *lab) { l.qm("pve3", "destroy", "950") },
			want: []string{"VM 950", "a clone"},
		},
		{
			name: "another VM was given its name",
			do:   func(l *lab) { l.qm("pve2", "create", "951", "--name", "k3s-3", "--scsi0", "local-zfs:1") },
			undo: func(l *lab) { l.qm("pve2", "destroy", "951") },
			want: []string{"VM 951 on pve2", "k3s-3"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := l.in(t)
			if c.do != nil {
				c.do(l)
				defer c.undo(l)
			}
			if c.spec == "" {
				c.spec = spec
			}
			all := []string{id, "204", "950", "951"}
			before := l.keep(all...)
			a := l.mustApply(c.spec, 3)
			l.mustTouchNothing(a)
			text := a.notes("refused", "k3s-3")
			for _, w := range append(c.want, "stopped") {
				if !strings.Contains(text, w) {
					t.Errorf("the refusal does not say %q: %s\n%s", w, text, a)
				}
			}
			if !c.unnamed { // not by its name either
				l.mustTouchNothing(l.mustDo(3, "guests", "recreate", "k3s-3", "--destroy", "k3s-3"))
			}
			l.mustBeAsBefore(before, c.name, all...)
		})
	}
	l.mustDo(0, "guests", "start", "k3s-3")
	l.mustBeHealthy("k3s-1", "k3s-2", "k3s-3")
	if g := l.guests()["k3s-4"]; g.Health != "standby" {
		t.Errorf("the standby: %+v", g)
	}
	t.Run("a linked clone stands on it", func(t *testing.T) { linkedCloneStands(l.in(t), spec) })
	l.mustBeAsBefore(standby, "after all that", "204")
}

// linkedCloneStands makes a template of k3s-2, as a person might by mistake.
func linkedCloneStands(l *lab, spec string) {
	l.qm("pve2", "stop", "202")
	l.qm("pve2", "template", "202")
	l.qm("pve2", "clone", "202", "952", "--name", "copy")
	stands := func(words ...string) {
		l.t.Helper()
		before := l.keep("202", "952")
		a := l.mustApply(spec, 3)
		l.mustTouchNothing(a)
		for _, w := range words {
			if text := a.notes("refused", "k3s-2"); !strings.Contains(text, w) {
				l.t.Errorf("the refusal does not say %q: %s\n%s", w, text, a)
			}
		}
		for _, operation := range []string{"recreate", "delete"} {
			l.mustTouchNothing(l.mustDo(3, "guests", operation, "k3s-2", "--destroy", "k3s-2"))
		}
		l.mustBeAsBefore(before, "a linked clone stands on it", "202", "952")
	}
	stands("VM 202 was made a template")
	l.qm("pve2", "set", "202", "--template", "0") // its clone stands on its disk all the same
	stands("other VMs stand on its disks", "952", "copy")
}

// A locked VM is waited for, with the lock named, and is left alone when the lock
// stays.
func TestALockedGuestIsWaitedForAndThenLeftAlone(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{hosts: 2})
	spec := l.hasty(l.spec)
	l.mustApply(spec, 0)
	l.qm("pve2", "stop", "202")
	l.qm("pve2", "set", "202", "--lock", "backup")
	before := l.keep("202")
	began := time.Now()
	a := l.mustApply(spec, 3)
	l.mustTouchNothing(a)
	l.mustTell(a, "VM 202 is locked (backup)")
	if took := time.Since(began); took < 30*time.Second {
		t.Errorf("it was waited for %s only", took)
	}
	waited := false
	for _, e := range a.events {
		waited = waited || e.Kind == "waiting" && strings.Contains(e.Text, "locked")
	}
	if !waited {
		t.Errorf("it does not say that it waits\n%s", a)
	}
	l.mustBeAsBefore(before, "while it was locked", "202")
	l.qm("pve2", "unlock", "202")
	l.mustDo(0, "guests", "start", "k3s-2")
	l.mustBeHealthy("k3s-1", "k3s-2")
}
