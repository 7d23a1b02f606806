package lab

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
	"text/template"
)

// specText is the Spec a lab writes: one guest on each host, the first servers,
// the rest agents.
var specText = template.Must(template.New("spec").Parse(`# The Spec of this lab: one guest on each of its {{len .Hosts}} hosts.
apiVersion: homelab/v1
name: {{.Fleet}}

vmids: 201-299

networks:
  lan: {subnet: {{.Subnet}}, gateway: {{.Gateway}}}

hosts:
{{- range .Hosts}}
  {{.Name}}:
    address: {{.Address}}
    bridges: {lan: vmbr0}
    storage: {disks: {{.Disks}}, images: local, snippets: local}
    reserve: {memory: 2GiB}
{{- end}}

images:
  lab:
    url: file:{{.Image}}
    sha256: {{.ImageSHA256}}

defaults:
  image: lab
  user: ubuntu
  sshKeys: [{{.Key}}]
  cpus: 2
  memory: 4GiB
  disk: 8GiB
  onboot: true
  onUnhealthy: recreate
  timeouts: {boot: 1m, cloudInit: 1m, join: 2m, unwellAfter: 10s, soak: 2s}

guests:
{{- range .Guests}}
  {{.Name}}:
    host: {{.Host}}
    vmid: {{.VMID}}
    networks: [{network: lan, ip: {{.Address}}/24}]
    k3s: {role: {{.Role}}}
{{- end}}

k3s:
  version: {{.K3s}}
  source: {script: {{.Script}}, binary: {{.Binary}}}
  config:
    disable: [servicelb]
    write-kubeconfig-mode: "0644"
`))

type specHost struct{ Name, Address, Disks string }

type specGuest struct {
	Name, Host, Address, Role string
	VMID                      int
}

// firstVMID is the VMID of k3s-1 in the Spec that a lab writes.
const firstVMID = 201

// servers is how many of n guests are servers.
func servers(n int) int {
	if n < 3 {
		return 1
	}
	return 3
}

// specFor is the Spec for the first n hosts.
func (l *Lab) specFor(n int) ([]byte, error) {
	key, err := os.ReadFile(l.path("pki", "id_ed25519.pub"))
	if err != nil {
		return nil, err
	}
	sum, err := fileSHA256(l.imageFile())
	if err != nil {
		return nil, err
	}
	data := struct {
		Config
		Gateway, Image, ImageSHA256, Key, K3s, Script, Binary string
		Hosts                                                 []specHost
		Guests                                                []specGuest
	}{
		Config: l.Config, Gateway: l.address(254), Image: l.imageFile(), ImageSHA256: sum,
		Key: strings.TrimSpace(string(key)), K3s: l.K3sVersion,
		Script: l.path("files", "install.sh"), Binary: l.path("files", "k3s"),
	}
	for i, name := range l.HostNames()[:n] {
		data.Hosts = append(data.Hosts, specHost{Name: name, Address: l.hostAddress(i + 1), Disks: disksStorage(i + 1)})
		role := "agent"
		if i < servers(n) {
			role = "server"
		}
		data.Guests = append(data.Guests, specGuest{
			Name: fmt.Sprintf("k3s-%d", i+1), Host: name, Address: l.guestAddress(i + 1), Role: role, VMID: firstVMID + i,
		})
	}
	var out bytes.Buffer
	err = specText.Execute(&out, data)
	return out.Bytes(), err
}

func (l *Lab) imageFile() string { return l.path("files", "lab.img") }

func fileSHA256(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
