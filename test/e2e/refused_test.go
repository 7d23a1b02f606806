//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/homeiac/homelab/lab/pve"
)

// What a host lacks is refused before any change on that guest, with what is
// needed and what there is; the others are done.
func TestWhatAHostLacksIsRefusedBeforeAnyChange(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	good := l.edited(l.spec, oneServer)
	for _, c := range []struct {
		name       string
		spec       string
		fault      []string
		want, mend []string
	}{
		{
			name: "the bridge is not there",
			spec: l.edited(good, func(d doc) { at(d, "hosts", "pve2", "bridges")["lan"] = "vmbr9" }),
			want: []string{"vmbr9 is not there", "pve2", "vmbr0 (up)", "hosts.pve2.bridges.lan"},
		},
		{
			name: "the bridge is down", spec: good,
			fault: []string{"bridge-down", "pve2/vmbr0"}, mend: []string{"bridge-down", "pve2/vmbr0", "off"},
			want: []string{"vmbr0", "pve2", "down"},
		},
		{
			name: "too little memory",
			spec: l.edited(good, func(d doc) { at(d, "guests", "k3s-2")["memory"] = "64GiB" }),
			want: []string{"pve2", "64 GiB", "16 GiB"},
		},
		{
			name: "the storage is full", spec: good,
			fault: []string{"storage-full", "pve2/local-zfs"}, mend: []string{"storage-full", "pve2/local-zfs", "off"},
			want: []string{"pve2", "local-zfs", "8 GiB"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := l.in(t)
			if c.fault != nil {
				l.fault(c.fault[0], c.fault[1], c.fault[2:]...)
				defer func() { l.fault(c.mend[0], c.mend[1], c.mend[2:]...) }()
			}
			before := len(l.calls())
			a := l.mustApply(c.spec, 3)
			text := a.notes("refused", "k3s-2")
			for _, w := range c.want {
				if !strings.Contains(text, w) {
					t.Errorf("the refusal does not name %q: %s\n%s", w, text, a)
				}
			}
			for _, call := range l.calls()[before:] {
				if call.Host == "pve2" {
					t.Errorf("something was called on pve2: %q", call.Argv)
				}
			}
			for _, s := range a.steps() {
				if strings.Contains(s, "/pve2/") {
					t.Errorf("step %s was begun", s)
				}
			}
			if v := l.volumes("pve2"); len(v) > 0 {
				t.Errorf("there are volumes on pve2: %q", v)
			}
			l.mustBeHealthy("k3s-1", "k3s-3")
		})
	}
	l.mustApply(good, 0)
	l.mustBeHealthy(names(3)...)
}

// A guest made by hand is never touched: not one with another name, not one
// with a managed guest's name, not one at a managed guest's VMID.
func TestGuestsMadeByHandAreNeverTouched(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{hosts: 4})
	spec := l.edited(l.spec, oneServer)
	l.qm("pve1", "create", "900", "--name", "mine", "--memory", "512", "--scsi0", "local:1", "--onboot", "0")
	l.qm("pve2", "create", "901", "--name", "k3s-2", "--memory", "512", "--scsi0", "local-zfs:1")
	l.qm("pve3", "create", "203", "--name", "other", "--memory", "512", "--scsi0", "local-lvm:1")
	l.qm("pve1", "start", "900")
	mine := map[string]string{}
	for _, c := range l.confs() {
		mine[c.host+"/"+c.vmid] = c.text
	}
	if len(mine) != 3 {
		t.Fatalf("made by hand: %v", mine)
	}
	untouched := func() {
		t.Helper()
		now := map[string]string{}
		for _, c := range l.confs() {
			now[c.host+"/"+c.vmid] = c.text
		}
		for where, text := range mine {
			if now[where] != text {
				t.Errorf("VM %s was changed.\nbefore:\n%s\nnow:\n%s", where, text, now[where])
			}
		}
		for _, c := range l.calls() {
			for _, vmid := range []string{"900", "901", "203"} {
				if !c.byHand() && c.mutating() && strings.Contains(strings.Join(c.Argv[1:], " ")+" ", " "+vmid+" ") {
					t.Errorf("somebody called %q", c.Argv)
				}
			}
		}
	}
	a := l.mustApply(spec, 3)
	if text := a.notes("refused", "k3s-2"); !strings.Contains(text, "901") {
		t.Errorf("the VM with k3s-2's name is refused by its VMID: %q\n%s", text, a)
	}
	if text := a.notes("refused", "k3s-3"); !strings.Contains(text, "203") {
		t.Errorf("the VM at k3s-3's VMID is refused: %q\n%s", text, a)
	}
	l.mustBeHealthy("k3s-1", "k3s-4")
	untouched()
	if again := l.mustApply(spec, 3); again.summary.MutatingCalls != 0 {
		t.Errorf("the same again changed something\n%s", again)
	}
	untouched()
	if out := l.qm("pve1", "status", "900"); strings.TrimSpace(out) != "status: running" {
		t.Errorf("VM 900: %s", out)
	}
}

