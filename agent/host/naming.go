package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// NamedBy are the VMs, as "VM 310", that name a file of a storage by its path's last
// part anywhere in their configuration: pending changes and snapshots too. It looks
// at those of one node of the PVE cluster, or with no node at those of all. One
// that cannot be read is an error, since what it names is not known.
func (h *Host) NamedBy(file, node string) ([]string, error) {
	nodes := []string{node}
	if node == "" {
		entries, err := os.ReadDir(h.Path("etc/pve/nodes"))
		if err != nil {
			return nil, errors.New(h.cause(err))
		}
		nodes = nil
		for _, e := range entries {
			nodes = append(nodes, e.Name())
		}
	}
	var vms []string
	for _, n := range nodes {
		dir := h.Path("etc/pve/nodes", n, "qemu-server")
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, errors.New(h.cause(err))
		}
		for _, e := range entries {
			vmid, isVM := strings.CutSuffix(e.Name(), ".conf")
			if !isVM {
				continue
			}
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			switch {
			case errors.Is(err, fs.ErrNotExist):
				continue // it went meanwhile
			case err != nil:
				return nil, fmt.Errorf("VM %s: %s", vmid, h.cause(err))
			case bytes.Contains(text, []byte("/"+path.Base(file))):
				vms = append(vms, "VM "+vmid)
			}
		}
	}
	slices.Sort(vms)
	return vms, nil
}
