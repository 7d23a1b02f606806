package pve

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/homeiac/homelab/lab/disk"
)

var newDisk = regexp.MustCompile(`^([^:\s/]+):(\d+(\.\d+)?)$`)

// checkDrives refuses drives that can be seen to be wrong before anything is
// made: unknown storages, wrong content, paths that belong to no storage.
func (r *run) checkDrives(p params) error {
	for _, key := range driveNames {
		value, ok := p[key]
		if !ok {
			continue
		}
		d := parseDrive(key, value)
		if d.file == "none" || d.file == "cdrom" {
			continue
		}
		if strings.HasPrefix(d.file, "/") {
			return badParam(255, key, "unable to associate path '%s' to any storage", d.file)
		}
		id, name := splitVolume(d.file)
		if id == "" {
			return fail(255, "unable to parse volume ID '%s'", d.file)
		}
		s, err := r.storage(id)
		if err != nil {
			return err
		}
		if name == "cloudinit" || newDisk.MatchString(d.file) {
			if !s.holds("images") {
				return badParam(255, "storage", "storage '%s' does not support vm images", id)
			}
			continue
		}
		if _, err := s.parse(name); err != nil {
			return err
		}
	}
	return nil
}

// made are volumes that a command has made so far, to be freed if it fails.
type made []string

// freeAll removes the volumes of a command that failed.
func (r *run) freeAll(m made) {
	for _, v := range m {
		if err := r.free(v); err != nil {
			r.warnf("%v\n", err)
		}
	}
}

// createDisks makes or attaches every drive that p asks for and returns the
// values for the configuration. cur is the VM's present configuration.
func (r *run) createDisks(vmid string, cur section, p params) (values section, m made, cloudInit bool, err error) {
	values = section{}
	for _, key := range driveNames {
		value, ok := p[key]
		if !ok {
			continue
		}
		d := parseDrive(key, value)
		_, name := splitVolume(d.file)
		switch {
		case d.file == "none" || d.file == "cdrom":
		case name == "cloudinit":
			cloudInit = true
			err = r.makeCloudInit(vmid, cur, &d, &m)
		case d.opts["import-from"] != "":
			err = r.importFrom(vmid, &d, &m)
		case newDisk.MatchString(d.file):
			err = r.allocDisk(vmid, &d, &m)
		default:
			err = r.attach(&d)
		}
		if err != nil {
			return nil, m, false, err
		}
		values[key] = d.String()
	}
	return values, m, cloudInit, nil
}

func (r *run) makeCloudInit(vmid string, cur section, d *drive, m *made) error {
	for _, other := range cur.drives() {
		if other.cloudInit() && other.key != d.key {
			return fail(255, "%s - cloud-init drive is already attached at '%s'", d.key, other.key)
		}
	}
	id, _ := splitVolume(d.file)
	s, err := r.usable(id)
	if err != nil {
		return err
	}
	name, format := "vm-"+vmid+"-cloudinit", "raw"
	if s.typ == "dir" {
		if format = d.opts["format"]; format == "" {
			format = "qcow2"
		}
		name += "." + format
	}
	v, err := r.alloc(id, vmid, format, name, disk.CloudInitSize)
	if err != nil {
		if codeOf(err) == 2 { // a full storage
			return fail(1, "%v", err)
		}
		return fail(255, "%v", err)
	}
	*m = append(*m, v.id)
	d.file, d.opts["media"] = v.id, "cdrom"
	delete(d.opts, "format")
	r.printf("%s: successfully created disk '%s'\n", d.key, d)
	return nil
}