// unnumbered leaves the VMIDs of guests to the planner.
func unnumbered(d doc) {
	for name := range at(d, "guests") {
		delete(at(d, "guests", name), "vmid")
	}
}

// The VMIDs of containers, of VMs of others and of guests on silent hosts are
// not given to guests that name none.
func TestVMIDsInUseAnywhereAreNotTaken(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{hosts: 4})
	spec := l.edited(l.spec, func(d doc) {
		oneServer(d)
		unnumbered(d)
		delete(at(d, "guests"), "k3s-4")
	})
	container := l.path("pmxcfs/nodes/pve2/lxc/201.conf")
	if err := os.WriteFile(container, []byte("arch: amd64\nhostname: dns\nmemory: 256\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := pve.Refresh(l.path("pmxcfs")); err != nil {
		t.Fatal(err)
	}
	l.qm("pve4", "create", "203", "--name", "other", "--memory", "512")
	l.mustApply(spec, 0)
	for i, want := range []string{"202", "204", "205"} {
		if c := l.confOf(fmt.Sprintf("k3s-%d", i+1)); c.vmid != want {
			t.Errorf("%s has VMID %s, the lowest free one is %s", c.name, c.vmid, want)
		}
	}
	l.fault("host-off", "pve3")
	l.awaitState("pve3", "silent", 10*time.Second)
	more := l.edited(spec, func(d doc) {
		at(d, "guests")["k3s-4"] = doc{"host": "pve4", "networks": []any{doc{"network": "lan", "ip": l.net + ".104/24"}}, "k3s": doc{"role": "agent"}}
	})
	l.mustApply(more, 3)
	if c := l.confOf("k3s-4"); c.vmid != "206" {
		t.Errorf("k3s-4 has VMID %s, the lowest free one is 206", c.vmid)
	}
	l.mustBeHealthy("k3s-1", "k3s-2", "k3s-4")
	if now, err := os.ReadFile(container); err != nil || !strings.Contains(string(now), "hostname: dns") {
		t.Errorf("the container: %v %s", err, now)
	}
}

func TestAColdStandbyIsMadeAndNotStarted(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	spec := l.edited(l.spec, func(d doc) {
		oneServer(d)
		at(d, "guests", "k3s-2")["state"] = "stopped"
		at(d, "guests", "k3s-2")["onboot"] = false
	})
	l.mustApply(spec, 0)
	l.mustBeHealthy("k3s-1", "k3s-3")
	g := l.guests()["k3s-2"]
	if g.Health != "standby" || g.Power == nil || *g.Power != "stopped" {
		t.Errorf("the standby: %+v", g)
	}
	l.mustChangeNothing(spec)
	for _, c := range l.calls() {
		if c.Host == "pve2" && len(c.Argv) > 1 && c.Argv[1] == "start" {
			t.Errorf("the standby was started: %q", c.Argv)
		}
	}
	l.mustBeClean("k3s-1")
}

func TestAGuestWithAnAddressOutsideItsSubnetStopsBeforeTheJoin(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	spec := l.edited(l.spec, func(d doc) {
		oneServer(d)
		at(d, "networks")["other"] = doc{"subnet": "10.77.0.0/24"}
		at(d, "hosts", "pve3", "bridges")["other"] = "vmbr0"
		at(d, "guests", "k3s-3")["networks"] = []any{"other"} // DHCP gives it one of the lab's
	})
	a := l.mustApply(spec, 3)
	text := a.failures()
	if !strings.Contains(text, "boot/pve3/k3s-3") || !strings.Contains(text, "10.77.0.0/24") || !strings.Contains(text, l.net+".") {
		t.Errorf("the failure names the address and the subnet: %s\n%s", text, a)
	}
	for _, s := range a.steps() {
		if s == "join/pve3/k3s-3" {
			t.Error("it was joined all the same")
		}
	}
	if _, err := os.Stat(l.guestFiles("k3s-3") + "/etc/rancher"); err == nil {
		t.Error("k3s was put into the guest")
	}
	l.mustBeHealthy("k3s-1", "k3s-2")
}
