package plan

import (
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/mark"
)

// Track carries histories on.
func Track(want Want, _ Seen, _ time.Time) map[string]History { return want.History }

// Blocked is why a step must not be carried out now.
func Blocked(Want, Seen, *homelabv1.Step, time.Time) string { return "" }

// Findings are what does not agree.
func Findings(Want, Seen, time.Time) []Finding { return nil }

// MayFail is how many voters may fail.
func MayFail(c *Cluster) int { return c.Healthy - c.Quorum }

// Holders are the holder VMs of ours.
func Holders(want Want, seen Seen) []HolderState {
	var list []HolderState
	for name, h := range seen.Hosts {
		for _, vm := range h.Observation.GetVms() {
			m, err := mark.Parse(vm.GetMark())
			if err != nil {
				continue
			}
			if guest, ok := HeldGuest(m.Guest); ok && want.VerifyMark(vm, m.Guest).Ours {
				list = append(list, HolderState{Guest: guest, Host: name, VM: vm})
			}
		}
	}
	return list
}

// MemberOf is what the cluster holds of a guest.
func MemberOf(want Want, seen Seen, guest string) *homelabv1.MemberRef {
	name := guest
	if g := want.Spec.Guests[guest]; g != nil {
		name = g.NodeName()
	}
	c := ClusterOf(want, seen)
	ref := &homelabv1.MemberRef{Node: name, NodeUid: c.Node(name).GetUid(), Addresses: want.Guests[guest].Addresses}
	if e := c.Member(name, ref.GetAddresses()); e != nil {
		ref.EtcdId, ref.EtcdName = e.GetId(), e.GetName()
	}
	return ref
}
