package controller

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/homeiac/homelab/internal/config"
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

// load reads a configuration from a file of its own, and gives its folder too.
func load(t *testing.T, text string) (Config, string, error) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "controller.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := LoadConfig(file)
	return c, dir, err
}

func TestConfigIsReadWithDefaultsAndPathsBesideTheFile(t *testing.T) {
	got, dir, err := load(t, goodConfig)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Daemon: config.Daemon{
			Name: "controller-1", Advertise: "127.9.1.201", Port: 8401, GossipPort: 7946, Seeds: []string{"127.9.1.1:7946"},
			CA: dir + "/ca.pem", Cert: "/etc/homelab/controller.pem", Key: dir + "/controller.key",
			GossipKeys: dir + "/gossip.keys", State: dir + "/state",
		},
		FleetKey: dir + "/fleet.key", IssuingCA: "/etc/homelab/issuing-ca.pem", IssuingKey: "/etc/homelab/issuing-ca.key",
		EnrolPort: 8402, CertificateLife: 90 * 24 * time.Hour,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestFaultsOfAConfigAreTold(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", goodConfig + "sead: x\n", "controller.yaml:10: unknown key sead"},
		{"nothing", "", "nothing is set in it yet"},
		{"name as address", strings.Replace(goodConfig, "127.9.1.201", "controller.lan", 1), `advertise: "controller.lan"`},
		{"etcd without TLS", goodConfig + "etcd: {endpoints: [\"http://127.9.1.250:2379\"], ca: ca.pem, cert: c.pem, key: c.key}\n", "\"http://127.9.1.250:2379\" is not https://IP:PORT"},
		{"etcd without certificate", goodConfig + "etcd: {endpoints: [\"https://127.9.1.250:2379\"]}\n", "controller.yaml:10: etcd.cert is missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := load(t, c.text)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
