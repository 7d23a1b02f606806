package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"time"
)

// fault is one way of breaking the lab.
type fault struct {
	target string // what TARGET is, for --help
	does   string
	inject func(l *Lab, target string, values []string) error
}

// defaultOnbootDelay is how long a host takes from power-on to the start of its guests.
const defaultOnbootDelay = time.Second

var faults = map[string]fault{
	"host-off":         {"HOST", "take the power away: nothing answers, nothing is reset", (*Lab).faultHostOff},
	"host-on":          {"HOST", "switch it on again [UPTIME [ONBOOT-DELAY]], 0s and 1s unless said", (*Lab).faultHostOn},
	"agent-kill":       {"HOST", "kill -9 the agent; the host lives on", (*Lab).faultAgentKill},
	"agent-start":      {"HOST", "start the agent again", (*Lab).faultAgentStart},
	"controller-kill":  {"controller-N", "kill -9 a controller", (*Lab).faultControllerKill},
	"controller-start": {"controller-N", "start it again", (*Lab).faultControllerStart},
	"guest-stop":       {"GUEST", "qm stop, as an administrator would", (*Lab).faultGuestStop},
	"guest-pause":      {"GUEST", "qm suspend, as an administrator would (off: qm resume)", (*Lab).faultGuestPause},
	"guest-hang":       {"GUEST", "guest agent, SSH and k3s mute, QMP says running (off: it goes on)", (*Lab).faultGuestHang},
	"kvm-hang":         {"GUEST", "the kvm process hangs, its monitor too (off: it goes on)", (*Lab).faultKVMHang},
	"guest-crash":      {"GUEST", "kill -9 the kvm process", (*Lab).faultGuestCrash},
	"ssh-refuse":       {"GUEST", "its SSH port refuses, all else goes on (off: it listens again)", (*Lab).faultSSHRefuse},
	"ssh-filter":       {"GUEST", "connecting to its SSH port times out (off: it answers again)", (*Lab).faultSSHFilter},
	"ssh-wrong":        {"GUEST", "another machine answers there, and notes what it is told in DIR/impostors/GUEST.jsonl (off: gone)", (*Lab).faultSSHWrong},
	"k3s-silent":       {"GUEST", "its k3s API and etcd client port time out (off: they answer again)", (*Lab).faultK3sSilent},
	"bridge-down":      {"HOST/BRIDGE", "the bridge goes down (off: up again)", (*Lab).faultBridgeDown},
	"storage-full":     {"HOST/STORAGE", "something else fills the storage (off: it is emptied)", (*Lab).faultStorageFull},
	"storage-off":      {"HOST/STORAGE", "the storage is not there (off: it comes back as it was)", (*Lab).faultStorageOff},
	"qm-hang":          {"HOST", "qm, pvesm and pvesh hang (off: they go on with what they were told)", (*Lab).faultQMHang},
	"qm-fail":          {"HOST", "what of qm changes a VM fails at once, or one [VERB] of it (off: it works again)", (*Lab).faultQMFail},
	"pve-cluster-down": {"HOST", "pmxcfs is gone: /etc/pve is empty (off: it is back)", (*Lab).faultPVEClusterDown},
	"clock-skew":       {"HOST", "its clock is off by DURATION, as 3s or -1h (off: right again)", (*Lab).faultClockSkew},
	"api-close":        {"HOST", "port 8006 is closed (off: open again)", (*Lab).faultAPIClose},
}

// FaultKinds lists the faults with what they do, for --help.
func FaultKinds() []string {
	var list []string
	for kind, f := range faults {
		list = append(list, fmt.Sprintf("%-17s %-13s %s", kind, f.target, f.does))
	}
	sort.Strings(list)
	return list
}

// Fault breaks something, or with the value off mends it.
func (l *Lab) Fault(kind, target string, values ...string) error {
	f, ok := faults[kind]
	if !ok {
		return fmt.Errorf("no fault %q; there are:\n  %s", kind, strings.Join(FaultKinds(), "\n  "))
	}
	if err := f.inject(l, target, values); err != nil {
		return fmt.Errorf("fault %s %s: %w", kind, target, err)
	}
	return nil
}

