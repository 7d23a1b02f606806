package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"github.com/homeiac/homelab/lab/guest/system"
)

// Faults of the way to a guest are of the wire, not of the VM: they last until off,
// also over a restart and a recreation.

// k3sPorts are those of its API and of etcd's clients.
var k3sPorts = []int{6443, 2379}

func (l *Lab) faultSSHRefuse(target string, values []string) error {
	return l.faultWire(target, values, system.WireRefuse, l.SSHPort)
}

func (l *Lab) faultSSHFilter(target string, values []string) error {
	return l.faultWire(target, values, system.WireDrop, l.SSHPort)
}

func (l *Lab) faultK3sSilent(target string, values []string) error {
	return l.faultWire(target, values, system.WireDrop, k3sPorts...)
}

func (l *Lab) faultWire(target string, values []string, mode string, ports ...int) error {
	off, err := offValue(values)
	if err != nil {
		return err
	}
	if off {
		mode = system.WireOpen
	}
	return l.setWire(target, mode, ports...)
}

// setWire says how ports of a guest are reached and waits until they are, if the
// guest runs and listens there.
func (l *Lab) setWire(target, mode string, ports ...int) error {
	host, vmid, err := l.findGuest(target)
	if err != nil {
		return err
	}
	address, err := l.addressOf(host, vmid)
	if err != nil {
		return err
	}
	file := system.WireFile(l.Dir, host, target)
	modes, err := system.ReadWire(file)
	if err != nil {
		return err
	}
	if modes == nil {
		modes = map[int]string{}
	}
	affected := map[int]bool{}
	for _, port := range ports {
		was := reach(address, port)
		affected[port] = mode == system.WireOpen && modes[port] != system.WireOpen || mode != system.WireOpen && was == system.WireOpen
		if mode == system.WireOpen {
			delete(modes, port)
		} else {
			modes[port] = mode
		}
	}
	if err := writeWire(file, modes); err != nil {
		return err
	}
	m, err := l.runningGuest(target)
	if err != nil || m.os == 0 || stopped(m.os) {
		return nil //nolint:nilerr // a guest that does not run obeys when it does
	}
	for _, port := range ports {
		if !affected[port] {
			continue
		}
		err := await(5*time.Second, fmt.Sprintf("port %d of %s to change", port, target), func() bool { return reach(address, port) == mode })
		if err != nil && mode != system.WireOpen {
			return err
		}
	}
	return nil
}

func writeWire(file string, modes map[int]string) error {
	if len(modes) == 0 {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	text := map[string]string{}
	for port, mode := range modes {
		text[strconv.Itoa(port)] = mode
	}
	return writeJSON(file, text)
}

// reachLimit is after how long a connection on loopback will not come.
const reachLimit = 250 * time.Millisecond

// reach tries a port of a guest and says which of the wire's modes it is in.
func reach(address string, port int) string {
	c, err := net.DialTimeout("tcp", net.JoinHostPort(address, strconv.Itoa(port)), reachLimit)
	switch {
	case err == nil:
		c.Close()
		return system.WireOpen
	case errors.Is(err, syscall.ECONNREFUSED):
		return system.WireRefuse
	}
	return system.WireDrop
}

var ipConfig = regexp.MustCompile(`(?m)^ipconfig0: .*\bip=([0-9.]+)`)

// addressOf is the address that a VM's configuration gives it.
func (l *Lab) addressOf(host string, vmid int) (string, error) {
	data, err := os.ReadFile(filepath.Join(l.confDir(host), fmt.Sprintf("%d.conf", vmid)))
	if err != nil {
		return "", err
	}
	m := ipConfig.FindSubmatch(data)
	if m == nil {
		return "", fmt.Errorf("VM %d on %s has no fixed address", vmid, host)
	}
	return string(m[1]), nil
}

// impostor is a machine that answers at a guest's SSH address, DIR/impostors/GUEST.json.
type impostor struct {
	Guest   string `json:"guest"`
	Address string `json:"address"`
	Port    int    `json:"port"`
}

func (l *Lab) impostorFile(guest string) string { return l.path("impostors", guest+".json") }

func (l *Lab) faultSSHWrong(target string, values []string) error {
	off, err := offValue(values)
	if err != nil {
		return err
	}
	if off {
		if err := os.Remove(l.impostorFile(target)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if pid, ok := l.impostorProcess(target); ok {
			if err := kill(pid); err != nil {
				return err
			}
		}
		return l.setWire(target, system.WireOpen, l.SSHPort)
	}
	host, vmid, err := l.findGuest(target)
	if err != nil {
		return err
	}
	address, err := l.addressOf(host, vmid)
	if err != nil {
		return err
	}
	if _, ok := l.impostorProcess(target); ok {
		return nil
	}
	if m, err := l.runningGuest(target); err == nil && stopped(m.os) {
		return errors.New("the guest hangs and holds its port; make it wrong first, then let it hang")
	}
	if err := l.setWire(target, system.WireRefuse, l.SSHPort); err != nil {
		return err
	}
	if err := writeJSON(l.impostorFile(target), impostor{Guest: target, Address: address, Port: l.SSHPort}); err != nil {
		return err
	}
	if err := l.startImpostor(target); err != nil {
		return err
	}
	return await(5*time.Second, "the other machine", func() bool { return reach(address, l.SSHPort) == system.WireOpen })
}

func (l *Lab) startImpostor(guest string) error {
	return l.daemon("impostor-"+guest, "hl-lab", "impostor", "--dir", l.Dir, guest)
}

// startImpostors starts those that are to be there.
func (l *Lab) startImpostors() error {
	files, err := filepath.Glob(l.path("impostors", "*.json"))
	if err != nil {
		return err
	}
	for _, file := range files {
		var i impostor
		data, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(data, &i)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if _, ok := l.impostorProcess(i.Guest); ok {
			continue
		}
		if err := l.startImpostor(i.Guest); err != nil {
			return err
		}
	}
	return nil
}
