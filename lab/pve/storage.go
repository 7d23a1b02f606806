package pve

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/homeiac/homelab/lab/disk"
)

// storage is one section of storage.cfg.
type storage struct {
	id, typ string
	keys    []string // in file order
	values  map[string]string
}

func (s *storage) get(key string) string { return s.values[key] }

func (s *storage) set(key, value string) {
	if s.values == nil {
		s.values = map[string]string{}
	}
	if _, ok := s.values[key]; !ok {
		s.keys = append(s.keys, key)
	}
	s.values[key] = value
}

func (s *storage) unset(key string) {
	delete(s.values, key)
	s.keys = slices.DeleteFunc(s.keys, func(k string) bool { return k == key })
}

func (s *storage) content() []string { return strings.Split(s.get("content"), ",") }

func (s *storage) holds(content string) bool { return slices.Contains(s.content(), content) }

func (s *storage) disabled() bool {
	v, ok := s.values["disable"]
	return ok && v != "0"
}

// onNode says whether the storage exists on a node.
func (s *storage) onNode(node string) bool {
	nodes := s.get("nodes")
	return nodes == "" || slices.Contains(strings.Split(nodes, ","), node)
}

var storageHead = regexp.MustCompile(`^([a-z]+):\s*(\S+)\s*$`)

func readStorageCfg(path string) ([]*storage, error) {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var list []*storage
	for line := range strings.Lines(string(data)) {
		if m := storageHead.FindStringSubmatch(line); m != nil {
			list = append(list, &storage{id: m[2], typ: m[1]})
			continue
		}
		if key, value, _ := strings.Cut(strings.TrimSpace(line), " "); key != "" && key[0] != '#' && len(list) > 0 {
			list[len(list)-1].set(key, strings.TrimSpace(value))
		}
	}
	return list, nil
}

// keyOrder is how Proxmox orders the keys it knows: what a type needs first.
var keyOrder = []string{"disable", "path", "pool", "thinpool", "vgname", "content"}

