package pve

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/homeiac/homelab/lab/disk"
)

// allocated is what a file really takes, in bytes.
func allocated(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}

// defaultFormat is what a storage makes when no format is asked for.
func (s *storage) defaultFormat() string { return "raw" }

// alloc makes an empty volume. With name "" it takes the first free
// vm-VMID-disk-N. What it prints is qemu-img's own line.
func (r *run) alloc(storeID, vmid, format, name string, size int64) (*volume, error) {
	s, err := r.usable(storeID)
	if err != nil {
		return nil, err
	}
	var v *volume
	err = r.withStorageLock(storeID, func() error {
		v, err = r.allocLocked(s, vmid, format, name, size)
		return err
	})
	return v, err
}

func (r *run) allocLocked(s *storage, vmid, format, name string, size int64) (*volume, error) {
	if format == "" {
		format = s.defaultFormat()
	}
	if s.typ != "dir" && format != "raw" {
		return nil, fail(255, "unsupported format '%s'", format)
	}
	if format != "raw" && format != "qcow2" {
		return nil, notSimulated("making volumes of format %s", format)
	}
	if name == "" {
		name = r.freeName(s, vmid, "disk")
		if s.typ == "dir" {
			name += "." + format
		}
	}
	full := name
	if s.typ == "dir" {
		full = vmid + "/" + name
	}
	v, err := s.parse(full)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(r.path(filepath.Dir(v.path())), 0o750); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(r.path(v.path())); err == nil {
		switch s.typ {
		case "dir":
			return nil, fail(25, "disk image '%s' already exists", v.path())
		case "zfspool":
			return nil, fail(255, "zfs error: cannot create '%s/%s': dataset already exists", s.get("pool"), v.name)
		}
		return nil, fail(5, "  Logical Volume \"%s\" already exists in volume group \"%s\"\nlvcreate '%s/%s' error:   Logical Volume \"%s\" already exists in volume group \"%s\"",
			v.name, s.get("vgname"), s.get("vgname"), v.name, v.name, s.get("vgname"))
	}
	size = roundUp(size, 512)
	r.announce(s, v, size, "")
	if format == "qcow2" && r.usage(s).free() == 0 {
		return nil, fail(2, "unable to create image: qemu-img: %s: Could not write qcow2 header: No space left on device", v.path())
	}
	return v, disk.Create(r.path(v.path()), format, size, "")
}

// announce prints what the storage's own program says when it makes a volume.
func (r *run) announce(s *storage, v *volume, size int64, backing string) {
	switch {
	case s.typ == "lvmthin":
		r.printf("  Logical volume \"%s\" created.\n", v.name)
	case s.typ == "zfspool":
	case v.format == "raw":
		r.printf("Formatting '%s', fmt=raw size=%d preallocation=off\n", v.path(), size)
	case backing != "":
		format := strings.TrimPrefix(filepath.Ext(backing), ".")
		r.printf("Formatting '%s', fmt=qcow2 cluster_size=131072 extended_l2=on preallocation=%s compression_type=zlib size=%d backing_file=%s backing_fmt=%s lazy_refcounts=off refcount_bits=16\n",
			v.path(), map[bool]string{true: "metadata", false: "off"}[format == "qcow2"], size, backing, format)
	default:
		r.printf("Formatting '%s', fmt=qcow2 cluster_size=65536 extended_l2=off preallocation=metadata compression_type=zlib size=%d lazy_refcounts=off refcount_bits=16\n",
			v.path(), size)
	}
}

