package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"text/template"
	"time"

	"github.com/homeiac/homelab/lab/disk"
	"github.com/homeiac/homelab/lab/guest/k3s"
	"github.com/homeiac/homelab/lab/pve"
)

// Sizes of what a lab makes. The image is sparse but for its head, and the disks
// made from it are sparse too.
const (
	imageBytes   = 64 << 20
	hostMemory   = 16 << 30
	hostCPUs     = 8
	localBytes   = 100 << 30
	poolBytes    = 200 << 30
	foreignBytes = 10 << 30
)

// firstUptime is how long a host of a new lab claims to have been up.
const firstUptime = 24 * time.Hour

// lay writes everything that Up starts from; what is there already stays.
func (l *Lab) lay(now time.Time) error {
	for _, dir := range []string{"files", "log", "pmxcfs", "hosts", "controllers"} {
		if err := os.MkdirAll(l.path(dir), 0o755); err != nil {
			return err
		}
	}
	if err := l.makeTrust(now); err != nil {
		return err
	}
	if l.Controllers > 1 {
		if err := l.makeEtcdTrust(now); err != nil {
			return err
		}
	}
	if _, err := os.Stat(l.imageFile()); err != nil {
		if err := disk.MakeGuestImage(l.imageFile(), imageBytes); err != nil {
			return err
		}
	}
	if err := writeFile(l.path("files", "install.sh"), k3s.InstallScript, 0o755); err != nil {
		return err
	}
	if err := writeFile(l.path("files", "k3s"), k3s.StandInBinary(l.K3sVersion), 0o755); err != nil {
		return err
	}
	// Controllers first: a host that is added gets what they go by now.
	for i, name := range l.controllerNames() {
		if err := l.layController(i+1, name); err != nil {
			return fmt.Errorf("lay out %s: %w", name, err)
		}
	}
	for i, name := range l.HostNames() {
		if err := l.layHost(i+1, name, now); err != nil {
			return fmt.Errorf("lay out %s: %w", name, err)
		}
	}
	return l.writeClient()
}

// disksStorage is where the guests of host i have their disks: the three kinds
// of storage take turns.
func disksStorage(i int) string { return []string{"local", "local-zfs", "local-lvm"}[(i-1)%3] }

func (l *Lab) layHost(i int, name string, now time.Time) error {
	if _, err := os.Stat(l.hostDir(name) + "/host.json"); errors.Is(err, os.ErrNotExist) {
		cfg := pve.HostConfig{
			Name: name, NodeName: name, LabDir: l.Dir, Address: l.hostAddress(i),
			QMCost: l.QMCost, Binary: l.bin + "/hl-lab",
			MemoryBytes: hostMemory, CPUs: hostCPUs, Boot: now.Add(-firstUptime),
			Bridges: []pve.BridgeConfig{{Name: "vmbr0", Ports: []string{"eno1"}, VLANAware: true}},
			Storages: []pve.StorageConfig{
				{Name: "local", Type: "dir", Path: "/var/lib/vz", TotalBytes: localBytes, ForeignBytes: foreignBytes},
			},
		}
		switch disksStorage(i) {
		case "local-zfs":
			cfg.Storages = append(cfg.Storages, pve.StorageConfig{
				Name: "local-zfs", Type: "zfspool", Pool: "rpool/data", TotalBytes: poolBytes, ForeignBytes: foreignBytes,
			})
		case "local-lvm":
			cfg.Storages = append(cfg.Storages, pve.StorageConfig{
				Name: "local-lvm", Type: "lvmthin", VG: "pve", ThinPool: "data", TotalBytes: poolBytes, ForeignBytes: foreignBytes,
			})
		}
		if l.Cluster {
			cfg.Cluster = "lab"
		}
		if err := pve.NewHost(cfg); err != nil {
			return err
		}
	}
	h, err := pve.Open(l.hostDir(name))
	if err != nil {
		return err
	}
	if err := h.Update(func(c *pve.HostConfig) { c.QMCost, c.Binary = l.QMCost, l.bin+"/hl-lab" }); err != nil {
		return err
	}
	if err := l.copyTrust(filepath.Dir(l.controllerConfig(l.controllerNames()[0])), filepath.Dir(l.agentConfig(name))); err != nil {
		return err
	}
	return l.writeConfig(agentConfigText, l.agentConfig(name), daemonConfig{
		Lab: l, Name: name, Address: l.hostAddress(i), Port: agentPort, State: l.hostDir(name) + "/agent/state",
		Root: h.Root(), Clock: l.clockFile(name),
	})
}

func (l *Lab) layController(i int, name string) error {
	if err := l.copyTrust(l.path("pki"), filepath.Dir(l.controllerConfig(name))); err != nil {
		return err
	}
	return l.writeConfig(controllerConfigText, l.controllerConfig(name), daemonConfig{
		Lab: l, Name: name, Address: l.controllerAddress(i), Port: controllerPort,
		State: l.path("controllers", name, "state"), SharedStore: l.Controllers > 1,
	})
}

func (l *Lab) agentConfig(host string) string { return l.hostDir(host) + "/agent/agent.yaml" }

func (l *Lab) controllerConfig(name string) string {
	return l.path("controllers", name, "controller.yaml")
}

// daemonConfig is what the configuration of an agent or a controller is made from.
type daemonConfig struct {
	Lab                        *Lab
	Name, Address, State, Root string
	Clock                      string
	Port                       int
	SharedStore                bool
}

// Seeds are the controllers: whoever finds one of them finds everybody.
func (d daemonConfig) Seeds() []string {
	var seeds []string
	for i := range d.Lab.controllerNames() {
		seeds = append(seeds, net.JoinHostPort(d.Lab.controllerAddress(i+1), fmt.Sprint(gossipPort)))
	}
	return seeds
}

// GossipPort is the same everywhere: each daemon has an address of its own.
func (daemonConfig) GossipPort() int { return gossipPort }

const commonConfigText = `name: {{.Name}}
advertise: {{.Address}}
port: {{.Port}}
gossipPort: {{.GossipPort}}
seeds: [{{range $i, $s := .Seeds}}{{if $i}}, {{end}}"{{$s}}"{{end}}]
ca: ca.pem
cert: {{.Lab.Dir}}/pki/{{.Name}}.pem
key: {{.Lab.Dir}}/pki/{{.Name}}.key
gossipKeys: gossip.keys
state: {{.State}}
`

var (
	agentConfigText = template.Must(template.New("agent").Parse(commonConfigText + `root: {{.Root}}
sshPort: {{.Lab.SSHPort}}
fileRoots: [{{.Lab.Dir}}/files]
driver: proxmox
clock: {{.Clock}}
`))
	controllerConfigText = template.Must(template.New("controller").Parse(commonConfigText + `fleetKey: {{.Lab.Dir}}/pki/fleet.key
issuingCA: {{.Lab.Dir}}/pki/{{.Name}}/issuing-ca.pem
issuingKey: {{.Lab.Dir}}/pki/{{.Name}}/issuing-ca.key
{{- if .SharedStore}}
etcd:
  endpoints: ["https://{{.Lab.EtcdEndpoint}}"]
  ca: {{.Lab.Dir}}/pki/etcd-ca.pem
  cert: {{.Lab.Dir}}/pki/etcd-client.pem
  key: {{.Lab.Dir}}/pki/etcd-client.key
{{- end}}
`))
	clientConfigText = template.Must(template.New("client").Parse(`current: lab
contexts:
  lab:
    controllers: [{{range $i, $c := .Controllers}}{{if $i}}, {{end}}"{{$c}}"{{end}}]
    ca: {{.Dir}}/pki/trusted.pem
    cert: {{.Dir}}/pki/admin.pem
    key: {{.Dir}}/pki/admin.key
`))
)

func (l *Lab) writeConfig(t *template.Template, file string, d daemonConfig) error {
	var out bytes.Buffer
	if err := t.Execute(&out, d); err != nil {
		return err
	}
	return writeFile(file, out.Bytes(), 0o600)
}

func (l *Lab) controllerEndpoints() []string {
	var list []string
	for i := range l.controllerNames() {
		list = append(list, net.JoinHostPort(l.controllerAddress(i+1), fmt.Sprint(controllerPort)))
	}
	return list
}

// writeClient writes hlctl.yaml, homelab.yaml and, when hosts were added,
// homelab-N.yaml beside the first.
func (l *Lab) writeClient() error {
	var out bytes.Buffer
	err := clientConfigText.Execute(&out, struct {
		Dir         string
		Controllers []string
	}{l.Dir, l.controllerEndpoints()})
	if err != nil {
		return err
	}
	if err := writeFile(l.path("hlctl.yaml"), out.Bytes(), 0o600); err != nil {
		return err
	}
	text, err := l.specFor(l.Hosts)
	if err != nil {
		return err
	}
	first := l.path("homelab.yaml")
	old, err := os.ReadFile(first)
	if errors.Is(err, os.ErrNotExist) {
		return writeFile(first, text, 0o644)
	}
	if err != nil || bytes.Equal(old, text) {
		return err
	}
	// Somebody may have edited the first one: it is theirs.
	return writeNew(l.path(fmt.Sprintf("homelab-%d.yaml", l.Hosts)), 0o644, func() ([]byte, error) { return text, nil })
}
