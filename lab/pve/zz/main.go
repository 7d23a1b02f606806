package main

import (
	"os"

	"github.com/homeiac/homelab/lab/disk"
	"github.com/homeiac/homelab/lab/pve"
)

func main() {
	d := os.Args[1]
	err := pve.NewHost(pve.HostConfig{Name: "pve1", LabDir: d, Binary: "/tmp/ea/bin/hl-lab", Cluster: "lab",
		Bridges:  []pve.BridgeConfig{{Name: "vmbr0", Ports: []string{"eno1"}}},
		Storages: []pve.StorageConfig{{Name: "local", Type: "dir", Path: "/var/lib/vz", TotalBytes: 100 << 30}}})
	if err != nil {
		panic(err)
	}
	if err := disk.MakeGuestImage(d+"/hosts/pve1/root/var/lib/vz/import/g.raw", 64<<20); err != nil {
		panic(err)
	}
}