func formatStorageCfg(list []*storage) string {
	var b strings.Builder
	for _, s := range list {
		fmt.Fprintf(&b, "%s: %s\n", s.typ, s.id)
		keys := slices.Clone(s.keys)
		slices.SortStableFunc(keys, func(x, y string) int { return rank(x) - rank(y) })
		for _, k := range keys {
			if v := s.get(k); k == "disable" || v == "" {
				fmt.Fprintf(&b, "\t%s\n", k)
			} else {
				fmt.Fprintf(&b, "\t%s %s\n", k, v)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

func rank(key string) int {
	if i := slices.Index(keyOrder, key); i >= 0 {
		return i
	}
	return len(keyOrder)
}

func (h *Host) storages() ([]*storage, error) { return readStorageCfg(h.path("etc/pve/storage.cfg")) }

// storage finds a storage by ID.
func (h *Host) storage(id string) (*storage, error) {
	list, err := h.storages()
	if err != nil {
		return nil, err
	}
	for _, s := range list {
		if s.id == id {
			return s, nil
		}
	}
	return nil, fail(255, "storage '%s' does not exist", id)
}

// usable is a storage that is enabled and there.
func (h *Host) usable(id string) (*storage, error) {
	s, err := h.storage(id)
	if err != nil {
		return nil, err
	}
	switch {
	case s.disabled():
		return nil, fail(255, "storage '%s' is disabled", id)
	case !s.onNode(h.cfg.NodeName):
		return nil, fail(255, "storage '%s' is not available on node '%s'", id, h.cfg.NodeName)
	}
	return s, h.activate(s)
}

// activate checks that a storage is there, and makes a dir's folders.
func (h *Host) activate(s *storage) error {
	if err := h.away(s); err != nil {
		return err
	}
	switch s.typ {
	case "dir":
		path := s.get("path")
		if on, _ := parseBool(s.get("is_mountpoint")); on && !slices.Contains(h.cfg.Mounts, path) {
			return fail(255, "unable to activate storage '%s' - directory is expected to be a mount point but is not mounted: '%s'", s.id, path)
		}
		return os.MkdirAll(h.path(path), 0o755)
	case "zfspool", "lvmthin":
		return os.MkdirAll(h.path(s.base()), 0o755)
	}
	return notSimulated("storages of type %s", s.typ)
}

// base is the folder on the host that holds the storage's volumes.
func (s *storage) base() string {
	switch s.typ {
	case "zfspool":
		return filepath.Join("/dev/zvol", s.get("pool"))
	case "lvmthin":
		return filepath.Join("/dev", s.get("vgname"))
	}
	return s.get("path")
}

// contentFolder is where a dir storage keeps a type of content.
var contentFolder = map[string]string{
	"iso": "template/iso", "vztmpl": "template/cache", "snippets": "snippets", "import": "import", "backup": "dump",
}

// volume is a parsed volume ID.
type volume struct {
	store   *storage
	id      string // STORAGE:NAME
	content string // images, iso, snippets, ...
	vmid    string // of its owner, for images
	name    string // file name, for images
	format  string
	base    string // the volume a linked clone stands on
}

var (
	dirImage = regexp.MustCompile(`^((\d+)/([^/]+\.(raw|qcow2|vmdk))/)?(\d+)/([^/\s]+\.(raw|qcow2|vmdk))$`)
	dirOther = regexp.MustCompile(`^(iso|vztmpl|snippets|import|backup)/([^/]+)$`)
	blockVol = regexp.MustCompile(`^((base-\d+-\S+)/)?((vm|base)-(\d+)-\S+)$`)
)

// parseVolume takes a volume ID apart. It need not exist.
func (h *Host) parseVolume(volid string) (*volume, error) {
	id, name := splitVolume(volid)
	if id == "" {
		return nil, fail(255, "unable to parse volume ID '%s'", volid)
	}
	s, err := h.storage(id)
	if err != nil {
		return nil, err
	}
	return s.parse(name)
}

func (s *storage) parse(name string) (*volume, error) {
	v := &volume{store: s, id: s.id + ":" + name}
	if s.typ != "dir" {
		m := blockVol.FindStringSubmatch(name)
		if m == nil {
			what := map[string]string{"zfspool": "zfs", "lvmthin": "lvm"}[s.typ]
			return nil, fail(255, "unable to parse %s volume name '%s'", what, name)
		}
		v.content, v.base, v.name, v.vmid, v.format = "images", m[2], m[3], m[5], "raw"
		return v, nil
	}
	if m := dirImage.FindStringSubmatch(name); m != nil {
		v.content, v.vmid, v.name, v.format = "images", m[5], m[6], m[7]
		if m[1] != "" {
			v.base = m[2] + "/" + m[3]
		}
		return v, nil
	}
	if m := dirOther.FindStringSubmatch(name); m != nil {
		v.content, v.name = m[1], m[2]
		v.format = strings.TrimPrefix(filepath.Ext(m[2]), ".")
		if v.content == "snippets" {
			v.format = "snippet"
		}
		return v, nil
	}
	return nil, fail(255, "unable to parse directory volume name '%s'", name)
}

// path is where the volume lies on the host.
func (v *volume) path() string {
	s := v.store
	switch {
	case s.typ != "dir":
		return filepath.Join(s.base(), v.name)
	case v.content == "images":
		return filepath.Join(s.base(), "images", v.vmid, v.name)
	}
	return filepath.Join(s.base(), contentFolder[v.content], v.name)
}

// existing finds a volume on a storage that can be used.
func (h *Host) existing(volid string) (*volume, error) {
	v, err := h.parseVolume(volid)
	if err != nil {
		return nil, err
	}
	if _, err := h.usable(v.store.id); err != nil {
		return nil, err
	}
	if _, err := os.Stat(h.path(v.path())); err != nil {
		return v, fail(2, "volume '%s' does not exist", volid)
	}
	return v, nil
}

// images lists the volumes of guests on a storage, of vmid or of all ("").
func (h *Host) images(s *storage, vmid string) ([]*volume, error) {
	var list []*volume
	add := func(name string) {
		if v, err := s.parse(name); err == nil && v.content == "images" && (vmid == "" || v.vmid == vmid) {
			list = append(list, v)
		}
	}
	if s.typ != "dir" {
		entries, err := os.ReadDir(h.path(s.base()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if !e.IsDir() {
				add(e.Name())
			}
		}
		return list, nil
	}
	owners, err := os.ReadDir(h.path(s.base(), "images"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, o := range owners {
		entries, err := os.ReadDir(h.path(s.base(), "images", o.Name()))
		if err != nil {
			continue
		}
		for _, e := range entries {
			if e.IsDir() {
				continue
			}
			name := o.Name() + "/" + e.Name()
			// A linked clone is named with the volume it stands on.
			if b := disk.Backing(h.path(s.base(), "images", name)); b != "" {
				name = strings.TrimPrefix(b, "../") + "/" + name
			}
			add(name)
		}
	}
	return list, nil
}

// usage is a storage's size and what of it is used, in bytes.
type usage struct{ total, used int64 }

func (u usage) free() int64 { return max(u.total-u.used, 0) }

// defaultTotal is the size of a storage that host.json does not know: one that
// an administrator added.
const defaultTotal = 100 << 30

// usage counts what the volumes of a storage really take, and what others use.
func (h *Host) usage(s *storage) usage {
	u := usage{total: defaultTotal}
	for _, c := range h.cfg.Storages {
		if c.Name == s.id {
			u.total, u.used = c.TotalBytes, c.ForeignBytes
		}
	}
	_ = filepath.WalkDir(h.path(s.base()), func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil //nolint:nilerr // gone while we looked
		case d.IsDir() && strings.HasSuffix(path, ".fs"):
			// A guest's own files stand for the inside of its disk.
			return filepath.SkipDir
		case d.IsDir():
			return nil
		}
		if info, err := d.Info(); err == nil {
			u.used += allocated(info)
		}
		return nil
	})
	u.used = min(u.used, u.total)
	return u
}
