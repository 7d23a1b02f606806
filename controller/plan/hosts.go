package plan

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/spec"
)

// Limits of rules 6 and 10.
const (
	maxRootPercent = 95.0
	maxClockOffset = time.Second
	bootGrace      = 10 * time.Minute
)

// hostView is one host of the Spec with what was seen of it.
type hostView struct {
	name     string
	want     *spec.Host
	seen     Host
	obs      *homelabv1.Observation // nil unless the host answers now
	blocked  verdict                // rule 10, and pauses: no step on it
	bridges  map[string]*homelabv1.Bridge
	storages map[string]*homelabv1.Storage
	vms      map[int32]*homelabv1.VirtualMachine
}

func newHostView(want *spec.Host, seen Host, paused string) *hostView {
	h := &hostView{name: want.Name, want: want, seen: seen}
	answers := seen.State == homelabv1.HostState_HOST_STATE_ONLINE || seen.State == homelabv1.HostState_HOST_STATE_DEGRADED
	if !want.Enabled || !answers || seen.Observation == nil {
		return h
	}
	h.obs = seen.Observation
	h.bridges = map[string]*homelabv1.Bridge{}
	for _, b := range h.obs.GetBridges() {
		h.bridges[b.GetName()] = b
	}
	h.storages = map[string]*homelabv1.Storage{}
	for _, s := range h.obs.GetStorages() {
		h.storages[s.GetName()] = s
	}
	h.vms = map[int32]*homelabv1.VirtualMachine{}
	for _, vm := range h.obs.GetVms() {
		h.vms[vm.GetVmid()] = vm
	}
	h.blocked = h.block(paused)
	return h
}

// block is why no step may run on a host that answers.
func (h *hostView) block(paused string) verdict {
	o := h.obs
	switch {
	case paused != "":
		return refused("all changes are paused: " + paused)
	case o.GetPaused():
		return refused("changes on " + h.name + " are paused by a file on it")
	case yes(o.GetShuttingDown()):
		return skipped(h.name + " is shutting down")
	case no(o.GetPveCluster()):
		return refused("/etc/pve of " + h.name + " is gone" + because(o.GetPveCluster()))
	case !yes(o.GetPveCluster()):
		return skipped("whether /etc/pve of " + h.name + " is there is not known" + because(o.GetPveCluster()))
	case no(o.GetQuorate()):
		return refused("the PVE cluster of " + h.name + " has no quorum" + because(o.GetQuorate()))
	case !yes(o.GetQuorate()):
		return skipped("whether " + h.name + " is quorate is not known" + because(o.GetQuorate()))
	case no(o.GetDriver()):
		return refused("the driver on " + h.name + " does not work" + because(o.GetDriver()))
	case !yes(o.GetDriver()):
		return skipped("whether the driver on " + h.name + " works is not known" + because(o.GetDriver()))
	case o.GetRootUsedPercent() > maxRootPercent:
		return refused(fmt.Sprintf("the root file system of %s is %.0f %% full, more than %.0f %%", h.name, o.GetRootUsedPercent(), maxRootPercent))
	}
	return verdict{}
}

// clock is why a host must not do etcd work.
func (h *hostView) clock() verdict {
	if off := h.seen.ClockOffset.Abs(); off > maxClockOffset {
		return refused(fmt.Sprintf("the clock of %s is off by %.1f s, more than %.0f s is too much for etcd", h.name, off.Seconds(), maxClockOffset.Seconds()))
	}
	return verdict{}
}

// told is a time that the host's clock told, by ours; zero for none.
func (h *hostView) told(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime().Add(-h.seen.ClockOffset)
}

// silence is why a host shows nothing, with since when.
func (h *hostView) silence(now time.Time) string {
	text := "host not seen"
	switch h.seen.State {
	case homelabv1.HostState_HOST_STATE_SILENT:
		text = "host silent" + since(h.seen.Since, now)
	case homelabv1.HostState_HOST_STATE_AGENT_GONE:
		text = "agent gone" + since(h.seen.Since, now) + ", its host answers"
	case homelabv1.HostState_HOST_STATE_UNKNOWN, homelabv1.HostState_HOST_STATE_UNSPECIFIED:
		text = "host never seen"
	case homelabv1.HostState_HOST_STATE_ONLINE, homelabv1.HostState_HOST_STATE_DEGRADED:
		text = "host could not be observed"
	case homelabv1.HostState_HOST_STATE_DISABLED:
		text = "host disabled"
	}
	if h.seen.Reason != "" {
		text += ": " + h.seen.Reason
	}
	return text
}

// fresh says that the host was booted a short while ago, so that its guests
// may still be booting (rule 6).
func (h *hostView) fresh() bool {
	up := time.Duration(h.obs.GetUptimeSeconds()) * time.Second
	return up > 0 && up < bootGrace
}

// look is what was seen inside a guest on this host; nil when it was not looked
// into, or when another VM was there then.
func (h *hostView) look(guest string, vm *homelabv1.VirtualMachine) *homelabv1.GuestLook {
	l := h.seen.Looked[guest]
	if l == nil {
		i := slices.IndexFunc(h.obs.GetLooks(), func(l *homelabv1.GuestLook) bool { return l.GetIdentity().GetGuest() == guest })
		if i < 0 {
			return nil
		}
		l = h.obs.GetLooks()[i]
	}
	if uuid := l.GetIdentity().GetUuid(); uuid != "" && uuid != vm.GetUuid() {
		return nil
	}
	return l
}

// noteHosts says which hosts are silent and hold no guest that says so already,
// and which volumes lie about: people are told before a create finds them in its way.
func (m *model) noteHosts() {
	withGuests := map[string]bool{}
	for _, g := range m.guests {
		withGuests[g.want.Host] = true
	}
	for _, h := range m.order {
		switch {
		case !h.want.Enabled:
		case h.obs == nil:
			if !withGuests[h.name] {
				m.note(homelabv1.NoteKind_NOTE_KIND_SKIPPED, "", h.name, h.silence(m.now))
			}
		case len(h.obs.GetLeftoverVmids()) > 0:
			m.note(homelabv1.NoteKind_NOTE_KIND_INFO, "", h.name, "volumes that no configuration names, of VMID "+numbers(h.obs.GetLeftoverVmids()))
		}
	}
}
