package pve

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// clusterState is what the lab remembers of one cluster file system. It lies
// beside the simulated files, in no host's /etc/pve.
type clusterState struct {
	Cluster string                  `json:"cluster"`
	Config  int                     `json:"config"` // version of the members' list
	Quorate bool                    `json:"quorate"`
	Nodes   []clusterNode           `json:"nodes"`
	Start   int64                   `json:"start"`
	VMList  int                     `json:"vmlist"`
	VMs     map[string]clusterGuest `json:"vms"`
	// Storage counts the changes of storage.cfg, by its modification time.
	Storage     int   `json:"storage"`
	StorageTime int64 `json:"storageTime"`
}

type clusterNode struct {
	Name   string `json:"name"`
	IP     string `json:"ip"`
	Online bool   `json:"online"`
}

type clusterGuest struct {
	Node    string `json:"node"`
	Type    string `json:"type"` // qemu or lxc
	Version int    `json:"version"`
	Stamp   int64  `json:"stamp"` // modification time of its file
}

func readClusterState(dir string) (*clusterState, error) {
	s := &clusterState{Quorate: true, VMs: map[string]clusterGuest{}}
	data, err := os.ReadFile(filepath.Join(dir, ".lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	return s, json.Unmarshal(data, s)
}

func (s *clusterState) write(dir string) error {
	return writeJSON(filepath.Join(dir, ".lab.json"), s)
}

// SetMembers says which nodes of a cluster are online and whether they have
// quorum, and rewrites .members as each host sees it. pmxcfsDir is the
// cluster's folder (DIR/pmxcfs). Nodes that online does not name keep their
// state.
func SetMembers(pmxcfsDir string, online map[string]bool, quorate bool) error {
	unlock, err := lockFile(filepath.Join(pmxcfsDir, ".lab.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	s, err := readClusterState(pmxcfsDir)
	if err != nil {
		return err
	}
	for i, n := range s.Nodes {
		if on, ok := online[n.Name]; ok {
			s.Nodes[i].Online = on
		}
	}
	s.Quorate = quorate
	s.Config++
	return errors.Join(s.write(pmxcfsDir), s.writeMembers(pmxcfsDir))
}

// writeMembers writes one .members per node. The form with a cluster is from
// pmxcfs's source; it was not observed.
func (s *clusterState) writeMembers(dir string) error {
	for _, me := range s.Nodes {
		var b strings.Builder
		if s.Cluster == "" {
			fmt.Fprintf(&b, "{\n\"nodename\": %q,\n\"version\": 0\n}\n", me.Name)
		} else {
			quorate := 0
			if s.Quorate {
				quorate = 1
			}
			fmt.Fprintf(&b, "{\n\"nodename\": %q,\n\"version\": %d,\n", me.Name, s.Config)
			fmt.Fprintf(&b, "\"cluster\": { \"name\": %q, \"version\": %d, \"nodes\": %d, \"quorate\": %d },\n",
				s.Cluster, len(s.Nodes), len(s.Nodes), quorate)
			b.WriteString("\"nodelist\": {\n")
			for i, n := range s.Nodes {
				online, comma := 0, ","
				if n.Online || n.Name == me.Name {
					online = 1
				}
				if i == len(s.Nodes)-1 {
					comma = ""
				}
				fmt.Fprintf(&b, "  %q: { \"id\": %d, \"online\": %d, \"ip\": %q}%s\n", n.Name, i+1, online, n.IP, comma)
			}
			b.WriteString("  }\n}\n")
		}
		if err := replaceFile(filepath.Join(dir, ".members."+me.Name), []byte(b.String()), 0o640); err != nil {
			return err
		}
	}
	return nil
}

var confName = regexp.MustCompile(`^(\d+)\.conf$`)

// refresh looks at the guests' files and rewrites .vmlist and .version when
// something changed. pmxcfs itself does so at every write; here every program
// and the daemon do it when they start.
func (s *clusterState) refresh(dir string) error {
	seen := map[string]clusterGuest{}
	nodes, err := os.ReadDir(filepath.Join(dir, "nodes"))
	if err != nil {
		return err
	}
	for _, node := range nodes {
		for typ, sub := range map[string]string{"qemu": "qemu-server", "lxc": "lxc"} {
			files, err := os.ReadDir(filepath.Join(dir, "nodes", node.Name(), sub))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			for _, f := range files {
				m := confName.FindStringSubmatch(f.Name())
				if m == nil {
					continue
				}
				info, err := f.Info()
				if err != nil {
					continue // gone meanwhile
				}
				seen[m[1]] = clusterGuest{Node: node.Name(), Type: typ, Stamp: info.ModTime().UnixNano()}
			}
		}
	}
	changed := false
	for id, g := range seen {
		old, ok := s.VMs[id]
		if ok && old.Node == g.Node && old.Type == g.Type && old.Stamp == g.Stamp {
			g.Version = old.Version
			seen[id] = g
			continue
		}
		s.VMList++
		g.Version, changed = s.VMList, true
		seen[id] = g
	}
	for id := range s.VMs {
		if _, ok := seen[id]; !ok {
			s.VMList++
			changed = true
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "storage.cfg")); err == nil && st.ModTime().UnixNano() != s.StorageTime {
		s.Storage, s.StorageTime, changed = s.Storage+1, st.ModTime().UnixNano(), true
	}
	if _, err := os.Stat(filepath.Join(dir, ".vmlist")); err == nil && !changed {
		return nil
	}
	s.VMs = seen
	return errors.Join(s.write(dir),
		replaceFile(filepath.Join(dir, ".vmlist"), []byte(s.formatVMList()), 0o640),
		replaceFile(filepath.Join(dir, ".version"), []byte(s.formatVersions()), 0o640))
}

func (s *clusterState) formatVMList() string {
	var b strings.Builder
	fmt.Fprintf(&b, "{\n\"version\": %d", s.VMList)
	if len(s.VMs) > 0 {
		b.WriteString(",\n\"ids\": {\n")
		for i, id := range sortedIDs(s.VMs) {
			if i > 0 {
				b.WriteString(",\n")
			}
			g := s.VMs[id]
			fmt.Fprintf(&b, "%q: { \"node\": %q, \"type\": %q, \"version\": %d }", id, g.Node, g.Type, g.Version)
		}
		b.WriteString("}")
	}
	b.WriteString("\n\n}\n")
	return b.String()
}

// versionedFiles are the files .version counts besides .vmlist and storage.cfg.
var versionedFiles = strings.Fields(`user.cfg domains.cfg notifications.cfg priv/notifications.cfg
	priv/shadow.cfg priv/acme/plugins.cfg priv/tfa.cfg priv/token.cfg priv/wg-keys.cfg datacenter.cfg vzdump.cron vzdump.conf
	jobs.cfg ha/crm_commands ha/manager_status ha/resources.cfg ha/rules.cfg ha/groups.cfg ha/fence.cfg
	status.cfg replication.cfg ceph.conf sdn/vnets.cfg sdn/zones.cfg sdn/controllers.cfg sdn/subnets.cfg
	sdn/ipams.cfg sdn/mac-cache.json sdn/pve-ipam-state.json sdn/dns.cfg sdn/fabrics.cfg sdn/route-maps.cfg
	sdn/prefix-lists.cfg sdn/.running-config virtual-guest/cpu-models.conf virtual-guest/profiles.cfg
	firewall/cluster.fw mapping/directory.cfg mapping/pci.cfg mapping/usb.cfg`)

func (s *clusterState) formatVersions() string {
	var b strings.Builder
	fmt.Fprintf(&b, "{\n\"starttime\": %d,\n\"clinfo\": %d,\n\"vmlist\": %d,\n", s.Start, max(s.Config-1, 0), s.VMList)
	fmt.Fprintf(&b, "\"corosync.conf\": 1,\n\"corosync.conf.new\": 1,\n\"storage.cfg\": %d,\n", s.Storage)
	for _, f := range versionedFiles {
		fmt.Fprintf(&b, "%q: 1,\n", f)
	}
	b.WriteString("\"kvstore\": {\n")
	for i, n := range s.Nodes {
		end := "}"
		if i < len(s.Nodes)-1 {
			end = "},"
		}
		fmt.Fprintf(&b, "%q: {\n\"tasklist\": 1,\n\"kv/version-info\": 1%s\n", n.Name, end)
	}
	b.WriteString("}\n}\n")
	return b.String()
}

func sortedIDs[V any](m map[string]V) []string {
	ids := make([]string, 0, len(m))
	for id := range m {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b string) int {
		x, _ := strconv.Atoi(a)
		y, _ := strconv.Atoi(b)
		return x - y
	})
	return ids
}

// Refresh makes .vmlist and .version agree with the guests' files in a cluster
// file system, after someone changed them by hand.
func Refresh(pmxcfsDir string) error {
	unlock, err := lockFile(filepath.Join(pmxcfsDir, ".lab.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	s, err := readClusterState(pmxcfsDir)
	if err != nil {
		return err
	}
	return s.refresh(pmxcfsDir)
}

// Mounted says whether pmxcfs runs on this host.
func (h *Host) Mounted() bool { return h.mounted() }

// mounted says whether pmxcfs runs on this host: else /etc/pve is empty.
func (h *Host) mounted() bool {
	entries, err := os.ReadDir(h.path("etc/pve"))
	return err == nil && len(entries) > 0
}

func (h *Host) quorate() bool {
	s, err := readClusterState(h.pmxcfs())
	return err == nil && s.Quorate
}

// whereIs tells the node and type of a guest anywhere in the cluster.
func (h *Host) whereIs(vmid string) (clusterGuest, bool) {
	s, err := readClusterState(h.pmxcfs())
	if err != nil {
		return clusterGuest{}, false
	}
	g, ok := s.VMs[vmid]
	return g, ok
}

// confPath is where the configuration of a VM of this node lies.
func (h *Host) confPath(vmid string) string { return h.nodeDir("qemu-server", vmid+".conf") }

// writePVE replaces a file in /etc/pve as pmxcfs clients do: beside, then
// renamed. name is as seen from /etc/pve. Without quorum it is refused.
func (h *Host) writePVE(name string, data []byte) error {
	tmp := fmt.Sprintf("/etc/pve/%s.tmp.%d", name, os.Getpid())
	if !h.quorate() {
		return fail(2, "unable to open file '%s' - Permission denied", tmp)
	}
	if err := os.WriteFile(h.path(tmp), data, 0o640); err != nil {
		return fail(2, "unable to open file '%s' - %s", tmp, errnoText(err))
	}
	if err := os.Rename(h.path(tmp), h.path("etc/pve", name)); err != nil {
		return fail(2, "close (rename) atomic file '/etc/pve/%s' failed: %s", name, errnoText(err))
	}
	return Refresh(h.pmxcfs())
}

func (h *Host) removePVE(name string) error {
	if !h.quorate() {
		return fail(2, "unable to open file '/etc/pve/%s' - Permission denied", name)
	}
	if err := os.Remove(h.path("etc/pve", name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return Refresh(h.pmxcfs())
}

// checkQuorum is what create and start do before anything else.
func (h *Host) checkQuorum() error {
	if !h.quorate() {
		return fail(2, "cluster not ready - no quorum?")
	}
	return nil
}

// errnoText is the system's own words for an error, as Perl's $! gives them.
func errnoText(err error) string {
	var errno interface{ Error() string }
	for e := err; e != nil; e = errors.Unwrap(e) {
		errno = e
	}
	if errno == nil {
		return ""
	}
	text := errno.Error()
	if text == "" {
		return text
	}
	return strings.ToUpper(text[:1]) + text[1:]
}

func ctime(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }
