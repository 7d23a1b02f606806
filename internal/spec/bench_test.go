package spec

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkParse reads a Spec of 1,000 hosts and 10,000 guests.
func BenchmarkParse(b *testing.B) {
	var text strings.Builder
	text.WriteString("apiVersion: homelab/v1\nname: big\nvmids: 1000-99999\nnetworks: {lan: {subnet: 10.0.0.0/16}}\n" +
		"images: {noble: {url: \"https://example.org/a\", checksums: \"https://example.org/b\"}}\n" +
		"defaults: {image: noble, sshKeys: [\"" + laptop + "\"], networks: [lan], cpus: 2, memory: 4GiB, disk: 50GiB}\n" +
		"k3s: {version: v1.35.0+k3s1}\nhosts:\n")
	for i := range 1000 {
		fmt.Fprintf(&text, "  pve%d:\n    address: 10.1.%d.%d\n    bridges: {lan: vmbr0}\n    storage: {disks: local-zfs, images: local, snippets: local}\n", i, i/250, i%250+1)
	}
	text.WriteString("guests:\n")
	for i := range 10000 {
		role := "agent"
		if i < 3 {
			role = "server"
		}
		fmt.Fprintf(&text, "  k3s-%d:\n    host: pve%d\n    vmid: %d\n    memory: 8GiB\n    networks: [{network: lan, ip: 10.0.%d.%d}]\n    k3s: {role: %s, labels: {row: a}}\n", i, i%1000, i+1000, i/250, i%250+1, role)
	}
	data := []byte(text.String())
	b.ReportAllocs()
	for b.Loop() {
		s, faults := Parse("homelab.yaml", data)
		if s == nil {
			b.Fatal(faults[:min(3, len(faults))])
		}
	}
}
