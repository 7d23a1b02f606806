//go:build e2e

package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// cut is a moment in the work of qm at which somebody dies.
type cut struct {
	name, victim, guest string
	qm                  string // how its arguments begin, with VMID for the guest's
	// when is asked again and again while qm runs; nil is at once.
	when func(l *lab, guest portrait) bool
}

var cuts = map[string][]cut{
	"driver": {
		{"qm disk move runs", "driver", "k3s-2", "disk move VMID", nil},
		{"qm destroy runs", "driver", "k3s-3", "destroy VMID", nil},
		{"qm create runs", "driver", "k3s-2", "create VMID", nil},
	},
	"qm": {
		{"qm destroy starts", "qm", "k3s-2", "destroy VMID", nil},
		{"qm disk move starts", "qm", "k3s-3", "disk move VMID", nil},
		{"qm create starts", "qm", "k3s-2", "create VMID", nil},
	},
	"qm in the middle": {
		{"qm destroy has freed all volumes", "qm", "k3s-3", "destroy VMID", locked},
		{"qm destroy has freed a volume", "qm", "k3s-2", "destroy VMID", fewerVolumes},
	},
}

func (l *lab) confFile(p portrait) string {
	return l.host(p.host, "etc/pve/qemu-server", p.vmid+".conf")
}

func locked(l *lab, p portrait) bool {
	text, _ := os.ReadFile(l.confFile(p))
	return bytes.Contains(text, []byte("lock: destroyed"))
}

func fewerVolumes(l *lab, p portrait) bool {
	_, err := os.Stat(l.volumeFile(p.host, map[string]string{"pve2": "local-zfs:", "pve3": "local-lvm:"}[p.host]+"vm-"+p.vmid+"-cloudinit"))
	return os.IsNotExist(err)
}

// qmProcess finds a qm of a host by how its arguments begin.
func (l *lab) qmProcess(host, arguments string) int {
	begin := []byte(l.host(host, "usr/sbin/qm") + "\x00" + strings.ReplaceAll(arguments, " ", "\x00") + "\x00")
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && bytes.Contains(text, begin) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			return pid
		}
	}
	return 0
}

// With the driver or qm itself killed while qm works on a recreation, the next
// applies finish it: the data is there, the others are untouched.
func TestKilledWhileQMWorksOnARecreation(t *testing.T) {
	t.Parallel()
	for name, list := range cuts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, options{real: true})
			spec := l.edited(l.impatient(names(3)...), oneServer)
			l.mustApply(spec, 0)
			for _, guest := range names(3) {
				l.writeData(guest)
			}
			for _, c := range list {
				l.cutOff(spec, c)
				if t.Failed() {
					t.Fatalf("after %s was killed when %s", c.victim, c.name)
				}
			}
		})
	}
}

func (l *lab) cutOff(spec string, c cut) {
	l.t.Helper()
	before, rest := l.portrait(c.guest), l.still(l.others(c.guest)...)
	arguments := strings.ReplaceAll(c.qm, "VMID", before.vmid)
	l.qm(before.host, "stop", before.vmid)
	driver := l.killer(l.driverPID(before.host))
	a := l.startApply(l.config, spec, nil)
	pid := 0
	for over := false; pid == 0 && !over; pid = l.qmProcess(before.host, arguments) {
		select {
		case <-a.done:
			over = true
		case <-time.After(2 * time.Millisecond):
		}
	}
	if pid == 0 {
		l.t.Fatalf("qm %s was never called\n%s", arguments, a.wait())
	}
	hit := c.when == nil
	for limit := time.Now().Add(15 * time.Second); !hit && time.Now().Before(limit) && syscall.Kill(pid, 0) == nil; {
		// It is let go on in tiny steps, so that the moment is not missed.
		_ = syscall.Kill(pid, syscall.SIGSTOP)
		if hit = c.when(l, before); !hit {
			_ = syscall.Kill(pid, syscall.SIGCONT)
			time.Sleep(50 * time.Microsecond)
		}
	}
	if c.victim == "qm" {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	} else {
		driver()
	}
	l.up()
	out := a.wait()
	tries := l.convergeWithin(spec, 60*time.Second, c.victim+" killed when "+c.name)
	l.t.Logf("%s killed when %s (met: %v) of %s: that apply ended with %d after %.1f s; %d more", c.victim, c.name, hit, c.guest, out.exit, out.took.Seconds(), tries)
	before.mustBeMadeAnew(l, c.guest, true)
	l.mustHoldData(names(3)...)
	l.mustHoldNoHolder()
	l.mustBeStill(rest, l.others(c.guest)...)
	l.mustBeHealthy(names(3)...)
	l.mustBeClean("k3s-1")
	l.mustChangeNothing(spec)
}

// A qm disk move that dies right after it renamed the volume leaves a configuration
// that names what is not there. Such a guest is left to a person with all that it
// has; when the volume has its name back, it is made anew with its data.
func TestADataDiskThatIsNotWhereItShouldBeStopsARecreation(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	spec := l.edited(l.impatient("k3s-2"), oneServer)
	l.mustApply(spec, 0)
	l.writeData("k3s-2")
	before, rest := l.portrait("k3s-2"), l.still("k3s-1", "k3s-3")
	l.qm("pve2", "stop", before.vmid)
	config, file := l.confOf("k3s-2").text, l.dataFile("k3s-2")
	astray := filepath.Join(filepath.Dir(file), "vm-299-disk-0")
	if err := os.Rename(file, astray); err != nil {
		t.Fatal(err)
	}
	a := l.mustApply(spec, 3)
	if text := a.failures(); !strings.Contains(text, "detach/pve2/k3s-2") || !strings.Contains(text, "does not exist") {
		t.Errorf("it is said which volume is missing: %q\n%s", text, a)
	}
	for _, s := range a.steps() {
		if strings.HasPrefix(s, "destroy/") || strings.HasPrefix(s, "create/") {
			t.Errorf("%s was begun", s)
		}
	}
	if now := l.confOf("k3s-2").text; now != config {
		t.Errorf("k3s-2 was changed:\n%s", now)
	}
	if err := os.Rename(astray, file); err != nil {
		t.Fatal(err)
	}
	l.mustApply(spec, 0)
	before.mustBeMadeAnew(l, "k3s-2", false)
	l.mustHoldData("k3s-2")
	l.mustHoldNoHolder()
	l.mustBeStill(rest, "k3s-1", "k3s-3")
	l.mustBeHealthy(names(3)...)
	l.mustBeClean("k3s-1")
	l.mustChangeNothing(spec)
}
