package lab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/homeiac/homelab/lab/guest"
	"github.com/homeiac/homelab/lab/pve"
)

// TestMain lets the test binary be the process that a test stops, and the programs
// of a lab's hosts.
func TestMain(m *testing.M) {
	programs = append(programs, "lab.test")
	switch filepath.Base(os.Args[0]) {
	case "qm", "pvesm", "pvesh":
		pve.Exit(pve.Main(os.Args, os.Stdin, os.Stdout, os.Stderr))
	case "kvm":
		pve.Exit(guest.KVM(os.Args))
	case "hl-lab":
		if Command().Execute() != nil {
			pve.Exit(1)
		}
		pve.Exit(0)
	}
	if address := os.Getenv("HL_TEST_LISTEN"); address != "" {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			os.Exit(1)
		}
		os.Stdout.WriteString(ln.Addr().String() + "\n")
		for {
			conn, err := ln.Accept()
			if err != nil {
				os.Exit(1)
			}
			_ = conn.Close()
		}
	}
	os.Exit(m.Run())
}

func TestAStoppedProcessLooksSwitchedOff(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "HL_TEST_LISTEN=127.0.0.1:0")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	line := make([]byte, 64)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	address := netip.MustParseAddrPort(strings.TrimSpace(string(line[:n])))

	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	found, err := listeners([]int{cmd.Process.Pid})
	if err != nil || len(found) != 1 || found[0] != address {
		t.Fatalf("listeners: %v, %v; want %v", found, err, address)
	}
	if err := fillQueue(address); err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialTimeout("tcp", address.String(), 300*time.Millisecond)
	if err == nil {
		_ = conn.Close()
		t.Fatal("a connection to a host without power was accepted")
	}
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("it must time out, not be refused: %v", err)
	}
}

func TestProcAddressesAreInHostOrder(t *testing.T) {
	got, err := parseProcAddress("0100007F:1F90")
	if err != nil || got != netip.MustParseAddrPort("127.0.0.1:8080") {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "0100007F", "xyz:1F90", "0100007F:10000"} {
		if _, err := parseProcAddress(bad); err == nil {
			t.Errorf("%q was taken for an address", bad)
		}
	}
}

func TestALabIsRefusedWhereItCannotBe(t *testing.T) {
	used := t.TempDir()
	if err := os.WriteFile(filepath.Join(used, "photos.tar"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    Options
		want string
	}{
		"a folder with other things in it": {Options{Dir: used}, "not empty and no lab"},
		"a path too long for sockets":      {Options{Dir: "/tmp/" + strings.Repeat("x", 80)}, "too long"},
		"a path with blanks":               {Options{Dir: "/tmp/a b"}, "characters"},
		"too many hosts":                   {Options{Dir: "/tmp/hl-never", Hosts: 100}, "1 to 99"},
		"an unknown cost":                  {Options{Dir: "/tmp/hl-never", QMCost: "some"}, "real or none"},
		"an unknown kind of cluster":       {Options{Dir: "/tmp/hl-never", PVE: "both"}, "cluster or standalone"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Up(context.Background(), c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if _, err := os.Stat("/tmp/hl-never"); err == nil {
				t.Error("something was made all the same")
			}
		})
	}
}

func TestOpenSaysHowToStartALab(t *testing.T) {
	_, err := Open(t.TempDir())
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "hl-lab up --dir") {
		t.Errorf("got %v", err)
	}
}

func TestFaultsRefuseWhatTheyDoNotKnow(t *testing.T) {
	l := &Lab{Dir: t.TempDir(), Config: Config{Hosts: 2, Controllers: 1}}
	for _, c := range []struct {
		kind, target string
		values       []string
		want         string
	}{
		{"host-of", "pve1", nil, "there are:"},
		{"host-off", "pve3", nil, "no host"},
		{"host-off", "pve1", []string{"now"}, "takes no value"},
		{"host-on", "pve1", []string{"soon"}, "no time"},
		{"controller-kill", "controller-2", nil, "there are controller-1"},
		{"bridge-down", "pve1", nil, "HOST/NAME"},
		{"storage-full", "pve1/local", []string{"on"}, "no value but off"},
		{"guest-stop", "k3s-9", nil, "no VM named"},
		{"guest-hang", "k3s-9", []string{"on"}, "no value but off"},
		{"guest-crash", "k3s-9", []string{"off"}, "takes no value"},
		{"ssh-wrong", "k3s-9", nil, "no VM named"},
		{"qm-hang", "pve3", nil, "no host"},
		{"clock-skew", "pve1", nil, "takes a DURATION"},
	} {
		err := l.Fault(c.kind, c.target, c.values...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("fault %s %s %v: got %v, want %q", c.kind, c.target, c.values, err, c.want)
		}
	}
}
