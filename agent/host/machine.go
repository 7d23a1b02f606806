package host

import (
	"bufio"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"golang.org/x/sys/unix"
)

// memory is MemTotal in bytes, 0 when it could not be read.
func (h *Host) memory() int64 {
	for line := range h.lines("proc/meminfo") {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}

// cpus counts the processors, 0 when they could not be read.
func (h *Host) cpus() int32 {
	var n int32
	for line := range h.lines("proc/cpuinfo") {
		if key, _, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "processor" {
			n++
		}
	}
	return n
}

// uptime is in seconds, 0 when the boot time could not be read.
func (h *Host) uptime(now time.Time) int64 {
	for line := range h.lines("proc/stat") {
		rest, ok := strings.CutPrefix(line, "btime ")
		if !ok {
			continue
		}
		boot, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
		if err != nil || boot > now.Unix() {
			return 0
		}
		return now.Unix() - boot
	}
	return 0
}

// lines gives the lines of a file, none when it cannot be read.
func (h *Host) lines(name string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		f, err := os.Open(h.Path(name))
		if err != nil {
			return
		}
		defer f.Close()
		s := bufio.NewScanner(f)
		// The intr line of /proc/stat is long on machines with many interrupts.
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			if !yield(s.Text()) {
				return
			}
		}
	}
}

// shuttingDown looks for systemd's scheduled shutdown and for the file that
// stops logins while the machine goes down (or is not up yet).
func (h *Host) shuttingDown() *homelabv1.Fact {
	for _, f := range []string{"run/systemd/shutdown/scheduled", "run/nologin"} {
		if _, err := os.Stat(h.Path(f)); err == nil {
			return yes("/" + f + " is there")
		}
	}
	if _, err := os.Stat(h.Path("run")); err != nil {
		return unknown("%s", h.cause(err))
	}
	return no("no shutdown is scheduled")
}

// rootUsed is what df shows for the root file system in percent, -1 when it
// could not be asked. Blocks kept for root count as not there, as in df.
func (h *Host) rootUsed() float64 {
	var st unix.Statfs_t
	if err := unix.Statfs(h.root, &st); err != nil {
		return -1
	}
	used := st.Blocks - st.Bfree
	all := used + st.Bavail
	if all == 0 {
		return -1
	}
	return 100 * float64(used) / float64(all)
}

// versionSub is how pve-manager's PVE/pvecfg.pm states its version (seen on
// PVE 7 to 9: sub version { return '9.2.11'; } over one or three lines).
var versionSub = regexp.MustCompile(`sub\s+version\s*\{\s*return\s+'([^']+)'`)

// pveVersion is pve-manager's version, empty when it could not be read.
func (h *Host) pveVersion() string {
	if data, err := os.ReadFile(h.Path("usr/share/perl5/PVE/pvecfg.pm")); err == nil {
		if m := versionSub.FindSubmatch(data); m != nil {
			return string(m[1])
		}
	}
	pkg := false
	for line := range h.lines("var/lib/dpkg/status") {
		if name, ok := strings.CutPrefix(line, "Package: "); ok {
			pkg = name == "pve-manager"
		} else if v, ok := strings.CutPrefix(line, "Version: "); ok && pkg {
			return v
		}
	}
	return ""
}

// pciDevices are PCI addresses (0000:b3:00.0), sorted.
func (h *Host) pciDevices() []string {
	entries, err := os.ReadDir(h.Path("sys/bus/pci/devices"))
	if err != nil {
		return nil
	}
	out := make([]string, 0, len(entries))
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// usbDevices are vendor:product (18d1:9302), sorted, each once.
func (h *Host) usbDevices() []string {
	vendors, err := filepath.Glob(h.Path("sys/bus/usb/devices/*/idVendor"))
	if err != nil {
		return nil
	}
	var out []string
	for _, v := range vendors {
		vendor, err1 := os.ReadFile(v)
		product, err2 := os.ReadFile(filepath.Join(filepath.Dir(v), "idProduct"))
		if err1 == nil && err2 == nil {
			out = append(out, strings.TrimSpace(string(vendor))+":"+strings.TrimSpace(string(product)))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
