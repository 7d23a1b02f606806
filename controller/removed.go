package controller

import (
	"context"
	"maps"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/spec"
)

// removed are the hosts whose agents have no certificate any more that counts: they
// were taken back, and none was given since. They are asked for nothing. A host of
// which no certificate is known is none of them: the store may have been lost, and who
// is revoked is denied all the same.
func (c *Controller) removed(ctx context.Context) map[string]bool {
	list := c.creds.Revocations()
	if list.Number() == 0 {
		return nil
	}
	issued, err := c.store.Issued(ctx)
	if err != nil {
		c.log.Debug("certificates not read", "error", err)
		return nil
	}
	hosts := make(map[string]bool)
	for _, i := range issued {
		if i.Role != rpc.RoleAgent {
			continue
		}
		if gone, known := hosts[i.Name]; gone || !known {
			hosts[i.Name] = list.Has(i.Serial)
		}
	}
	maps.DeleteFunc(hosts, func(_ string, gone bool) bool { return !gone })
	return hosts
}

// asRemoved is how a host is seen that was removed and that the Spec still names.
func asRemoved(s sight, now time.Time) sight {
	const reason = "removed: its certificate was taken back; take it out of the Spec, or: hlctl hosts add"
	if s.seen.IsZero() {
		return enter(s, homelabv1.HostState_HOST_STATE_UNKNOWN, reason, time.Time{})
	}
	return enter(s, homelabv1.HostState_HOST_STATE_AGENT_GONE, reason, now)
}

// forgetRemoved forgets what was seen of removed hosts that the Spec does not name: no
// guest of ours is wanted there, and their VMIDs are not ours to keep free.
func (c *Controller) forgetRemoved(ctx context.Context, sp *spec.Spec) error {
	for name := range c.removed(ctx) {
		if sp != nil && sp.Hosts[name] != nil {
			continue
		}
		c.mu.Lock()
		_, stored := c.stored[name]
		delete(c.stored, name)
		c.mu.Unlock()
		if c.seeing.forget(name) {
			c.log.Info("host forgotten: it was removed, and the Spec does not name it", "host", name)
		}
		if !stored {
			continue
		}
		if err := c.store.ForgetHost(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// forget drops what is kept of a host, and says whether it was ever seen.
func (o *observer) forget(name string) (seen bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.sights[name]
	delete(o.sights, name)
	return !s.seen.IsZero()
}
