package proxmox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// Orphans implements driver.Powers. The volumes are listed before the configurations
// are read, so that one that comes to be named meanwhile is not taken for an orphan.
// What belongs to a VMID that somebody is at work on, or whose VM is half-built, is
// none: it is on its way into a configuration, or rolled back.
func (d *Driver) Orphans(ctx context.Context) (*driverv1.OrphansResponse, error) {
	members, err := d.members()
	if err != nil {
		return &driverv1.OrphansResponse{Known: unknown("%v", err)}, nil
	}
	atWork, err := d.atWork()
	if err != nil {
		return &driverv1.OrphansResponse{Known: unknown("%v", err)}, nil
	}
	storages, err := d.storages(members.NodeName)
	if err != nil {
		return &driverv1.OrphansResponse{Known: unknown("%v", err)}, nil
	}
	listed, unseen, err := d.allVolumes(ctx, storages)
	if err != nil {
		return nil, err
	}
	named, err := d.naming(0)
	if err != nil {
		return &driverv1.OrphansResponse{Known: unknown("%v", err)}, nil
	}
	// Without quorum the other nodes may have changed since.
	if err := d.quorate(members); err != nil {
		return &driverv1.OrphansResponse{Known: unknown("%v", err)}, nil
	}
	// pmxcfs may have gone away in the middle of it.
	if _, err := d.members(); err != nil {
		return &driverv1.OrphansResponse{Known: unknown("%v", err)}, nil
	}
	seen := &driverv1.OrphansResponse{Known: yes()}
	if len(unseen) > 0 {
		seen.Known = unknown("%s", strings.Join(unseen, "; "))
	}
	for _, v := range listed {
		owner := cmp.Or(parse.Owner(v.Volid), v.VMID) // a file of any name may lie in a VMID's folder
		if named.has(v.Volid) || len(atWork[owner].names) > 0 || d.unfinished(owner) {
			continue
		}
		seen.Orphans = append(seen.Orphans, &homelabv1.Orphan{
			Host: members.NodeName, Volid: v.Volid, Vmid: parse.Owner(v.Volid), Storage: parse.Storage(v.Volid), SizeBytes: v.SizeBytes,
		})
	}
	return seen, nil
}

// allVolumes lists the disk images on all storages that may hold them, and says what
// could not be listed.
func (d *Driver) allVolumes(ctx context.Context, storages []parse.StorageConfig) (all []parse.ListedVolume, unseen []string, err error) {
	for _, s := range storages {
		if !s.Holds("images") {
			continue
		}
		some, err := d.volumesOn(ctx, s, 0, func(*homelabv1.Event) {})
		switch {
		case err != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)):
			return nil, nil, fmt.Errorf("list the volumes of storage %s: %w", s.Name, err)
		case err != nil:
			unseen = append(unseen, err.Error())
		}
		all = append(all, some...)
	}
	slices.SortFunc(all, func(a, b parse.ListedVolume) int { return strings.Compare(a.Volid, b.Volid) })
	return all, unseen, nil
}

// building tells whether volumes of a VM's VMID may be on their way into its
// configuration, or out of it.
func building(c *parse.Config) bool { return c.HalfBuilt() || c.CloneBegun() || c.Lock() == "clone" }

// unfinished tells whether the VM of a VMID is half-built here.
func (d *Driver) unfinished(vmid int32) bool {
	c, err := d.read(vmid)
	return err == nil && building(c)
}
