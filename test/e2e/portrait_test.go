//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// portrait is who a guest is, by its configuration as it lies on its host.
type portrait struct {
	host, vmid, uuid string
	macs             []string
	generation       int
}

var (
	markLine = regexp.MustCompile(`(?m)^#(hl1.*)$`)
	uuidLine = regexp.MustCompile(`(?m)^smbios1: .*uuid=([0-9a-f-]+)`)
	macLine  = regexp.MustCompile(`(?m)^net\d+: \w+=([0-9A-Fa-f:]+)`)
)

func (l *lab) portrait(guest string) portrait {
	l.t.Helper()
	c := l.confOf(guest)
	p := portrait{host: c.host, vmid: c.vmid}
	if m := uuidLine.FindStringSubmatch(c.text); m != nil {
		p.uuid = m[1]
	}
	for _, m := range macLine.FindAllStringSubmatch(c.text, -1) {
		p.macs = append(p.macs, m[1])
	}
	if m := markLine.FindStringSubmatch(c.text); m != nil {
		mark, _ := url.PathUnescape(m[1])
		if parts := strings.Split(mark, ":"); len(parts) == 5 {
			p.generation, _ = strconv.Atoi(parts[3])
		}
	}
	if p.uuid == "" || len(p.macs) == 0 || p.generation == 0 {
		l.t.Fatalf("%s has no uuid, MAC or mark:\n%s", guest, c.text)
	}
	return p
}

// mustBeMadeAnew wants the guest to be the same machine as before, by another
// making, or by several of them where a kill may have cost one.
func (p portrait) mustBeMadeAnew(l *lab, guest string, several bool) {
	l.t.Helper()
	now := l.portrait(guest)
	if now.host != p.host || now.vmid != p.vmid || now.uuid != p.uuid || !slices.Equal(now.macs, p.macs) {
		l.t.Errorf("%s was made anew as another machine: %+v, was %+v", guest, now, p)
	}
	if now.generation <= p.generation || now.generation > p.generation+1 && !several {
		l.t.Errorf("%s is of generation %d, was of %d", guest, now.generation, p.generation)
	}
}

// impatient is the lab's Spec with evidence that ripens soon; the guests named have a
// data disk on their host's storage for disks.
func (l *lab) impatient(withData ...string) string {
	l.t.Helper()
	return l.edited(l.spec, func(d doc) {
		at(d, "defaults", "timeouts")["unwellAfter"] = "3s"
		at(d, "defaults", "timeouts")["soak"] = "1s"
		for _, guest := range withData {
			at(d, "guests", guest)["dataDisks"] = []any{doc{"slot": "scsi1", "storage": "disks", "size": "1GiB"}}
		}
	})
}

// volumeFile is where a volume lies.
func (l *lab) volumeFile(host, volid string) string {
	storage, volume, _ := strings.Cut(volid, ":")
	return map[string]string{
		"local":     l.host(host, "var/lib/vz/images", volume),
		"local-zfs": l.host(host, "dev/zvol/rpool/data", volume),
		"local-lvm": l.host(host, "dev/pve", volume),
	}[storage]
}

var dataLine = regexp.MustCompile(`(?m)^scsi1: ([^,\n]+)`)

// dataFile is the file of a guest's data disk.
func (l *lab) dataFile(guest string) string {
	l.t.Helper()
	c := l.confOf(guest)
	m := dataLine.FindStringSubmatch(c.text)
	if m == nil {
		l.t.Fatalf("%s has no data disk:\n%s", guest, c.text)
	}
	return l.volumeFile(c.host, m[1])
}

// Where on a data disk something is written: at its begin and far behind.
var dataPlaces = []int64{0, 700 << 20}

// dataText is what is written on a guest's data disk, more than a block.
func dataText(guest string, place int64) []byte {
	return []byte(strings.Repeat(fmt.Sprintf("what %s must not lose at %d\n", guest, place), 500))
}

// writeData puts something onto a guest's data disk, past the guest.
func (l *lab) writeData(guest string) {
	l.t.Helper()
	f, err := os.OpenFile(l.dataFile(guest), os.O_WRONLY, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	for _, place := range dataPlaces {
		if _, err := f.WriteAt(dataText(guest, place), place); err != nil {
			l.t.Fatal(err)
		}
	}
}

// mustHoldData wants a guest's data disk to be attached, as large as it was and
// with all that was written.
func (l *lab) mustHoldData(guests ...string) {
	l.t.Helper()
	for _, guest := range guests {
		file := l.dataFile(guest)
		f, err := os.Open(file)
		if err != nil {
			l.t.Errorf("the data disk of %s: %v", guest, err)
			continue
		}
		if info, err := f.Stat(); err != nil || info.Size() != 1<<30 {
			l.t.Errorf("the data disk of %s: %v %v", guest, info.Size(), err)
		}
		for _, place := range dataPlaces {
			want := dataText(guest, place)
			got := make([]byte, len(want))
			if _, err := f.ReadAt(got, place); err != nil || string(got) != string(want) {
				l.t.Errorf("the data of %s at %d in %s is %.60q (%v)", guest, place, file, got, err)
			}
		}
		_ = f.Close()
	}
}

// mustHoldNoHolder wants all holder VMs to be gone.
func (l *lab) mustHoldNoHolder() {
	l.t.Helper()
	for _, c := range l.confs() {
		if strings.HasPrefix(c.name, "hl-holder-") {
			l.t.Errorf("%s is left on %s:\n%s", c.name, c.host, c.text)
		}
	}
}

// still is everything of the guests' VMs that must stay byte for byte: their
// configurations, and what was written on their data disks.
func (l *lab) still(guests ...string) map[string]string {
	l.t.Helper()
	all := map[string]string{}
	for _, guest := range guests {
		c := l.confOf(guest)
		all["configuration of "+guest] = c.text
		for _, volid := range l.volumes(c.host) {
			if !strings.Contains(c.text, volid) {
				continue
			}
			all["volume "+volid+" on "+c.host] = "there"
			if strings.Contains(c.text, "scsi1: "+volid) {
				data, err := written(l.volumeFile(c.host, volid))
				if err != nil {
					l.t.Fatal(err)
				}
				all["data of "+guest] = string(data)
			}
		}
	}
	return all
}

// mustBeStill wants nothing of what still gave to be another.
func (l *lab) mustBeStill(before map[string]string, guests ...string) {
	l.t.Helper()
	now := l.still(guests...)
	for _, what := range slices.Sorted(maps.Keys(before)) {
		if now[what] != before[what] {
			l.t.Errorf("%s was touched: %.800q, was %.800q", what, now[what], before[what])
		}
	}
	if len(now) != len(before) {
		l.t.Errorf("there is more than before: %q, was %q", slices.Sorted(maps.Keys(now)), slices.Sorted(maps.Keys(before)))
	}
}

// others are the lab's guests but one.
func (l *lab) others(guest string) []string {
	l.t.Helper()
	var list []string
	for _, c := range l.confs() {
		if c.name != guest && !strings.HasPrefix(c.name, "hl-holder-") {
			list = append(list, c.name)
		}
	}
	return list
}

// etcdFiles is the folder of the certificates of a server guest's etcd.
func (l *lab) etcdFiles(guest string) string {
	l.t.Helper()
	return filepath.Join(l.guestFiles(guest), "var/lib/rancher/k3s/server/tls/etcd")
}
