package guest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/homeiac/homelab/lab/disk"
)

// testVM is a kvm process of its own, as qm start makes it.
type testVM struct {
	*testGuest
	root string
	cmd  *exec.Cmd
	log  *safeBuffer
	gone chan struct{}
}

// vm lays out a host with one VM of the lab's image.
func (l *testLab) vm(n int, name string) *testVM {
	l.t.Helper()
	v := &testVM{testGuest: l.guest(n, name), root: filepath.Join(l.dir, "hosts/pve1/root")}
	put := func(file, text string) {
		l.t.Helper()
		at := filepath.Join(v.root, file)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			l.t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
			l.t.Fatal(err)
		}
	}
	put("sys/class/net/vmbr0/operstate", "up\n")
	put(fmt.Sprintf("etc/pve/qemu-server/%d.conf", 200+n), fmt.Sprintf("net0: virtio=%s,bridge=vmbr0\n", v.machine.NICs[0].MAC))
	put("run/qemu-server/.keep", "")
	put("usr/bin/.keep", "")
	if err := os.MkdirAll(filepath.Join(v.root, "var"), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.Symlink("../run", filepath.Join(v.root, "var/run")); err != nil {
		l.t.Fatal(err)
	}
	settings, err := json.Marshal(l.set)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.dir, "lab.json"), settings, 0o644); err != nil {
		l.t.Fatal(err)
	}
	dir := fmt.Sprintf("var/lib/vz/images/%d", 200+n)
	put(dir+"/ci.qcow2", "")
	if err := disk.MakeGuestImage(filepath.Join(v.root, dir, "disk.raw"), 4<<20); err != nil {
		l.t.Fatal(err)
	}
	if err := disk.WriteCloudInit(filepath.Join(v.root, dir, "ci.qcow2"), *v.machine.CloudInit); err != nil {
		l.t.Fatal(err)
	}
	return v
}

func (v *testVM) file(kind string) string {
	return filepath.Join(v.root, "run/qemu-server", fmt.Sprintf("%d.%s", v.machine.VMID, kind))
}

