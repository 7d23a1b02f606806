package spec

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func exampleText(t *testing.T) []byte {
	t.Helper()
	data, err := os.ReadFile("../../docs/examples/homelab.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func example(t *testing.T) *Spec {
	t.Helper()
	s, faults := Parse("homelab.yaml", exampleText(t))
	if err := faults.Err(); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTheExampleIsReadWhole(t *testing.T) {
	s := example(t)
	if got, want := s.GuestNames(), []string{"k3s-vm-fun-bedbug", "k3s-vm-pumped-piglet", "k3s-vm-pve", "k3s-vm-still-fawn"}; !cmp.Equal(got, want) {
		t.Errorf("guests %v", got)
	}
	if got, want := s.HostNames(), []string{"fun-bedbug", "pumped-piglet", "pve", "rapid-civet", "still-fawn"}; !cmp.Equal(got, want) {
		t.Errorf("hosts %v", got)
	}
	timeouts := Timeouts{Boot: 5 * time.Minute, CloudInit: 10 * time.Minute, Join: 10 * time.Minute, UnwellAfter: time.Minute, Soak: 30 * time.Second}
	order, up := 3, 60
	want := &Guest{
		Name: "k3s-vm-still-fawn", Host: "still-fawn", VMID: 108, Image: "noble", Clone: CloneAuto, User: "ubuntu",
		KeyFiles: []string{"~/.ssh/id_ed25519.pub"},
		NICs:     []NIC{{Network: "lan", Address: netip.MustParsePrefix("192.168.4.212/24")}},
		CPUs:     4, Memory: Memory{Bytes: 24 * GiB}, Disk: 700 * GiB, Firmware: FirmwareSeaBIOS,
		USB: []string{"18d1:9302,usb3=1"}, HookScript: "local:snippets/gpu-reset.sh",
		Startup: Startup{Order: &order, Up: &up}, Tags: []string{"gpu"}, Verify: []string{"test -e /dev/dri/renderD128"},
		OnBoot: true, Backup: true, State: StateRunning, OnUnhealthy: PolicyRecreate, Timeouts: timeouts,
		K3s: &Member{Role: RoleServer},
		Own: map[string]bool{"host": true, "vmid": true, "cpus": true, "memory": true, "disk": true, "networks": true,
			"usb": true, "hookscript": true, "startup": true, "tags": true, "verify": true, "k3s": true},
	}
	if diff := cmp.Diff(want, s.Guests["k3s-vm-still-fawn"], cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	piglet := s.Guests["k3s-vm-pumped-piglet"]
	if piglet.Backup || piglet.OnUnhealthy != PolicyReport || !piglet.Own["onUnhealthy"] || piglet.NodeName() != "k3s-vm-pumped-piglet-gpu" {
		t.Errorf("%+v", piglet)
	}
	if diff := cmp.Diff([]DataDisk{{Slot: "scsi1", Storage: "bulk", Size: 200 * GiB}}, piglet.DataDisks); diff != "" {
		t.Error(diff)
	}
	pve := s.Guests["k3s-vm-pve"]
	if !pve.Standby() || !pve.IsServer() || pve.IsMember() || pve.OnBoot || pve.Memory != (Memory{Percent: 30}) {
		t.Errorf("%+v", pve)
	}
	if h := s.Hosts["rapid-civet"]; h.Enabled {
		t.Error("rapid-civet is enabled")
	}
	if bridge, ok := s.Hosts["pve"].Bridge("lan"); !ok || bridge != "vmbr25gbe" {
		t.Error(bridge, ok)
	}
	if storage, ok := s.Hosts["pumped-piglet"].Storage("bulk"); !ok || storage != "local-3TB" {
		t.Error(storage, ok)
	}
	if !s.Protected(102) || s.Protected(104) || !s.Protected(116) {
		t.Error(s.Protect)
	}
	wantK3s := &K3s{Version: "v1.35.0+k3s1", Endpoint: "192.168.4.79", Source: Source{Script: DefaultScript},
		Config: map[string]any{"disable": []string{"servicelb"}, "write-kubeconfig-mode": "0644", "tls-san": []string{"k3s.homelab"}}}
	if diff := cmp.Diff(wantK3s, s.K3s); diff != "" {
		t.Error(diff)
	}
	if len(s.Warnings) != 0 {
		t.Error(s.Warnings)
	}
}

func TestASchemeIsASchemeHoweverItIsWritten(t *testing.T) {
	text := strings.Replace(exampleOdd, ", existing: 1", "", 1)
	text = strings.Replace(text, `"https://example.org/a"`, `"HTTPS://example.org/A", mirrors: ["File:/srv/A"]`, 1)
	s, faults := Parse("homelab.yaml", []byte(text))
	if err := faults.Err(); err != nil {
		t.Fatal(err)
	}
	if i := s.Images["1"]; i.URL != "https://example.org/A" || i.Mirrors[0] != "file:/srv/A" {
		t.Errorf("agents would not know %s, %s", i.URL, i.Mirrors)
	}
}

const exampleOdd = `apiVersion: homelab/v1
name: "123"
vmids: 200-299
networks: {y: {subnet: 10.0.0.0/24}}
hosts: {on: {bridges: {y: vmbr0}, storage: {disks: a1, images: a1, snippets: a1}}, off: {enabled: false}}
images: {1: {url: "https://example.org/a", sha256: 0000000000000000000000000000000000000000000000000000000000000000}}
defaults: {image: "1", networks: [y], sshKeys: [/keys], cpus: 1, memory: 1GiB, disk: 1GiB, onUnhealthy: recreate, timeouts: {boot: 1m, join: 2m}}
x-small: &small {cpus: 3, memory: 25%, onUnhealthy: restart}
guests:
  y: {<<: *small, host: "on", timeouts: {boot: 7m}, networks: [{network: y, ip: 10.0.0.5}, {network: y, mac: 52-54-00-12-34-56}]}
  true: {<<: [{cpus: 5}, *small], host: "off"}
  "0": {host: "on", state: stopped, startup: {order: 0, down: 9}, existing: 1}
`

func TestOddNamesAreNamesAndMergeKeysAreTheGuestsOwn(t *testing.T) {
	s, faults := Parse("homelab.yaml", []byte(exampleOdd))
	if got, want := faults.String(), "homelab.yaml:12:67: guests.0.existing: is not a key that is known here\n1 fault."; got != want || s != nil {
		t.Fatalf("%v\n%s", s, got)
	}
	text := strings.Replace(exampleOdd, ", existing: 1", "", 1)
	s, faults = Parse("homelab.yaml", []byte(text))
	if err := faults.Err(); err != nil {
		t.Fatal(err)
	}
	y, yes, zero := s.Guests["y"], s.Guests["true"], s.Guests["0"]
	if y.CPUs != 3 || y.Memory.Percent != 25 || !y.Own["onUnhealthy"] || y.OnUnhealthy != PolicyRestart || !y.OnBoot {
		t.Errorf("%+v", y)
	}
	if y.Timeouts.Boot != 7*time.Minute || y.Timeouts.Join != 2*time.Minute || y.Timeouts.Soak != 30*time.Second {
		t.Errorf("%+v", y.Timeouts)
	}
	if y.NICs[0].Address.String() != "10.0.0.5/24" || y.NICs[1].MAC != "52:54:00:12:34:56" || y.NICs[1].Address.IsValid() {
		t.Errorf("%+v", y.NICs)
	}
	if yes.CPUs != 5 || yes.Memory.Percent != 25 {
		t.Errorf("%+v", yes)
	}
	if zero.Own["onUnhealthy"] || zero.OnUnhealthy != PolicyRecreate || zero.OnBoot || zero.Startup.String() != "order=0,down=9" {
		t.Errorf("%+v", zero)
	}
}

func TestLineFindsItemsAndWhatTheyWereMergedFrom(t *testing.T) {
	text := `apiVersion: homelab/v1
name: a
vmids: 200-299
networks: {lan: {subnet: 10.0.0.0/24}}
hosts:
  pve2:
    bridges: {lan: vmbr0}
    storage: {disks: a1, images: a1, snippets: a1}
images: {noble: {url: "https://example.org/a", checksums: "https://example.org/b"}}
defaults:
  image: noble
  sshKeys: [/keys]
  cpus: 1
guests:
  k3s-2:
    host: pve2
    networks:
      - lan
      - {network: lan, ip: 10.0.0.5}
    memory: 1GiB
    disk: 1GiB
`
	s, faults := Parse("homelab.yaml", []byte(text))
	if err := faults.Err(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string][2]int{
		"":                            {0, 0},
		"hosts.pve2.bridges.lan":      {7, 15},
		"guests.k3s-2":                {15, 3},
		"guests.k3s-2.memory":         {20, 5},
		"guests.k3s-2.networks[1]":    {19, 9},
		"guests.k3s-2.networks[1].ip": {19, 24},
		"guests.k3s-2.networks[9].ip": {17, 5},
		"guests.k3s-2.cpus":           {13, 3},
		"guests.k3s-2.vmid":           {15, 3},
		"guests.k3s-2.memory.share":   {20, 5},
		"guests.k3s-9.memory":         {14, 1},
		"k3s.version":                 {1, 1},
		"networks.lan.subnet":         {4, 18},
	} {
		if line, column := s.Line(path); line != want[0] || column != want[1] {
			t.Errorf("%s: %d:%d, want %d:%d", path, line, column, want[0], want[1])
		}
	}
	if line, column := (&Spec{}).Line("guests"); line != 0 || column != 0 {
		t.Error(line, column)
	}
}

func TestAClusterThatWasMadeElsewhereNeedsNoServerHere(t *testing.T) {
	for server, want := range map[string]Existing{
		"ubuntu@192.168.4.210":      {User: "ubuntu", Address: netip.MustParseAddr("192.168.4.210"), HostKey: laptop},
		"ubuntu@192.168.4.210:2222": {User: "ubuntu", Address: netip.MustParseAddr("192.168.4.210"), Port: 2222, HostKey: laptop},
		"me@fd00::1":                {User: "me", Address: netip.MustParseAddr("fd00::1"), HostKey: laptop},
		"me@[fd00::1]:22":           {User: "me", Address: netip.MustParseAddr("fd00::1"), Port: 22, HostKey: laptop},
	} {
		text := strings.Replace(string(exampleText(t)), "k3s:\n  version", "k3s:\n  existing: {server: \""+server+"\", hostKey: \""+laptop+"\"}\n  version", 1)
		text = strings.ReplaceAll(text, "role: server", "role: agent")
		s, faults := Parse("homelab.yaml", []byte(text))
		if err := faults.Err(); err != nil {
			t.Fatal(server, err)
		}
		if diff := cmp.Diff(&want, s.K3s.Existing, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Error(server, diff)
		}
	}
	for _, server := range []string{"192.168.4.210", "@192.168.4.210", "Me@192.168.4.210", "me@host", "me@192.168.4.210:0", "me@0.0.0.0"} {
		text := strings.Replace(string(exampleText(t)), "k3s:\n  version", "k3s:\n  existing: {server: \""+server+"\", hostKey: \""+laptop+"\"}\n  version", 1)
		if _, faults := Parse("homelab.yaml", []byte(text)); len(faults) != 1 || faults[0].Path != "k3s.existing.server" {
			t.Error(server, faults)
		}
	}
}
