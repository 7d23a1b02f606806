package host

import (
	"os"
	"slices"
	"strings"
	"time"

	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// onNode says whether the storage is for that node, and if not why.
func onNode(s parse.StorageConfig, node string) (bool, string) {
	switch {
	case s.Disabled:
		return false, "disabled in storage.cfg"
	case !s.For(node):
		return false, "storage.cfg restricts it to " + strings.Join(s.Nodes, ", ")
	}
	return true, ""
}

// storages lists what storage.cfg holds, with what pvestatd said of it lately.
func (h *Host) storages(o *homelabv1.Observation, st stat, now time.Time) ([]*homelabv1.Storage, *homelabv1.Fact) {
	if o.GetPveCluster().GetTruth() != homelabv1.Truth_TRUTH_YES {
		return nil, unknown("%s", o.GetPveCluster().GetReason())
	}
	data, err := os.ReadFile(h.Path("etc/pve/storage.cfg"))
	if err != nil && !os.IsNotExist(err) {
		return nil, unknown("%s", h.cause(err))
	}
	var out []*homelabv1.Storage
	for _, s := range parse.Storages(data) {
		one := &homelabv1.Storage{
			Name: s.Name, Type: s.Type, Content: slices.Sorted(slices.Values(s.Content)), Shared: s.Shared, Path: s.Path,
		}
		seen, ok := st.storages[o.GetNodeName()+"/"+s.Name]
		age := now.Sub(seen.at).Round(time.Second)
		switch {
		case st.err != nil:
			one.SpaceKnown = unknown("%s", h.cause(st.err))
		case !ok:
			one.SpaceKnown = unknown("pvestatd has not told its size")
		case age > statStale:
			one.SpaceKnown = unknown("pvestatd told its size %s ago (systemctl status pvestatd)", age)
		default:
			one.TotalBytes, one.FreeBytes = seen.total, seen.total-seen.used
			one.SpaceKnown = yes(age.String() + " old")
		}
		one.Active = h.active(s, o.GetNodeName(), st, now)
		out = append(out, one)
	}
	return out, yes("")
}

// active says whether the storage can be used on this node. pvestatd tells the
// sizes of active storages only, so a fresh figure proves it; the absence of one
// proves the contrary only while it tells others'.
func (h *Host) active(s parse.StorageConfig, node string, st stat, now time.Time) *homelabv1.Fact {
	if ok, why := onNode(s, node); !ok {
		return no("%s", why)
	}
	if s.Path != "" {
		if fi, err := os.Stat(h.Path(s.Path)); err != nil || !fi.IsDir() {
			return no("its folder %s is not there", s.Path)
		}
	}
	seen, ok := st.storages[node+"/"+s.Name]
	if ok && now.Sub(seen.at) <= statStale {
		return yes("")
	}
	alive := false
	for key, other := range st.storages {
		if strings.HasPrefix(key, node+"/") && now.Sub(other.at) <= statStale {
			alive = true
		}
	}
	switch {
	case alive:
		return no("pvestatd tells other storages but not this one (pvesm status)")
	case s.Type == "dir" && s.MountPoint == "" && s.Path != "":
		return yes("its folder is there")
	case st.err != nil:
		return unknown("%s", h.cause(st.err))
	}
	return unknown("pvestatd has told nothing for %s (systemctl status pvestatd)", statStale)
}