// offValue takes no value, or off.
func offValue(values []string) (off bool, err error) {
	if len(values) > 1 || len(values) == 1 && values[0] != "off" {
		return false, fmt.Errorf("takes no value but off, got %q", values)
	}
	return len(values) == 1, nil
}

func noValue(values []string) error {
	if len(values) > 0 {
		return fmt.Errorf("takes no value, got %q", values)
	}
	return nil
}

func (l *Lab) faultHostOff(target string, values []string) error {
	if _, err := l.hostIndex(target); err != nil {
		return err
	}
	return errors.Join(noValue(values), l.hostOff(target))
}

func (l *Lab) faultHostOn(target string, values []string) error {
	if _, err := l.hostIndex(target); err != nil {
		return err
	}
	times := []time.Duration{0, defaultOnbootDelay}
	if len(values) > len(times) {
		return fmt.Errorf("takes UPTIME and ONBOOT-DELAY, got %q", values)
	}
	for i, v := range values {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 {
			return fmt.Errorf("%q is no time (try 90s or 20m)", v)
		}
		times[i] = d
	}
	return l.hostOn(target, times[0], times[1])
}

func (l *Lab) faultAgentKill(target string, values []string) error {
	if err := l.running(target, values); err != nil {
		return err
	}
	if pid, ok := l.agentProcess(target); ok {
		return kill(pid)
	}
	return nil
}

func (l *Lab) faultAgentStart(target string, values []string) error {
	if err := l.running(target, values); err != nil {
		return err
	}
	return l.startAgent(target)
}

// running checks that target is a host that is switched on.
func (l *Lab) running(target string, values []string) error {
	if _, err := l.hostIndex(target); err != nil {
		return err
	}
	if l.isOff(target) {
		return errors.New("the host is switched off; hl-lab fault host-on " + target)
	}
	return noValue(values)
}

func (l *Lab) faultControllerKill(target string, values []string) error {
	if err := l.controller(target, values); err != nil {
		return err
	}
	if pid, ok := l.controllerProcess(target); ok {
		return kill(pid)
	}
	return nil
}

func (l *Lab) faultControllerStart(target string, values []string) error {
	if err := l.controller(target, values); err != nil {
		return err
	}
	return l.startController(target)
}

func (l *Lab) controller(target string, values []string) error {
	if !slices.Contains(l.controllerNames(), target) {
		return fmt.Errorf("no such controller; there are %s", strings.Join(l.controllerNames(), ", "))
	}
	return noValue(values)
}

// findGuest finds the one VM of a name.
func (l *Lab) findGuest(name string) (host string, vmid int, err error) {
	for _, h := range l.HostNames() {
		list, err := guestsIn(l.confDir(h))
		if err != nil {
			return "", 0, err
		}
		for _, g := range list {
			if g.name != name {
				continue
			}
			if host != "" {
				return "", 0, fmt.Errorf("there are two VMs named %s, on %s and %s", name, host, h)
			}
			host, vmid = h, g.vmid
		}
	}
	if host == "" {
		return "", 0, fmt.Errorf("no VM named %s on any host", name)
	}
	return host, vmid, nil
}

// QM is an administrator's hand on a host: it runs qm there and returns its
// exit code. When ctx ends, qm is asked to end.
func (l *Lab) QM(ctx context.Context, host string, args []string, stdin *os.File, stdout, stderr interface{ Write([]byte) (int, error) }) int {
	if _, err := l.hostIndex(host); err != nil {
		fmt.Fprintln(stderr, "hl-lab:", err)
		return 1
	}
	if l.isOff(host) {
		fmt.Fprintf(stderr, "hl-lab: %s is switched off\n", host)
		return 255
	}
	cmd := exec.CommandContext(ctx, filepath.Join(l.hostRoot(host), "usr/sbin/qm"), args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin", "LANG=C.UTF-8", "HL_LAB_HAND=admin"}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if stdin != nil {
		cmd.Stdin = stdin
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	fmt.Fprintln(stderr, "hl-lab: run qm:", err)
	return 1
}
