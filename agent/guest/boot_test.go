package guest_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/homeiac/homelab/agent/guest"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/k3s"
)

func reading[T any](v T) k3s.Reading[T] { return k3s.Reading[T]{Known: true, Value: v} }

const mac = "BC:24:11:00:00:01"

func booted() k3s.Probe {
	return k3s.Probe{
		Hostname:  reading("k3s-1"),
		CloudInit: reading(k3s.CloudInit{Status: "done"}),
		Addresses: reading([]k3s.Address{{Interface: "eth0", MAC: mac, Prefix: netip.MustParsePrefix("192.168.4.212/24")}}),
	}
}

func wanting(n *homelabv1.Nic) *homelabv1.GuestWant {
	n.Mac, n.Network = mac, "lan"
	return &homelabv1.GuestWant{NodeName: "k3s-1", Hardware: &homelabv1.Hardware{Nics: []*homelabv1.Nic{n}}}
}

func TestJudge(t *testing.T) {
	static := func() *homelabv1.Nic {
		return &homelabv1.Nic{Address: "192.168.4.212/24", Subnet: "192.168.4.0/24"}
	}
	dhcp := func() *homelabv1.Nic { return &homelabv1.Nic{Subnet: "192.168.4.0/24"} }
	at := func(p *k3s.Probe, prefix string) {
		p.Addresses = reading([]k3s.Address{{Interface: "eth0", MAC: mac, Prefix: netip.MustParsePrefix(prefix)}})
	}
	for _, tc := range []struct {
		name string
		nic  *homelabv1.Nic
		turn func(*k3s.Probe)
		want guest.Verdict
	}{
		{"static", static(), func(*k3s.Probe) {}, guest.Verdict{Booted: true}},
		{"DHCP", dhcp(), func(*k3s.Probe) {}, guest.Verdict{Booted: true}},
		{"degraded is done", static(), func(p *k3s.Probe) {
			p.CloudInit = reading(k3s.CloudInit{Status: "done", Errors: []string{"x"}})
		}, guest.Verdict{Booted: true}},
		{"cloud-init runs", static(), func(p *k3s.Probe) { p.CloudInit = reading(k3s.CloudInit{Status: "running", Detail: "modules"}) },
			guest.Verdict{Waiting: "cloud-init is running; modules"}},
		{"cloud-init not to be asked", static(), func(p *k3s.Probe) { p.CloudInit = k3s.Reading[k3s.CloudInit]{Reason: "no such command"} },
			guest.Verdict{Waiting: "cloud-init does not tell its state: no such command"}},
		{"cloud-init failed", static(), func(p *k3s.Probe) {
			p.CloudInit = reading(k3s.CloudInit{Status: "error", Errors: []string{"no package"}})
		},
			guest.Verdict{Wrong: "cloud-init failed: error; no package", CloudInitFailed: true}},
		{"another hostname", static(), func(p *k3s.Probe) { p.Hostname = reading("ubuntu") },
			guest.Verdict{Wrong: "its hostname is ubuntu and should be k3s-1"}},
		{"another static address", static(), func(p *k3s.Probe) { at(p, "192.168.4.7/24") },
			guest.Verdict{Wrong: "on network lan it has 192.168.4.7 and should have 192.168.4.212"}},
		{"an address of the WAN", dhcp(), func(p *k3s.Probe) { at(p, "192.168.1.7/24") },
			guest.Verdict{Wrong: "on network lan it has 192.168.1.7, outside of the subnet 192.168.4.0/24"}},
		{"no lease yet", dhcp(), func(p *k3s.Probe) { p.Addresses = reading([]k3s.Address{}) },
			guest.Verdict{Waiting: "it has no address yet on network lan (DHCP)"}},
		{"an address of another interface does not count", dhcp(), func(p *k3s.Probe) {
			p.Addresses = reading([]k3s.Address{{Interface: "eth1", MAC: "BC:24:11:00:00:02", Prefix: netip.MustParsePrefix("192.168.4.9/24")}})
		}, guest.Verdict{Waiting: "it has no address yet on network lan (DHCP)"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := booted()
			tc.turn(&p)
			if got := guest.Judge(wanting(tc.nic), p); got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestWhereToLook(t *testing.T) {
	told := []string{"10.42.0.1", "fe80::1", "192.168.4.9"}
	want := wanting(&homelabv1.Nic{Address: "192.168.4.212/24", Subnet: "192.168.4.0/24"})
	want.KnownAddresses = []string{"192.168.4.3"}
	if got := guest.WhereToLook(want, told); !slices.Equal(got, []string{"192.168.4.212"}) {
		t.Errorf("static: %v", got)
	}
	want = wanting(&homelabv1.Nic{Subnet: "192.168.4.0/24"})
	want.KnownAddresses = []string{"192.168.4.3"}
	if got := guest.WhereToLook(want, told); !slices.Equal(got, []string{"192.168.4.3", "192.168.4.9"}) {
		t.Errorf("DHCP: %v", got)
	}
}
