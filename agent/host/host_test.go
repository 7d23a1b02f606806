package host_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/homeiac/homelab/agent/host"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// now is 7 s after the figures of transcript 727 were written.
var now = time.Unix(1795379514, 0)

// clustered is a host of a PVE 9 cluster; standalone one of PVE 8 without.
const clustered = `
-- etc/hostname --
pve1
-- etc/pve/.members --
{"nodename": "pve1","version": 4,"cluster": {"name": "home","version": 3,"nodes": 2,"quorate": 1},
"nodelist": {"pve2": {"id": 2,"online": 0,"ip": "10.0.0.2"},"pve1": {"id": 1,"online": 1,"ip": "10.0.0.1"}}}
-- etc/pve/.rrd --
pve-vm-9.0/171:0:a:stopped:0:1795379477:1:U:67108864:U:1073741824:0:U:U:U:U:U:U:U:U:U:U:U
pve-storage-9.0/pve1/local:1795379507:270553174016:27315736576
pve-storage-9.0/pve2/other:1795379507:1000:10
pve-node-9.0/pve1:7932::1795379507:0.43:2:0.229458917835671:0.000501002004008016:25276502016:834637824:0:0:270553174016:27315736576:1293587835:4701610:24441864192:0:0.35:0.04:0.04:0.00:0.00
-- etc/pve/storage.cfg --
dir: local
	path /var/lib/vz
	content iso,vztmpl,backup,snippets,images

zfspool: local-zfs
	pool rpool/data
	sparse
	content images,rootdir

dir: gone
	path /mnt/gone
	content images

dir: elsewhere
	path /var/lib/vz
	nodes pve2,pve3

lvmthin: off
	thinpool data
	vgname pve
	disable

nfs: nas
	server 10.0.0.9
	path /var/lib/vz
	content images
-- var/lib/vz/.keep --
-- proc/meminfo --
MemTotal:       24684084 kB
MemFree:        1 kB
-- proc/cpuinfo --
processor	: 0
model name	: x

processor	: 1
-- proc/stat --
cpu  1 2 3
btime 1795371582
-- usr/share/perl5/PVE/pvecfg.pm --
package PVE::pvecfg;
sub package { return 'pve-manager'; }
sub version {
    return '9.2.11';
}
-- run/.keep --
-- sys/class/net/vmbr0/operstate --
up
-- sys/class/net/vmbr0/mtu --
9000
-- sys/class/net/vmbr0/bridge/vlan_filtering --
1
-- sys/class/net/vmbr0/brif/eno1 --
-- sys/class/net/vmbr0/brif/tap201i0 --
-- sys/class/net/vmbr1/operstate --
down
-- sys/class/net/vmbr1/mtu --
1500
-- sys/class/net/vmbr1/bridge/vlan_filtering --
0
-- sys/class/net/vmbr1/brif/eno2 --
-- sys/class/net/vmbr2/operstate --
down
-- sys/class/net/vmbr2/flags --
0x1003
-- sys/class/net/vmbr2/mtu --
1500
-- sys/class/net/vmbr2/bridge/vlan_filtering --
0
-- sys/class/net/vmbr2/brif/tap201i1 --
-- sys/class/net/eno1/carrier --
1
-- sys/class/net/eno2/carrier --
0
-- sys/bus/pci/devices/0000:b3:00.0/vendor --
-- sys/bus/usb/devices/1-1/idVendor --
18d1
-- sys/bus/usb/devices/1-1/idProduct --
9302
`

