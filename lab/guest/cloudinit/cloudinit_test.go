package cloudinit

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParse(t *testing.T) {
	got, err := Parse(`#cloud-config
hostname: k3s-1
fqdn: k3s-1.lab.test
manage_etc_hosts: true
preserve_hostname: false
users:
  - default
  - name: joe
    sudo: ["ALL=(ALL) NOPASSWD:ALL"]
    ssh_authorized_keys: [ssh-ed25519 AAAA joe]
ssh_authorized_keys: [ssh-ed25519 BBBB all]
ssh_deletekeys: false
ssh_keys: {ed25519_private: P, ed25519_public: Q}
write_files:
  - {path: /etc/a, content: hi, permissions: '0600', owner: 'root:root'}
  - {path: /etc/b, content: aGk=, encoding: b64, permissions: 0640, append: true}
packages: [qemu-guest-agent, [curl, 1.0]]
package_update: true
runcmd:
  - echo one
  - [echo, "it's", two]
bootcmd: [modprobe overlay]
`)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Hostname: "k3s-1", FQDN: "k3s-1.lab.test", DefaultUser: "ubuntu",
		Users: []User{
			{Name: "ubuntu", Default: true, Sudo: []string{"ALL=(ALL) NOPASSWD:ALL"}, Shell: "/bin/bash"},
			{Name: "joe", Sudo: []string{"ALL=(ALL) NOPASSWD:ALL"}, AuthorizedKeys: []string{"ssh-ed25519 AAAA joe"}},
		},
		AuthorizedKeys: []string{"ssh-ed25519 BBBB all"}, HostKeys: map[string]string{"ed25519_private": "P", "ed25519_public": "Q"},
		WriteFiles: []File{
			{Path: "/etc/a", Content: []byte("hi"), Owner: "root:root", Mode: 0o600},
			{Path: "/etc/b", Content: []byte("hi"), Mode: 0o640, Append: true},
		},
		Packages: []string{"qemu-guest-agent", "curl"}, PackageUpdate: true,
		RunCmd: []string{"echo one", `'echo' 'it'\''s' 'two'`}, BootCmd: []string{"modprobe overlay"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestWhatIsNotSimulatedIsAnErrorWithAllNames(t *testing.T) {
	_, err := Parse("#cloud-config\nhostname: a\nmounts: []\nsnap: {}\nwrite_files: [{path: rel}]\n")
	for _, want := range []string{"mounts: not simulated", "snap: not simulated", `path "rel" is not absolute`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: no %q", err, want)
		}
	}
	if _, err := Parse("hostname: a\n"); !errors.Is(err, ErrNotCloudConfig) {
		t.Errorf("without its header: %v", err)
	}
	if _, err := Parse("#cloud-config\n\tx: ["); err == nil {
		t.Error("broken YAML was taken")
	}
}

func TestParseNetwork(t *testing.T) {
	got, err := ParseNetwork(`version: 1
config:
    - type: physical
      name: eth0
      mac_address: 'BC:24:11:3b:42:8d'
      subnets:
      - type: static
        address: '10.0.0.5'
        netmask: '255.255.255.0'
        gateway: '10.0.0.1'
    - type: physical
      name: eth1
      mac_address: 'bc:24:11:3b:42:8e'
      subnets:
      - type: dhcp4
      - type: ipv6_slaac
    - type: nameserver
      address:
      - '10.0.0.53'
      search:
      - 'lab.test'
`)
	if err != nil {
		t.Fatal(err)
	}
	want := []Interface{
		{Name: "eth0", MAC: "bc:24:11:3b:42:8d", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.5/24")}, Gateway: "10.0.0.1", DNS: []string{"10.0.0.53"}},
		{Name: "eth1", MAC: "bc:24:11:3b:42:8e", DHCP: true, DNS: []string{"10.0.0.53"}},
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); d != "" {
		t.Error(d)
	}
	if _, err := ParseNetwork("version: 1\nconfig: [{type: bond}]\n"); err == nil {
		t.Error("a bond was taken")
	}
	two, err := ParseNetwork("network: {version: 2, ethernets: {eth0: {addresses: [10.0.0.5/24], routes: [{to: default, via: 10.0.0.1}]}}}")
	if err != nil || len(two) != 1 || two[0].Gateway != "10.0.0.1" {
		t.Errorf("version 2: %v %v", two, err)
	}
}
