package controller

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/homeiac/homelab/controller/store"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/mark"
)

func testSigner(t *testing.T) signer {
	t.Helper()
	key, err := mark.NewKey([]byte("0123456789abcdef0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	return signer{fleet: fleetName, key: key}
}

func TestAGuestIsResolvedFromTheSpecAndWhatIsRemembered(t *testing.T) {
	text := strings.Replace(string(specOf(4)), "    vmid: 201\n", "    vmid: 201\n    memory: 30%\n    firmware: ovmf\n    machine: q35\n    pci: [\"0000:b3:00.0,pcie=1\"]\n", 1)
	sp, err := parseSpec("homelab.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	rec := store.Guest{Name: "k3s-1", Host: "pve1", VMID: 201, UUID: "u-1", Generation: 2, MACs: []string{"BC:24:11:00:00:01"}, MemoryBytes: 5 << 30, HostKeys: []string{"ssh-ed25519 A"}}
	want, err := testSigner(t).guestWant(sp, rec)
	if err != nil {
		t.Fatal(err)
	}
	h := want.GetHardware()
	if h.GetMemoryBytes() != 5<<30 || h.GetFirmware() != homelabv1.Firmware_FIRMWARE_OVMF || len(h.GetPci()) != 1 {
		t.Errorf("hardware %v", h)
	}
	nic := h.GetNics()[0]
	if nic.GetMac() != rec.MACs[0] || nic.GetAddress() != "10.0.0.11/24" || nic.GetGateway() != "10.0.0.1" || nic.GetBridge() != "vmbr0" || nic.GetSubnet() != subnet {
		t.Errorf("nic %v", nic)
	}
	generation, err := mark.Verify(testSigner(t).key, fleetName, "k3s-1", 201, "u-1", want.GetIdentity().GetMark())
	if err != nil || generation != 2 {
		t.Errorf("mark %q: %d, %v", want.GetIdentity().GetMark(), generation, err)
	}
	if want.GetImage().GetSha256() == "" || !want.GetK3S() || want.GetNodeName() != "k3s-1" || want.GetImagesStorage() != "local" {
		t.Errorf("want %v", want)
	}
}

func TestEveryServerGetsTheSameNames(t *testing.T) {
	text := strings.Replace(string(specOf(4)), "k3s: {version: v1.35.0+k3s1}", "k3s: {version: v1.35.0+k3s1, endpoint: 10.0.0.5, config: {disable: [servicelb], write-kubeconfig-mode: \"0644\", tls-san: [k3s.homelab]}}", 1)
	sp, err := parseSpec("homelab.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, guest := range []string{"k3s-1", "k3s-2", "k3s-4"} {
		want, err := k3sWant(sp, guest, &homelabv1.ClusterRecord{CaHash: "abc"})
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, fmt.Sprint(want.GetTlsSans()))
		if !strings.Contains(want.GetConfigYaml(), `write-kubeconfig-mode: "0644"`) || want.GetCaHash() != "abc" {
			t.Errorf("%s: %v", guest, want)
		}
	}
	if want := "[10.0.0.11 10.0.0.12 10.0.0.13 10.0.0.5 k3s.homelab]"; names[0] != want || names[1] != want || names[2] != want {
		t.Errorf("names %v", names)
	}
}

func TestFreshHardwareAddressesAreProxmoxsAndNobodyElses(t *testing.T) {
	sp, err := parseSpec("homelab.yaml", specOf(2))
	if err != nil {
		t.Fatal(err)
	}
	d := &dispatch{sp: sp, guests: map[string]store.Guest{}}
	form, seen := regexp.MustCompile(`^BC:24:11(:[0-9A-F]{2}){3}$`), map[string]bool{}
	for i := range 500 {
		mac := d.macs(sp.Guests["k3s-1"], store.Guest{})[0]
		if !form.MatchString(mac) || seen[mac] {
			t.Fatalf("address %q", mac)
		}
		seen[mac] = true
		d.guests[fmt.Sprint(i)] = store.Guest{MACs: []string{mac}}
	}
	if got := d.macs(sp.Guests["k3s-1"], store.Guest{MACs: []string{"BC:24:11:AA:AA:AA"}}); got[0] != "BC:24:11:AA:AA:AA" {
		t.Errorf("remembered address became %v", got)
	}
}

func TestKeyFilesThatWereNotSentAreAFault(t *testing.T) {
	text := regexp.MustCompile(`sshKeys: .*`).ReplaceAllString(string(specOf(1)), "sshKeys: [~/.ssh/id_ed25519.pub]")
	if _, err := parseSpec("homelab.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), "was not sent") {
		t.Errorf("%v", err)
	}
}

func TestTheStoreHoldsNoSecret(t *testing.T) {
	f := newFleet(t, hostNames(2)...)
	c := f.up()
	if o := c.apply(t.Context(), specOf(2), "", true); o.err != nil || o.summary.GetFailed() != 0 {
		t.Fatalf("%v, %v", o.err, o.summary)
	}
	guests, err := c.store.Guests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if data := must(json.Marshal(guests)); strings.Contains(string(data), "s3cret") {
		t.Error("a guest's record holds the token")
	}
	c.kill()
	if where := grep(t, f.dir+"/state", "s3cret"); where != "" {
		t.Errorf("the token lies in %s", where)
	}
}

// grep is the first file under dir that holds the text; empty when none does.
func grep(t *testing.T, dir, text string) (found string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if strings.Contains(string(data), text) {
			found = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
