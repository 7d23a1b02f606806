package pve

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/homeiac/homelab/lab/disk"
)

// storageStatus is qm's view of one storage.
type storageStatus struct {
	*storage
	active, enabled bool
	usage
}

// statusOf looks at a storage; what is wrong with it is said on stderr.
func (r *run) statusOf(s *storage) storageStatus {
	st := storageStatus{storage: s, enabled: !s.disabled()}
	if !st.enabled {
		return st
	}
	if err := r.activate(s); err != nil {
		r.warnf("%v\n", err)
		return st
	}
	st.active, st.usage = true, r.usage(s)
	return st
}

// pvesmStatus is pvesm status.
func (r *run) pvesmStatus(p params) error {
	list, err := r.storages()
	if err != nil {
		return err
	}
	if id := p["storage"]; id != "" && !slices.ContainsFunc(list, func(s *storage) bool { return s.id == id }) {
		return badParam(255, "storage", "No such storage.")
	}
	slices.SortFunc(list, func(a, b *storage) int { return strings.Compare(a.id, b.id) })
	var rows [][]string
	for _, s := range list {
		switch {
		case !s.onNode(r.cfg.NodeName), p["storage"] != "" && s.id != p["storage"], p.on("enabled") && s.disabled(),
			p["content"] != "" && !slices.ContainsFunc(strings.Split(p["content"], ","), s.holds):
			continue
		}
		st := r.statusOf(s)
		state, percent := "inactive", "0.00%"
		switch {
		case st.active:
			state = "active"
			if st.total > 0 {
				percent = fmt.Sprintf("%.2f%%", float64(st.used)*100/float64(st.total))
			}
		case !st.enabled:
			state, percent = "disabled", "N/A"
		}
		kib := func(n int64) string { return strconv.FormatInt(n>>10, 10) }
		rows = append(rows, []string{s.id, s.typ, state, kib(st.total), kib(st.used), kib(st.free()), percent})
	}
	if len(rows) == 0 {
		return nil
	}
	width := 0
	for _, row := range rows {
		width = max(width, len(row[0])+1)
	}
	// PVE 8 printed the sizes without their unit.
	head := []string{"Name", "Type", "Status", "Total (KiB)", "Used (KiB)", "Available (KiB)", "%"}
	if strings.HasPrefix(r.cfg.PVEVersion, "8.") {
		head[3], head[4], head[5] = "Total", "Used", "Available"
	}
	for _, row := range append([][]string{head}, rows...) {
		r.printf("%-*s %10s %10s %15s %15s %15s %8s\n", width, row[0], row[1], row[2], row[3], row[4], row[5], row[6])
	}
	return nil
}

// content is one entry of a storage's contents.
type content struct {
	*volume
	size  int64
	ctime int64
	used  int64
}

// contents lists what a storage holds, sorted by volume ID.
func (r *run) contents(s *storage) ([]content, error) {
	var list []content
	add := func(v *volume) {
		info, err := os.Stat(r.path(v.path()))
		if err != nil {
			return
		}
		c := content{volume: v, size: info.Size(), ctime: info.ModTime().Unix(), used: allocated(info)}
		if v.content == "images" {
			_, c.size, _ = disk.Info(r.path(v.path()))
		}
		list = append(list, c)
	}
	if s.holds("images") {
		volumes, err := r.images(s, "")
		if err != nil {
			return nil, err
		}
		for _, v := range volumes {
			add(v)
		}
	}
	for typ, folder := range contentFolder {
		if s.typ != "dir" || !s.holds(typ) {
			continue
		}
		entries, err := os.ReadDir(r.path(s.base(), folder))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if v, err := s.parse(typ + "/" + e.Name()); err == nil && e.Type().IsRegular() && listed(v) {
				add(v)
			}
		}
	}
	slices.SortFunc(list, func(a, b content) int { return strings.Compare(a.id, b.id) })
	return list, nil
}

// listed leaves out files that are no content of their folder's type.
func listed(v *volume) bool {
	ext := filepath.Ext(v.name)
	switch v.content {
	case "iso":
		return ext == ".iso" || ext == ".img"
	case "import":
		return slices.Contains([]string{".qcow2", ".raw", ".vmdk", ".ova", ".ovf"}, ext)
	}
	return true
}

// pvesmList is pvesm list.
func (r *run) pvesmList(p params) error {
	s, err := r.usable(p["storage"])
	if err != nil {
		return err
	}
	all, err := r.contents(s)
	if err != nil {
		return err
	}
	list := slices.DeleteFunc(all, func(c content) bool {
		return p["content"] != "" && c.content != p["content"] || p["vmid"] != "" && c.content == "images" && c.vmid != p["vmid"] ||
			p["vmid"] != "" && slices.Contains([]string{"iso", "import", "vztmpl"}, c.content)
	})
	// The width of Size is that of the values, not of its title.
	idWidth, sizeWidth := len("Volid"), 0
	for _, c := range list {
		idWidth, sizeWidth = max(idWidth, len(c.id)), max(sizeWidth, len(strconv.FormatInt(c.size, 10)))
	}
	r.printf("%-*s %-7s %-9s %*s %s\n", idWidth, "Volid", "Format", "Type", sizeWidth, "Size", "VMID")
	for _, c := range list {
		line := fmt.Sprintf("%-*s %-7s %-9s %*d %s", idWidth, c.id, c.format, c.content, sizeWidth, c.size, c.vmid)
		r.printf("%s\n", strings.TrimRight(line, " "))
	}
	return nil
}