func (r *run) allocDisk(vmid string, d *drive, m *made) error {
	g := newDisk.FindStringSubmatch(d.file)
	gib, err := strconv.ParseFloat(g[2], 64)
	if err != nil {
		return fail(255, "unable to parse size '%s'", g[2])
	}
	kib := int64(gib * (1 << 20))
	if float64(kib) < gib*(1<<20) {
		kib++
	}
	size := kib << 10
	if d.key == "efidisk0" || d.key == "tpmstate0" {
		s, err := r.storage(g[1])
		if err != nil {
			return err
		}
		size = stateSize(d, s)
	}
	v, err := r.alloc(g[1], vmid, d.opts["format"], "", size)
	if err != nil {
		return err
	}
	*m = append(*m, v.id)
	d.file, d.opts["size"] = v.id, formatSize(size)
	delete(d.opts, "format")
	r.printf("%s: successfully created disk '%s'\n", d.key, d)
	return nil
}

// stateSize is the fixed size of an EFI or TPM disk, which ignores what was
// asked for; block storages round it up.
func stateSize(d *drive, s *storage) int64 {
	size := int64(128 << 10)
	switch {
	case d.key == "tpmstate0":
		size = 4 << 20
	case d.opts["efitype"] == "4m":
		size = 528 << 10
	}
	switch s.typ {
	case "zfspool":
		return roundUp(size, 1<<20)
	case "lvmthin":
		return roundUp(size, 4<<20)
	}
	return size
}

// importFrom fills a new disk from a file on the host or from a volume.
func (r *run) importFrom(vmid string, d *drive, m *made) error {
	store, _, _ := strings.Cut(d.file, ":")
	src, format := d.opts["import-from"], d.opts["format"]
	path, fromVolume := src, false
	if !strings.HasPrefix(src, "/") {
		v, err := r.existing(src)
		if err != nil {
			return err
		}
		path, fromVolume = v.path(), true
		r.printf("create full clone of drive (%s)\n", src)
		if s, err := r.storage(store); err == nil && format == "" && s.typ == "dir" && v.store.typ == "dir" {
			format = v.format
		}
	} else if st, err := os.Stat(r.path(path)); err != nil || !st.Mode().IsRegular() {
		return fail(255, "can't find file '%s'", src)
	}
	srcFormat, size, err := disk.Info(r.path(path))
	if err != nil {
		return err
	}
	if format != "raw" && format != "qcow2" {
		format = ""
	}
	v, err := r.alloc(store, vmid, format, "", size)
	if err != nil {
		return err
	}
	*m = append(*m, v.id)
	if fromVolume {
		r.printf("allocated target volume '%s'\n", v.id)
	}
	if err := r.copyInto(v, path, srcFormat); err != nil {
		return err
	}
	d.file, d.opts["size"] = v.id, formatSize(roundUp(size, 512))
	delete(d.opts, "import-from")
	delete(d.opts, "format")
	r.printf("%s: successfully created disk '%s'\n", d.key, d)
	return nil
}

// attach takes a volume that exists; the size written is the real one.
func (r *run) attach(d *drive) error {
	v, err := r.existing(d.file)
	if err != nil {
		return fail(255, "%v", err)
	}
	_, size, err := disk.Info(r.path(v.path()))
	if err != nil {
		return err
	}
	if !d.cloudInit() {
		d.opts["size"] = formatSize(size)
	}
	return nil
}

// giveMACs completes the NICs of p: a missing address is made up.
func (r *run) giveMACs(p params) {
	for key, value := range p {
		if m := numbering.FindStringSubmatch(key); m == nil || m[1] != "net" {
			continue
		}
		nic, _ := parseNet(key, value)
		if nic["macaddr"] == "" {
			nic["macaddr"] = r.newMAC()
		}
		p[key] = formatNet(nic)
	}
}

// bootDefault is the boot order of a VM that names none: its first disk, its
// first CD-ROM, its first NIC.
func bootDefault(s section) string {
	var order []string
	for _, cdrom := range []bool{false, true} {
		for _, d := range s.drives() {
			if d.cdrom() == cdrom && d.key != "efidisk0" && d.key != "tpmstate0" {
				order = append(order, d.key)
				break
			}
		}
	}
	for i := range 32 {
		if key := fmt.Sprintf("net%d", i); s[key] != "" {
			order = append(order, key)
			break
		}
	}
	if len(order) == 0 {
		return ""
	}
	return "order=" + strings.Join(order, ";")
}
