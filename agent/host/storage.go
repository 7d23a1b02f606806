package host

import (
	"os"
	"slices"
	"strings"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// section is one storage of storage.cfg.
type section struct {
	kind, name string
	values     map[string]string
}

// parseStorages reads storage.cfg: "type: name" and indented "key value" lines.
func parseStorages(text string) []section {
	var out []section
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || strings.HasPrefix(trimmed, "#") {
			continue
		}
		if line[0] == ' ' || line[0] == '\t' {
			if len(out) > 0 {
				key, value, _ := strings.Cut(trimmed, " ")
				out[len(out)-1].values[key] = strings.TrimSpace(value)
			}
			continue
		}
		if kind, name, ok := strings.Cut(trimmed, ":"); ok {
			out = append(out, section{kind: kind, name: strings.TrimSpace(name), values: map[string]string{}})
		}
	}
	// Proxmox itself adds local when the file does not name it.
	if !slices.ContainsFunc(out, func(s section) bool { return s.name == "local" }) {
		out = append(out, section{kind: "dir", name: "local", values: map[string]string{
			"path": "/var/lib/vz", "content": "backup,images,iso,rootdir,snippets,vztmpl",
		}})
	}
	return out
}

// content is what the storage may hold; the default is Proxmox's for the types
// that hold disks.
func (s section) content() []string {
	v, ok := s.values["content"]
	if !ok {
		return []string{"images", "rootdir"}
	}
	list := strings.FieldsFunc(v, func(r rune) bool { return r == ',' || r == ' ' })
	slices.Sort(list)
	return list
}

// sharedKinds are storages that are the same on all nodes by their nature.
var sharedKinds = []string{"nfs", "cifs", "cephfs", "rbd", "glusterfs", "iscsi", "iscsidirect", "pbs"}

func (s section) shared() bool {
	return s.values["shared"] == "1" || slices.Contains(sharedKinds, s.kind)
}

// onNode says whether the section is for that node, and if not why.
func (s section) onNode(node string) (bool, string) {
	if v, ok := s.values["disable"]; ok && v != "0" {
		return false, "disabled in storage.cfg"
	}
	if v := s.values["nodes"]; v != "" {
		list := strings.FieldsFunc(v, func(r rune) bool { return r == ',' || r == ' ' })
		if !slices.Contains(list, node) {
			return false, "storage.cfg restricts it to " + strings.Join(list, ", ")
		}
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
	for _, s := range parseStorages(string(data)) {
		one := &homelabv1.Storage{
			Name: s.name, Type: s.kind, Content: s.content(), Shared: s.shared(), Path: s.values["path"],
		}
		seen, ok := st.storages[o.GetNodeName()+"/"+s.name]
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
func (h *Host) active(s section, node string, st stat, now time.Time) *homelabv1.Fact {
	if ok, why := s.onNode(node); !ok {
		return no("%s", why)
	}
	if path := s.values["path"]; path != "" {
		if fi, err := os.Stat(h.Path(path)); err != nil || !fi.IsDir() {
			return no("its folder %s is not there", path)
		}
	}
	seen, ok := st.storages[node+"/"+s.name]
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
	case s.kind == "dir" && s.values["is_mountpoint"] == "" && s.values["path"] != "":
		return yes("its folder is there")
	case st.err != nil:
		return unknown("%s", h.cause(st.err))
	}
	return unknown("pvestatd has told nothing for %s (systemctl status pvestatd)", statStale)
}
