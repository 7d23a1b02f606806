package controller

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/homeiac/homelab/controller/store"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// keepAttempts is how many attempts to get a guest well are remembered.
const keepAttempts = 20

// learned remembers what a step that ended well found out.
func (d *dispatch) learned(ctx context.Context, s *homelabv1.Step, l *agentv1.Learned) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	guest := s.GetGuest()
	switch s.GetAction() {
	case homelabv1.Action_ACTION_FETCH:
		return d.imageLearned(ctx, s, l)
	case homelabv1.Action_ACTION_TEMPLATE, homelabv1.Action_ACTION_PRUNE:
		return nil
	case homelabv1.Action_ACTION_ROLLBACK, homelabv1.Action_ACTION_SNAPSHOT, homelabv1.Action_ACTION_DRAIN, homelabv1.Action_ACTION_SOAK:
		return nil
	case homelabv1.Action_ACTION_STOP, homelabv1.Action_ACTION_HALT:
		d.gone(guest)
	case homelabv1.Action_ACTION_LEAVE:
		d.gone(guest)
		if _, known := d.guests[guest]; !known {
			return nil // the cluster held something of a guest that nobody remembers
		}
	case homelabv1.Action_ACTION_DESTROY:
		d.gone(guest)
		d.c.track.forget(guest)
		if d.purges(guest) {
			delete(d.guests, guest)
			return d.c.store.ForgetGuest(ctx, d.lock, guest)
		}
		return nil
	case homelabv1.Action_ACTION_CREATE:
		d.made[guest] = true
		// It keeps its uuid: what was seen of the VM before is not of this one.
		d.c.track.forget(guest)
	case homelabv1.Action_ACTION_ATTACH:
		if _, known := d.guests[guest]; !known || d.guests[guest].UUID == "" && d.sp.Guests[guest] == nil {
			return nil // an empty holder of a guest that is gone
		}
	default:
	}
	g := d.sp.Guests[guest]
	rec, err := d.c.store.ChangeGuest(ctx, d.lock, guest, func(rec *store.Guest) error {
		if s.GetAction() == homelabv1.Action_ACTION_ADOPT {
			*rec = d.adopted(s)
		}
		learn(rec, s.GetAction(), l, g != nil && g.IsMember(), d.c.now())
		if s.GetAction() == homelabv1.Action_ACTION_STOP && !d.remade[guest] && !d.purges(guest) {
			rec.Resting = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.guests[rec.Name] = rec
	if s.GetAction() == homelabv1.Action_ACTION_INIT || s.GetAction() == homelabv1.Action_ACTION_JOIN {
		delete(d.away, guest)
		if g != nil && g.IsServer() {
			d.servers = append(d.servers, guest)
		}
		return d.clusterSeen(ctx, l.GetCaHash())
	}
	return nil
}

// gone notes that nobody can join through a guest any more. d.mu is held.
func (d *dispatch) gone(guest string) {
	d.away[guest] = true
	d.servers = slices.DeleteFunc(d.servers, func(name string) bool { return name == guest })
}

// learn writes what a step found out into the guest's record.
func learn(rec *store.Guest, action homelabv1.Action, l *agentv1.Learned, member bool, now time.Time) {
	if len(l.GetMacs()) > 0 {
		rec.MACs = l.GetMacs()
	}
	if len(l.GetHostKeys()) > 0 {
		rec.HostKeys = l.GetHostKeys()
	}
	if l.GetMachineId() != "" {
		rec.MachineID = l.GetMachineId()
	}
	if found := plainAddresses(l.GetAddresses()); len(found) > 0 {
		rec.Addresses = found
	}
	if l.GetImageSha256() != "" {
		rec.ImageSHA256 = l.GetImageSha256()
	}
	if l.GetCdromSha256() != "" {
		rec.CDROMSHA256 = l.GetCdromSha256()
	}
	ready := false
	switch action {
	case homelabv1.Action_ACTION_INIT, homelabv1.Action_ACTION_JOIN:
		rec.Joined, ready = true, true
	case homelabv1.Action_ACTION_BOOT:
		ready = !member
	case homelabv1.Action_ACTION_START:
		rec.Resting = false
	case homelabv1.Action_ACTION_VERIFY:
		rec.Unverified = false
	case homelabv1.Action_ACTION_SAVE:
		rec.SavedConfig, rec.SavedAt, rec.Volumes = string(l.GetConfig()), now, nil
		for _, v := range l.GetVolumes() {
			rec.Volumes = append(rec.Volumes, v.GetVolid())
		}
	case homelabv1.Action_ACTION_LEAVE:
		rec.Joined = false
	case homelabv1.Action_ACTION_ATTACH:
		rec.Holder = store.HolderVM{}
	case homelabv1.Action_ACTION_ADOPT:
		rec.User = l.GetUser()
	default:
	}
	if !ready {
		return
	}
	rec.Recreating = false
	if rec.ReadyAt.IsZero() {
		rec.ReadyAt = now
	}
}

// tried remembers an attempt to get a guest well, however it ended, unless it
// never was one: then the next one need not be harsher.
func (d *dispatch) tried(ctx context.Context, s *homelabv1.Step, err error) error {
	switch s.GetAction() {
	case homelabv1.Action_ACTION_START, homelabv1.Action_ACTION_RESUME, homelabv1.Action_ACTION_RESET:
	default:
		return nil
	}
	for _, kind := range []error{rpc.ErrUnavailable, rpc.ErrBusy, rpc.ErrRefused, rpc.ErrNotFound, rpc.ErrInvalid, context.Canceled} {
		if errors.Is(err, kind) {
			return nil
		}
	}
	_, changed := d.change(ctx, s.GetGuest(), func(rec *store.Guest) error {
		rec.Attempts = append(rec.Attempts, store.Attempt{Action: s.GetAction(), At: d.c.now()})
		rec.Attempts = rec.Attempts[max(0, len(rec.Attempts)-keepAttempts):]
		return nil
	})
	return changed
}