var allocSize = regexp.MustCompile(`^\d+[MG]?$`)

// pvesmAlloc is pvesm alloc. A size without unit is KiB.
func (r *run) pvesmAlloc(p params) error {
	if !allocSize.MatchString(p["size"]) {
		return badParam(2, "size", "value does not match the regex pattern")
	}
	size, _ := parseSize(p["size"])
	if !strings.ContainsAny(p["size"], "MG") {
		size <<= 10
	}
	format := p["format"]
	if ext := strings.TrimPrefix(filepath.Ext(p["filename"]), "."); format == "" && slices.Contains([]string{"raw", "qcow2", "vmdk"}, ext) {
		format = ext
	}
	v, err := r.alloc(p["storage"], p["vmid"], format, p["filename"], size)
	if err != nil {
		return err
	}
	r.printf("successfully created '%s'\n", v.id)
	return nil
}

// pvesmFree is pvesm free: freeing what is not there succeeds.
func (r *run) pvesmFree(p params) error {
	v, err := r.parseVolume(p["volume"])
	if err != nil {
		return err
	}
	id := v.store.id
	if v.vmid != "" {
		id = v.vmid + "@" + v.store.id
	}
	return r.task("imgdel", id, func(t *run) error {
		if err := t.free(v.id); err != nil {
			return err
		}
		t.printf("Removed volume '%s'\n", v.id)
		return nil
	})
}

// pvesmPath is pvesm path. The volume need not exist.
func (r *run) pvesmPath(p params) error {
	v, err := r.parseVolume(p["volume"])
	if err != nil {
		return err
	}
	if v.store.disabled() {
		return fail(255, "storage '%s' is disabled", v.store.id)
	}
	r.printf("%s\n", v.path())
	return nil
}

// pvesmAdd is pvesm add.
func (r *run) pvesmAdd(p params) error {
	if need := map[string]string{"dir": "path", "zfspool": "pool", "lvmthin": "vgname"}[p["type"]]; need == "" {
		return notSimulated("storages of type %s", p["type"])
	} else if p[need] == "" {
		return fail(2, "missing value for required option '%s'", need)
	}
	return r.changeStorages(func(list []*storage) ([]*storage, error) {
		if slices.ContainsFunc(list, func(s *storage) bool { return s.id == p["storage"] }) {
			return nil, fail(255, "create storage failed: storage ID '%s' already defined", p["storage"])
		}
		s := &storage{id: p["storage"], typ: p["type"]}
		for _, k := range slices.Sorted(mapsKeys(p)) {
			if k != "type" && k != "storage" {
				s.set(k, p[k])
			}
		}
		if s.get("content") == "" {
			s.set("content", "images,rootdir")
		}
		if err := r.activate(s); err != nil {
			return nil, fail(255, "create storage failed: %v", err)
		}
		return append(list, s), nil
	})
}

// pvesmSet is pvesm set.
func (r *run) pvesmSet(p params) error {
	return r.changeStorages(func(list []*storage) ([]*storage, error) {
		i := slices.IndexFunc(list, func(s *storage) bool { return s.id == p["storage"] })
		if i < 0 {
			return nil, fail(255, "update storage failed: storage '%s' does not exist", p["storage"])
		}
		for k := range strings.FieldsFuncSeq(p["delete"], listSeparator) {
			list[i].unset(k)
		}
		for _, k := range slices.Sorted(mapsKeys(p)) {
			switch {
			case k == "storage" || k == "delete":
			case k == "disable" && !p.on(k):
				list[i].unset(k)
			case k == "disable":
				list[i].set(k, "")
			default:
				list[i].set(k, p[k])
			}
		}
		return list, nil
	})
}

// pvesmRemove is pvesm remove. Its volumes stay.
func (r *run) pvesmRemove(p params) error {
	return r.changeStorages(func(list []*storage) ([]*storage, error) {
		i := slices.IndexFunc(list, func(s *storage) bool { return s.id == p["storage"] })
		if i < 0 {
			return nil, fail(255, "delete storage failed: storage '%s' does not exist", p["storage"])
		}
		return slices.Delete(list, i, i+1), nil
	})
}

func (r *run) changeStorages(change func([]*storage) ([]*storage, error)) error {
	list, err := r.storages()
	if err != nil {
		return err
	}
	if list, err = change(list); err != nil {
		return err
	}
	// storage.cfg is a link into the cluster's folder here, which a rename
	// would replace.
	if !r.quorate() {
		return fail(2, "unable to open file '/etc/pve/storage.cfg.tmp.%d' - Permission denied", os.Getpid())
	}
	if err := replaceFile(filepath.Join(r.pmxcfs(), "storage.cfg"), []byte(formatStorageCfg(list)), 0o640); err != nil {
		return err
	}
	return Refresh(r.pmxcfs())
}