// lay writes a host's files and opens it. drop are paths to leave out.
func lay(t *testing.T, text string, drop ...string) *host.Host {
	t.Helper()
	root := t.TempDir()
	for _, f := range txtar.Parse([]byte(text)).Files {
		name := filepath.Join(root, f.Name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range drop {
		if err := os.RemoveAll(filepath.Join(root, d)); err != nil {
			t.Fatal(err)
		}
	}
	return host.New(root)
}

func fact(t homelabv1.Truth, reason string) *homelabv1.Fact {
	return &homelabv1.Fact{Truth: t, Reason: reason}
}

var (
	yes     = homelabv1.Truth_TRUTH_YES
	no      = homelabv1.Truth_TRUTH_NO
	unknown = homelabv1.Truth_TRUTH_UNKNOWN
)

func TestAHostIsReadFromItsFiles(t *testing.T) {
	o := lay(t, clustered).Observe(now)
	if o.GetRootUsedPercent() <= 0 || o.GetRootUsedPercent() > 100 {
		t.Errorf("root %v %%", o.GetRootUsedPercent())
	}
	o.RootUsedPercent, o.At = 0, nil
	want := &homelabv1.Observation{
		NodeName: "pve1", PveVersion: "9.2.11", PveCluster: fact(yes, ""), Quorate: fact(yes, ""), PveClusterName: "home",
		PveNodes:      []*homelabv1.PveNode{{Name: "pve1", Online: true, Address: "10.0.0.1"}, {Name: "pve2", Address: "10.0.0.2"}},
		UptimeSeconds: 7932, ShuttingDown: fact(no, "no shutdown is scheduled"),
		MemoryBytes: 25276502016, Cpus: 2, CpuLoad: 0.229458917835671, MemoryUsedBytes: 834637824,
		Bridges: []*homelabv1.Bridge{
			{Name: "vmbr0", Up: fact(yes, ""), Carrier: fact(yes, "eno1"), VlanAware: fact(yes, ""), Mtu: 9000},
			{Name: "vmbr1", Up: fact(no, "vmbr1 is down"), Carrier: fact(no, "no carrier on eno2"), VlanAware: fact(no, "vlan_filtering is 0"), Mtu: 1500},
			{Name: "vmbr2", Up: fact(yes, "no port yet"), Carrier: fact(no, "no physical port"), VlanAware: fact(no, "vlan_filtering is 0"), Mtu: 1500},
		},
		BridgesKnown: fact(yes, ""),
		Storages: []*homelabv1.Storage{
			{
				Name: "local", Type: "dir", Content: []string{"backup", "images", "iso", "snippets", "vztmpl"}, Active: fact(yes, ""),
				TotalBytes: 270553174016, FreeBytes: 270553174016 - 27315736576, SpaceKnown: fact(yes, "7s old"), Path: "/var/lib/vz",
			},
			{
				Name: "local-zfs", Type: "zfspool", Content: []string{"images", "rootdir"},
				Active: fact(no, "pvestatd tells other storages but not this one (pvesm status)"), SpaceKnown: fact(unknown, "pvestatd has not told its size"),
			},
			{
				Name: "gone", Type: "dir", Content: []string{"images"}, Path: "/mnt/gone",
				Active: fact(no, "its folder /mnt/gone is not there"), SpaceKnown: fact(unknown, "pvestatd has not told its size"),
			},
			{
				Name: "elsewhere", Type: "dir", Content: []string{"images", "rootdir"}, Path: "/var/lib/vz",
				Active: fact(no, "storage.cfg restricts it to pve2, pve3"), SpaceKnown: fact(unknown, "pvestatd has not told its size"),
			},
			{
				Name: "off", Type: "lvmthin", Content: []string{"images", "rootdir"},
				Active: fact(no, "disabled in storage.cfg"), SpaceKnown: fact(unknown, "pvestatd has not told its size"),
			},
			{
				Name: "nas", Type: "nfs", Content: []string{"images"}, Shared: true, Path: "/var/lib/vz",
				Active: fact(no, "pvestatd tells other storages but not this one (pvesm status)"), SpaceKnown: fact(unknown, "pvestatd has not told its size"),
			},
		},
		StoragesKnown: fact(yes, ""),
		PciDevices:    []string{"0000:b3:00.0"}, UsbDevices: []string{"18d1:9302"},
	}
	if diff := cmp.Diff(want, o, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestOlderReleasesCallTheFiguresOtherwise(t *testing.T) {
	text := strings.NewReplacer("pve-storage-9.0/", "pve2-storage/", "pve-node-9.0/", "pve2-node/").Replace(clustered)
	text = strings.Replace(text, "-- usr/share/perl5/PVE/pvecfg.pm --", "-- x --", 1) +
		"-- var/lib/dpkg/status --\nPackage: other\nVersion: 1\n\nPackage: pve-manager\nStatus: install ok installed\nVersion: 8.4.1\n"
	o := lay(t, text).Observe(now)
	if o.GetStorages()[0].GetTotalBytes() != 270553174016 || o.GetMemoryUsedBytes() != 834637824 || o.GetPveVersion() != "8.4.1" {
		t.Errorf("%v", o)
	}
}

func TestWhatCannotBeSeenIsUnknown(t *testing.T) {
	t.Run("an empty /etc/pve is not an empty host", func(t *testing.T) {
		h := lay(t, clustered, "etc/pve")
		if err := os.Mkdir(h.Path("etc/pve"), 0o755); err != nil {
			t.Fatal(err)
		}
		o := h.Observe(now)
		if o.GetPveCluster().GetTruth() != no || o.GetQuorate().GetTruth() != unknown || o.GetStoragesKnown().GetTruth() != unknown {
			t.Errorf("cluster %v, quorate %v, storages %v", o.GetPveCluster(), o.GetQuorate(), o.GetStoragesKnown())
		}
		if o.GetNodeName() != "pve1" {
			t.Errorf("node %q", o.GetNodeName())
		}
	})
	t.Run("no quorum", func(t *testing.T) {
		o := lay(t, strings.Replace(clustered, `"quorate": 1`, `"quorate": 0`, 1)).Observe(now)
		if o.GetPveCluster().GetTruth() != yes || o.GetQuorate().GetTruth() != no {
			t.Errorf("cluster %v, quorate %v", o.GetPveCluster(), o.GetQuorate())
		}
	})
	t.Run("no PVE cluster is quorate", func(t *testing.T) {
		text := strings.Replace(clustered, "-- etc/pve/.members --", "-- etc/pve/.members --\n{\"nodename\": \"pve1\",\"version\": 0}\n-- x --", 1)
		if o := lay(t, text).Observe(now); o.GetQuorate().GetTruth() != yes || o.GetPveClusterName() != "" {
			t.Errorf("quorate %v", o.GetQuorate())
		}
	})
	t.Run("a cluster whose corosync is gone is not quorate", func(t *testing.T) {
		text := strings.Replace(clustered, "-- etc/pve/.members --", "-- etc/pve/corosync.conf --\ntotem {}\n-- etc/pve/.members --\n{\"nodename\": \"pve1\",\"version\": 0}\n-- x --", 1)
		if o := lay(t, text).Observe(now); o.GetQuorate().GetTruth() != no {
			t.Errorf("quorate %v", o.GetQuorate())
		}
	})
	t.Run("figures of a pvestatd that stopped", func(t *testing.T) {
		o := lay(t, clustered).Observe(now.Add(10 * time.Minute))
		local, zfs := o.GetStorages()[0], o.GetStorages()[1]
		if local.GetSpaceKnown().GetTruth() != unknown || local.GetFreeBytes() != 0 || o.GetCpuLoad() >= 0 {
			t.Errorf("local %v, load %v", local, o.GetCpuLoad())
		}
		if local.GetActive().GetTruth() != yes || zfs.GetActive().GetTruth() != unknown {
			t.Errorf("a folder proves itself, a pool does not: %v, %v", local.GetActive(), zfs.GetActive())
		}
	})
	t.Run("nothing at all", func(t *testing.T) {
		o := lay(t, "").Observe(now)
		for name, f := range map[string]*homelabv1.Fact{
			"bridges": o.GetBridgesKnown(), "storages": o.GetStoragesKnown(), "cluster": o.GetPveCluster(),
			"quorate": o.GetQuorate(), "shutting down": o.GetShuttingDown(),
		} {
			if f.GetTruth() != unknown || f.GetReason() == "" {
				t.Errorf("%s: %v", name, f)
			}
		}
		if o.GetUptimeSeconds() != 0 || o.GetMemoryBytes() != 0 || o.GetCpus() != 0 || o.GetPveVersion() != "" {
			t.Errorf("%v", o)
		}
	})
	t.Run("shutting down", func(t *testing.T) {
		if o := lay(t, clustered+"-- run/systemd/shutdown/scheduled --\nUSEC=1\n").Observe(now); o.GetShuttingDown().GetTruth() != yes {
			t.Errorf("%v", o.GetShuttingDown())
		}
	})
}
