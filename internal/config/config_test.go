package config_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/homeiac/homelab/internal/config"
)

type settings struct {
	config.Daemon `yaml:",inline"`

	Fleet string `yaml:"fleetKey"`
	Etcd  struct {
		CA string `yaml:"ca"`
	} `yaml:"etcd"`
}

const good = `name: pve1
advertise: 127.9.1.1
seeds: ["127.9.1.201:7946"]
ca: ca.pem
cert: /etc/homelab/agent.pem
key: ../agent.key
gossipKeys: gossip.keys
state: state
`

func parse(text string) (settings, error) {
	s := settings{Daemon: config.Daemon{Port: 8400, GossipPort: 7946}}
	f := config.Parse("/lab/pve1/agent.yaml", []byte(text), &s)
	s.Check(f)
	f.Need("etcd.ca", s.Etcd.CA)
	return s, f.Err()
}

func TestDefaultsStayAndPathsLieBesideTheFile(t *testing.T) {
	got, err := parse(good + "etcd: {ca: x}\n")
	if err != nil {
		t.Fatal(err)
	}
	want := config.Daemon{
		Name: "pve1", Advertise: "127.9.1.1", Port: 8400, GossipPort: 7946, Seeds: []string{"127.9.1.201:7946"},
		CA: "/lab/pve1/ca.pem", Cert: "/etc/homelab/agent.pem", Key: "/lab/agent.key",
		GossipKeys: "/lab/pve1/gossip.keys", State: "/lab/pve1/state",
	}
	if diff := cmp.Diff(want, got.Daemon); diff != "" {
		t.Error(diff)
	}
}

func TestFaultsComeTogetherWithTheirLines(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"all at once", "name: pve1\nadvertise: pve1.lan\nport: 99999\nseeds:\n- pve2\nca:\nsead: x\ngossipPort: many\netcd:\n  ca: ''\n", []string{
			"agent.yaml:7: unknown key sead",
			"agent.yaml:8: cannot unmarshal !!str `many` into int",
			"agent.yaml:6: ca is empty",
			"agent.yaml: cert is missing",
			"agent.yaml: key is missing",
			"agent.yaml: gossipKeys is missing",
			"agent.yaml: state is missing",
			`agent.yaml:2: advertise: "pve1.lan" is not the IP address of this machine`,
			"agent.yaml:3: port: 99999 is not a port",
			`agent.yaml:4: seeds: "pve2" is not IP:PORT`,
			"agent.yaml:10: etcd.ca is empty",
		}},
		{"a key in a part", good + "etcd: {}\n", []string{"agent.yaml:9: etcd.ca is missing"}},
		{"any address", strings.Replace(good, "127.9.1.1", "0.0.0.0", 1) + "etcd: {ca: x}\n", []string{`agent.yaml:2: advertise: "0.0.0.0" is not the IP address of this machine`}},
		{"no mapping", "- a\n", []string{"agent.yaml:1: cannot unmarshal !!seq into config_test.settings", "agent.yaml: name is missing"}},
		{"two documents", good + "etcd: {ca: x}\n---\nname: x\n", []string{"agent.yaml: a second document begins in it"}},
		{"no YAML", good + "etcd: {ca: x\n", []string{"did not find expected ',' or '}'\n"}},
		{"nothing", "", []string{"agent.yaml: nothing is set in it yet"}},
		{"comments", "# as packaged\n#name: pve1\n", []string{"agent.yaml: nothing is set in it yet"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse(c.text)
			if err == nil {
				t.Fatal("no fault")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error()+"\n", want) {
					t.Errorf("%q is not in\n%v", want, err)
				}
			}
		})
	}
}

func TestReadingAFileThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	if _, err := config.Read(filepath.Join(dir, "none.yaml"), &settings{}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "--config FILE") {
		t.Error(err)
	}
	file := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(file, []byte(good+"etcd: {ca: x}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := settings{Daemon: config.Daemon{Port: 1, GossipPort: 1}}
	f, err := config.Read(file, &s)
	if err != nil {
		t.Fatal(err)
	}
	if s.Check(f); f.Err() != nil || s.CA != filepath.Join(dir, "ca.pem") {
		t.Error(f.Err(), s.CA)
	}
}