// on starts the process and waits until qm start would be content.
func (v *testVM) on() *testVM {
	v.t.Helper()
	id := v.machine.VMID
	run := fmt.Sprintf("/var/run/qemu-server/%d", id)
	dir := fmt.Sprintf("/var/lib/vz/images/%d", id)
	program := filepath.Join(v.root, "usr/bin/kvm")
	v.cmd = exec.Command("/proc/self/exe")
	v.cmd.Args = []string{
		program, "-id", strconv.Itoa(id), "-name", v.name + ",debug-threads=on", "-no-shutdown",
		"-chardev", "socket,id=qmp,path=" + run + ".qmp,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
		"-chardev", "socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect-ms=5000", "-mon", "chardev=qmp-event,mode=control",
		"-pidfile", run + ".pid", "-daemonize", "-smbios", "type=1,uuid=" + v.machine.UUID, "-smp", "2,sockets=1,cores=2,maxcpus=2",
		"-nodefaults", "-m", "2048",
		"-chardev", "socket,path=" + run + ".qga,server=on,wait=off,id=qga0",
		"-device", "virtio-serial,id=qga0,bus=pci.0,addr=0x8", "-device", "virtserialport,chardev=qga0,name=org.qemu.guest_agent.0",
		"-drive", "file=" + dir + "/ci.qcow2,if=none,id=drive-ide2,media=cdrom", "-device", "ide-cd,bus=ide.1,unit=0,drive=drive-ide2,id=ide2",
		"-blockdev", fmt.Sprintf(`{"driver":"throttle","file":{"driver":"raw","file":{"driver":"file","filename":"%s/disk.raw"},"node-name":"f1"},"node-name":"drive-scsi0"}`, dir),
		"-device", "scsi-hd,bus=scsihw0.0,channel=0,scsi-id=0,lun=0,drive=drive-scsi0,id=scsi0,device_id=drive-scsi0,bootindex=100",
		"-netdev", fmt.Sprintf("type=tap,id=net0,ifname=tap%di0,script=/usr/libexec/qemu-server/pve-bridge", id),
		"-device", "virtio-net-pci,mac=" + v.machine.NICs[0].MAC + ",netdev=net0,bus=pci.0,addr=0x12,id=net0", "-machine", "type=pc+pve1",
	}
	v.log = &safeBuffer{}
	v.cmd.Stdout, v.cmd.Stderr = v.log, v.log
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := v.cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	v.gone = make(chan struct{})
	go func() {
		defer close(v.gone)
		_ = v.cmd.Wait() // how it ended is not the question
	}()
	v.t.Cleanup(func() {
		_ = v.cmd.Process.Kill()
		<-v.gone
		if v.t.Failed() {
			v.t.Logf("%s said: %s", v.name, v.log)
		}
	})
	eventually(v.t, "pid file and monitor", func() bool {
		b, err := os.ReadFile(v.file("pid"))
		if err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(v.cmd.Process.Pid) {
			return false
		}
		c, err := net.Dial("unix", v.file("qmp"))
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	return v
}

// monitor sends QMP commands over one connection and gives the last answer.
func (v *testVM) monitor(commands ...string) map[string]any {
	v.t.Helper()
	c, err := net.Dial("unix", v.file("qmp"))
	if err != nil {
		v.t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		v.t.Fatal(err)
	}
	r := bufio.NewScanner(c)
	if !r.Scan() || !strings.Contains(r.Text(), `"QMP"`) {
		v.t.Fatalf("no greeting: %q", r.Text())
	}
	var last map[string]any
	for _, cmd := range append([]string{"qmp_capabilities"}, commands...) {
		fmt.Fprintf(c, "{\"execute\":%q}\n", cmd)
		for {
			if !r.Scan() {
				v.t.Fatalf("%s: no answer", cmd)
			}
			last = nil
			if err := json.Unmarshal(r.Bytes(), &last); err != nil {
				v.t.Fatal(err)
			}
			if last["event"] == nil {
				break
			}
		}
	}
	return last
}

func (v *testVM) status() string {
	v.t.Helper()
	ret, _ := v.monitor("query-status")["return"].(map[string]any)
	s, _ := ret["status"].(string)
	return s
}

// ask sends the guest agent one command; "" is no answer in the given time.
func (v *testVM) ask(wait time.Duration, cmd string) string {
	v.t.Helper()
	c, err := net.Dial("unix", v.file("qga"))
	if err != nil {
		v.t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintln(c, cmd)
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		v.t.Fatal(err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return ""
	}
	return strings.TrimSpace(line)
}

func TestKVMBootsTheGuestAndObeysItsMonitor(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	v := l.vm(1, "k3s-1").on()
	v.booted()
	if got := strings.TrimSpace(v.must("hostname")); got != "k3s-1" {
		t.Fatalf("hostname %q", got)
	}
	eventually(t, "the guest agent", func() bool { return v.ask(time.Second, `{"execute":"guest-ping"}`) == `{"return":{}}` })
	if got := v.ask(patience, "\xff"+`{"execute":"guest-network-get-interfaces"}`); !strings.Contains(got, v.addr) {
		t.Fatalf("interfaces: %s", got)
	}

	// Paused: QMP answers, the guest does not.
	v.monitor("stop")
	if got := v.status(); got != "paused" {
		t.Fatalf("status %q", got)
	}
	if got := v.ask(200*time.Millisecond, `{"execute":"guest-ping"}`); got != "" {
		t.Fatalf("a paused guest answered %s", got)
	}
	v.monitor("cont")
	v.booted()

	// A reset does not make a paused machine run.
	v.monitor("stop", "system_reset")
	if got := v.status(); got != "prelaunch" {
		t.Fatalf("status %q after a reset while it was paused", got)
	}
	v.monitor("cont")
	v.booted()

	// One client at a time: the second is heard when the first has gone.
	first, err := net.Dial("unix", v.file("qmp"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(first).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	second, err := net.Dial("unix", v.file("qmp"))
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := second.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, _ := second.Read(make([]byte, 1)); n != 0 {
		t.Fatal("two clients were heard at once")
	}
	first.Close()
	if err := second.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if n, _ := second.Read(make([]byte, 1)); n != 1 {
		t.Fatal("the second client was never greeted")
	}
	second.Close()

	// What was written survives a reboot from inside and a reset from outside.
	v.must("echo kept > ~/note")
	boot := v.must("cat /proc/sys/kernel/random/boot_id")
	c, err := v.dial()
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Run("sudo reboot") // the connection may end before its exit status comes
	c.Close()
	changed := func() bool {
		c, err := v.dial()
		if err != nil {
			return false
		}
		defer c.Close()
		s, err := c.NewSession()
		if err != nil {
			return false
		}
		b, err := s.Output("cat /proc/sys/kernel/random/boot_id")
		return err == nil && string(b) != boot
	}
	eventually(t, "the reboot", changed)
	boot = v.must("cat /proc/sys/kernel/random/boot_id")
	v.monitor("system_reset")
	eventually(t, "the reset", changed)
	if got := v.must("cat ~/note"); got != "kept\n" {
		t.Fatalf("note: %q", got)
	}

	// The power button ends guest and process, which takes its files along.
	v.monitor("system_powerdown")
	select {
	case <-v.gone:
	case <-time.After(patience):
		t.Fatal("kvm did not end after the guest's shutdown")
	}
	for _, kind := range []string{"pid", "qmp", "qga"} {
		if _, err := os.Stat(v.file(kind)); err == nil {
			t.Errorf("%s is still there", kind)
		}
	}
}

func TestAKilledKVMTakesItsGuestAlongAndCanBeStartedAgain(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	v := l.vm(1, "k3s-1").on()
	v.booted()
	if err := v.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-v.gone
	eventually(t, "the guest to be gone", func() bool {
		c, err := net.DialTimeout("tcp", v.addr+":2222", time.Second)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	if _, err := os.Stat(v.file("pid")); err != nil {
		t.Errorf("a killed kvm leaves its pid file: %v", err)
	}
	v.on().booted()
}

func TestAMachineWithoutTheLabsOSOnlyRuns(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	v := l.vm(1, "blank")
	if err := os.WriteFile(filepath.Join(v.root, "var/lib/vz/images/201/disk.raw"), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	v.on()
	if got := v.status(); got != "running" {
		t.Fatalf("status %q", got)
	}
	if got := v.ask(200*time.Millisecond, `{"execute":"guest-ping"}`); got != "" {
		t.Fatalf("nobody should answer: %s", got)
	}
	v.monitor("quit")
	select {
	case <-v.gone:
	case <-time.After(patience):
		t.Fatal("kvm did not quit")
	}
}
