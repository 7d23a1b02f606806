package controller

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const goodConfig = `name: controller-1
advertise: 127.9.1.201
seeds: ["127.9.1.1:7946"]
ca: ca.pem
cert: /etc/homelab/controller.pem
key: controller.key
gossipKeys: gossip.keys
fleetKey: fleet.key
state: state
`

func TestConfigIsReadWithDefaultsAndPathsBesideTheFile(t *testing.T) {
	got, err := parseConfig([]byte(goodConfig), "/etc/hl")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Name: "controller-1", Advertise: "127.9.1.201", Port: 8401, GossipPort: 7946, Seeds: []string{"127.9.1.1:7946"},
		CA: "/etc/hl/ca.pem", Cert: "/etc/homelab/controller.pem", Key: "/etc/hl/controller.key",
		GossipKeys: "/etc/hl/gossip.keys", FleetKey: "/etc/hl/fleet.key", State: "/etc/hl/state",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestFaultsOfAConfigAreTold(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", goodConfig + "sead: x\n", "line 10: field sead not found"},
		{"nothing", "", "fleetKey is missing"},
		{"name as address", strings.Replace(goodConfig, "127.9.1.201", "controller.lan", 1), `advertise: "controller.lan"`},
		{"any address", strings.Replace(goodConfig, "127.9.1.201", "0.0.0.0", 1), "advertise"},
		{"port", goodConfig + "port: 70000\n", "port: 70000 is not a port"},
		{"seed", strings.Replace(goodConfig, "127.9.1.1:7946", "pve1", 1), `seeds: "pve1"`},
		{"etcd without certificate", goodConfig + "etcd: {endpoints: [\"https://127.9.1.250:2379\"]}\n", "etcd.cert is missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseConfig([]byte(c.text), "/etc/hl")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