// freeName is the first vm-VMID-KIND-N that no volume of the storage has.
func (r *run) freeName(s *storage, vmid, kind string) string {
	taken := map[string]bool{}
	list, _ := r.images(s, vmid)
	for _, v := range list {
		name := strings.TrimSuffix(v.name, filepath.Ext(v.name))
		if s.typ != "dir" {
			name = v.name
		}
		taken[strings.TrimPrefix(strings.TrimPrefix(name, "vm-"), "base-")] = true
	}
	for i := 0; ; i++ {
		if name := fmt.Sprintf("%s-%s-%d", vmid, kind, i); !taken[name] {
			return "vm-" + name
		}
	}
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

// free removes a volume. One that is not there is only a message.
func (r *run) free(volid string) error {
	v, err := r.parseVolume(volid)
	if err != nil {
		return err
	}
	if _, err := r.usable(v.store.id); err != nil {
		return err
	}
	return r.withStorageLock(v.store.id, func() error { return r.freeLocked(v) })
}

func (r *run) freeLocked(v *volume) error {
	if strings.HasPrefix(v.name, "base-") {
		if used, err := r.linked(v); err != nil {
			return err
		} else if used {
			return fail(255, "base volume '%s' is still in use by linked cloned", v.id)
		}
	}
	err := disk.Remove(r.path(v.path()))
	if errors.Is(err, fs.ErrNotExist) {
		r.warnf("%s\n", v.gone())
		return nil
	}
	if err == nil && v.store.typ == "lvmthin" {
		r.printf("  Logical volume \"%s\" successfully removed.\n", v.name)
	}
	if v.content == "images" && v.store.typ == "dir" {
		_ = os.Remove(filepath.Dir(r.path(v.path()))) // only when it is empty
	}
	return err
}

// gone is the storage's message for a volume that is not there.
func (v *volume) gone() string {
	switch v.store.typ {
	case "zfspool":
		return fmt.Sprintf("cannot open '%s/%s': dataset does not exist", v.store.get("pool"), v.name)
	case "lvmthin":
		return fmt.Sprintf("  Failed to find logical volume \"%s/%s\"", v.store.get("vgname"), v.name)
	}
	return fmt.Sprintf("disk image '%s' does not exist", v.path())
}

// linked says whether a base volume has linked clones.
func (r *run) linked(base *volume) (bool, error) {
	list, err := r.images(base.store, "")
	if err != nil {
		return false, err
	}
	want := base.vmid + "/" + base.name
	return slices.ContainsFunc(list, func(v *volume) bool { return v.base == want }), nil
}

// copyInto fills the volume v from the image at host path src, printing
// qemu-img's progress. A failure frees nothing.
func (r *run) copyInto(v *volume, src, srcFormat string) error {
	return r.copyFile(v, r.path(src), src, srcFormat)
}

// copyFile does it from a file, which messages call src.
func (r *run) copyFile(v *volume, file, src, srcFormat string) error {
	_, size, err := disk.Info(file)
	if err != nil {
		return err
	}
	free := r.usage(v.store).free()
	p := progress{r: r, total: size}
	p.print(0)
	err = disk.Fill(r.ctx, r.path(v.path()), file, free, p.print)
	var full *disk.Full
	convert := fmt.Sprintf("copy failed: command '/usr/bin/qemu-img convert -p -n -f %s -O %s %s zeroinit:%s' failed: ",
		srcFormat, v.format, src, v.path())
	switch {
	case errors.As(err, &full):
		p.finish()
		return fail(255, "qemu-img: error while writing at byte %d: No space left on device\n%sexit code 1", full.At, convert)
	case errors.Is(err, errInterrupted) || errors.Is(err, context.Canceled):
		return fail(25, "%sinterrupted by signal Interrupted system call", convert)
	case err != nil:
		return fail(255, "%s%v", convert, err)
	}
	p.finish()
	return nil
}

// progress prints lines as qemu-img -p does, through Proxmox.
type progress struct {
	r     *run
	total int64
	last  int64 // bytes at the last line
	begun bool
}

func (p *progress) print(done int64) {
	done = min(done, p.total)
	if p.begun && done-p.last < max(p.total/100, 2<<20) {
		return
	}
	p.begun, p.last = true, done
	percent := 100.0
	if p.total > 0 {
		percent = math.Floor(float64(done)/float64(p.total)*10000) / 100
	}
	p.r.printf("transferred %s of %s (%.2f%%)\n", humanSize(done), humanSize(p.total), percent)
}

// finish prints 100 % twice, as was seen.
func (p *progress) finish() {
	for range 2 {
		p.r.printf("transferred %s of %s (100.00%%)\n", humanSize(p.total), humanSize(p.total))
	}
}

func humanSize(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return strconv.FormatFloat(f, 'f', 1, 64) + " " + units[i]
}
