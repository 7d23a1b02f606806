package controller

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/store"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/spec"
)

// prepare remembers what the guest is created with, before it is: every further
// attempt then makes the same VM, and none makes a second one.
func (d *dispatch) prepare(ctx context.Context, s *homelabv1.Step) (store.Guest, error) {
	g := d.sp.Guests[s.GetGuest()]
	if g == nil {
		return store.Guest{}, rpc.Errorf(rpc.ErrInvalid, "guest %s is not in the Spec", s.GetGuest())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	rec, err := d.c.store.ChangeGuest(ctx, d.lock, s.GetGuest(), func(rec *store.Guest) error {
		// A VM recovered from its mark stays one of which nothing is proved.
		if s.GetUuid() != "" && rec.UUID == s.GetUuid() && rec.Generation == s.GetGeneration() && !rec.Made {
			return nil
		}
		next, err := making(*rec, s, d.anew[s.GetGuest()], d.c.now())
		if err != nil {
			return err
		}
		if next.UUID != rec.UUID {
			d.anew[s.GetGuest()] = next.UUID
		}
		*rec = next
		rec.NodeName, rec.Role, rec.User = g.NodeName(), roleOf(g), g.User
		rec.DataDisks = dataDisks(d.sp, g)
		rec.MACs = d.macs(g, *rec)
		if size := d.sizes[g.Name]; size > 0 {
			rec.MemoryBytes = size
		}
		if digest := d.digestOf(s); digest != "" {
			rec.Image, rec.ImageSHA256 = g.Image, digest
		}
		rec.CDROM, rec.CDROMSHA256 = g.CDROM, d.cdromDigest(s.GetHost(), g, *rec)
		rec.Made, rec.Unverified = true, len(g.Verify) > 0
		return nil
	})
	if err != nil {
		return rec, err
	}
	d.guests[rec.Name] = rec
	if memory(g, rec) == 0 {
		return rec, rpc.Errorf(rpc.ErrRefused, "memory %s of guest %s cannot be resolved: what %s has free is not known; give guests.%s.memory an amount", g.Memory, g.Name, g.Host, g.Name)
	}
	return rec, nil
}

// making is the record that a guest is created with, made from the one before.
// It decides on values alone. drawn is the uuid that this run gave the guest
// already; empty when it gave none.
func making(rec store.Guest, s *homelabv1.Step, drawn string, now time.Time) (store.Guest, error) {
	here := rec.UUID != "" && rec.Host == s.GetHost() && rec.VMID == s.GetVmid() && (s.GetUuid() == "" || rec.UUID == s.GetUuid())
	switch {
	case here && (rec.Generation == s.GetGeneration() || rec.UUID == drawn):
		return rec, nil // another attempt at the same
	case here && (s.GetUuid() != "" || rec.Recreating) && s.GetGeneration() == rec.Generation+1:
		return recreated(rec, now), nil
	case s.GetUuid() != "":
		return rec, rpc.Errorf(rpc.ErrRefused, "guest %s is remembered as VM %d (%s, generation %d) on %s, the step is for VM %d (%s, generation %d) on %s",
			rec.Name, rec.VMID, rec.UUID, rec.Generation, rec.Host, s.GetVmid(), s.GetUuid(), s.GetGeneration(), s.GetHost())
	}
	generation := s.GetGeneration()
	if rec.UUID == "" {
		// One that was forgotten goes on counting where it was.
		generation = max(generation, rec.Generation)
	}
	// The hardware addresses stay: leases and reservations hang on them.
	return store.Guest{
		Name: rec.Name, Host: s.GetHost(), VMID: s.GetVmid(), UUID: uuid.NewString(), Generation: generation,
		MACs: rec.MACs, MemoryBytes: rec.MemoryBytes, Holder: rec.Holder, Began: now, CDROM: rec.CDROM, CDROMSHA256: rec.CDROMSHA256,
	}, nil
}

// recreated is the next generation of a guest: the same machine to its network and
// its host, with nothing in it.
func recreated(old store.Guest, now time.Time) store.Guest {
	next := store.Guest{
		Name: old.Name, Host: old.Host, VMID: old.VMID, UUID: old.UUID, Generation: old.Generation + 1,
		MACs: old.MACs, MemoryBytes: old.MemoryBytes, Addresses: old.Addresses, Holder: old.Holder,
		CDROM: old.CDROM, CDROMSHA256: old.CDROMSHA256,
		SavedConfig: old.SavedConfig, SavedAt: old.SavedAt, Volumes: old.Volumes, Began: now, Recreating: old.Recreating,
	}
	if old.ReadyAt.IsZero() && old.Generation > 1 {
		next.Failures = old.Failures + 1
	}
	return next
}

// dataDisks are the disks of a guest of the Spec that outlive it; without those
// whose storage its host does not name.
func dataDisks(sp *spec.Spec, g *spec.Guest) []store.Disk {
	var disks []store.Disk
	for _, d := range g.DataDisks {
		if storage, ok := sp.Hosts[g.Host].Storage(d.Storage); ok {
			disks = append(disks, store.Disk{Slot: d.Slot, Storage: storage, Size: d.Size})
		}
	}
	return disks
}

func roleOf(g *spec.Guest) spec.Role {
	if g.K3s == nil {
		return ""
	}
	return g.K3s.Role
}

// cdromDigest is the ISO file in a guest's drive: the one that it had, while the
// host holds it, else what its name stands for now. d.mu is held.
func (d *dispatch) cdromDigest(host string, g *spec.Guest, rec store.Guest) string {
	image := d.sp.Images[g.CDROM]
	if image == nil {
		return ""
	}
	if rec.CDROMSHA256 != "" && rec.CDROM == g.CDROM {
		old := g.CDROM + "@" + rec.CDROMSHA256[:min(12, len(rec.CDROMSHA256))]
		if d.images[host+"/"+old] != "" || slices.ContainsFunc(d.world.sights[host].obs.GetImages(), func(c *homelabv1.ImageCopy) bool { return c.GetSha256() == rec.CDROMSHA256 }) {
			return rec.CDROMSHA256
		}
	}
	if digest := d.images[host+"/"+g.CDROM]; digest != "" {
		return digest
	}
	return plan.Want{Images: recalledImages(d.known)}.Present(image).SHA256
}

// macs are the hardware addresses of a guest: what the Spec states, what is
// remembered, and fresh ones for the rest. d.mu is held.
func (d *dispatch) macs(g *spec.Guest, rec store.Guest) []string {
	macs := make([]string, len(g.NICs))
	for i, n := range g.NICs {
		switch {
		case n.MAC != "":
			macs[i] = n.MAC
		case i < len(rec.MACs) && rec.MACs[i] != "":
			macs[i] = rec.MACs[i]
		default:
			macs[i] = d.freshMAC(macs[:i])
		}
	}
	return macs
}

// freshMAC draws an address that nobody was seen to have. BC:24:11 is
// Proxmox's own prefix.
func (d *dispatch) freshMAC(mine []string) string {
	for {
		b := make([]byte, 3)
		_, _ = rand.Read(b) // does not fail since Go 1.24
		mac := fmt.Sprintf("BC:24:11:%02X:%02X:%02X", b[0], b[1], b[2])
		if !slices.Contains(mine, mac) && !d.macTaken(mac) {
			return mac
		}
	}
}

func (d *dispatch) macTaken(mac string) bool {
	for _, rec := range d.guests {
		if slices.Contains(rec.MACs, mac) {
			return true
		}
	}
	for _, g := range d.sp.Guests {
		for _, n := range g.NICs {
			if strings.EqualFold(n.MAC, mac) {
				return true
			}
		}
	}
	for _, s := range d.world.sights {
		for _, vm := range s.obs.GetVms() {
			if slices.ContainsFunc(vm.GetMacs(), func(m string) bool { return strings.EqualFold(m, mac) }) {
				return true
			}
		}
	}
	return false
}
