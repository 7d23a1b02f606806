package proxmox_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/homeiac/homelab/agent/driver/drivertest"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/lab/pve"
)

func orphans(t *testing.T, h *host) ([]string, *homelabv1.Fact) {
	t.Helper()
	all, err := h.driver().Orphans(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var volids []string
	for _, o := range all.GetOrphans() {
		volids = append(volids, o.GetVolid())
	}
	return volids, all.GetKnown()
}

func TestWhatAnyConfigurationNamesIsNoOrphan(t *testing.T) {
	h := newHost(t, func(cfg *pve.HostConfig) {
		cfg.Cluster = "lab"
		cfg.Storages = append(cfg.Storages,
			// Another name for the same folder.
			pve.StorageConfig{Name: "again", Type: "dir", Path: "/var/lib/vz", Content: []string{"images"}, TotalBytes: freeBytes},
			pve.StorageConfig{Name: "isos", Type: "dir", Path: "/mnt/isos", Content: []string{"iso"}, TotalBytes: freeBytes})
	})
	d := h.driver()
	create(t, h, d)
	names := map[string]string{} // a volume, and the line of a configuration that names it
	for i, section := range []string{"", "\n[PENDING]\n", "\n[snap]\n"} {
		id := int32(301 + i)
		v := h.alloc("local", id)
		names[v] = section + "scsi0: " + v + ",size=64M\n"
	}
	unused, state, zfs, path := h.alloc("local-lvm", 304), h.alloc("local", 305), h.alloc("local-zfs", 306), h.alloc("local-zfs", 307)
	names[unused] = "unused0: " + unused + "\n"
	names[state] = "\n[snap]\nvmstate: " + state + "\n"
	names[zfs] = "scsi0: " + zfs + ",size=64M\n"
	names[path] = "scsi0: /dev/zvol/rpool/data/vm-307-disk-0,size=64M\n"
	id := 500
	for _, line := range names {
		id++
		h.write(fmt.Sprintf("etc/pve/nodes/pve2/qemu-server/%d.conf", id), "name: x\n"+line)
	}
	ct := h.alloc("local", 400)
	h.write("etc/pve/lxc/400.conf", "hostname: dns\nrootfs: "+ct+",size=4G\n")
	h.qm("create", "600", "--name", "base", "--scsi0", "local:1")
	h.qm("template", "600")
	h.qm("clone", "600", "601", "--name", "clone")
	h.write("var/lib/vz/images/602/notes.txt", "no volume")
	h.program("pvesm", "status")
	if got, known := orphans(t, h); len(got) != 0 || known.GetTruth() != homelabv1.Truth_TRUTH_YES {
		t.Errorf("orphans %v, %v", got, known)
	}
	left := []string{h.alloc("local", 201), h.alloc("local-lvm", 700), h.alloc("local-zfs", 201)}
	got, known := orphans(t, h)
	// The same file shows under both names of its folder.
	left = append(left, strings.Replace(left[0], "local:", "again:", 1))
	slices.Sort(left)
	if !slices.Equal(got, left) || known.GetTruth() != homelabv1.Truth_TRUTH_YES {
		t.Errorf("orphans %v, want %v; %v", got, left, known)
	}
	if err := pve.SetMembers(h.lab+"/pmxcfs", nil, false); err != nil {
		t.Fatal(err)
	}
	if got, known := orphans(t, h); len(got) != 0 || known.GetTruth() != homelabv1.Truth_TRUTH_UNKNOWN || !strings.Contains(known.GetReason(), "quorum") {
		t.Errorf("without quorum: %v, %v", got, known)
	}
}

func TestOrphansAreNotKnownWhenSomethingCannotBeRead(t *testing.T) {
	h := newHost(t)
	v := h.alloc("local", 201)
	h.wrap("pvesm", `if [ "$2" = local-lvm ]; then echo "no such volume group 'pve'" >&2; exit 255; fi`)
	got, known := orphans(t, h)
	if !slices.Equal(got, []string{v}) || known.GetTruth() != homelabv1.Truth_TRUTH_UNKNOWN || !strings.Contains(known.GetReason(), "local-lvm") {
		t.Errorf("a storage that cannot be listed: %v, %v", got, known)
	}
	h.write("etc/pve/qemu-server/300.conf", "name: x\n")
	h.qm("list")
	if err := os.Remove(h.path("etc/pve/qemu-server/300.conf")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(h.path("etc/pve/qemu-server/300.conf"), 0o755); err != nil { // reading it fails, for root too
		t.Fatal(err)
	}
	if got, known := orphans(t, h); len(got) != 0 || known.GetTruth() != homelabv1.Truth_TRUTH_UNKNOWN || !strings.Contains(known.GetReason(), "300") {
		t.Errorf("a configuration that cannot be read: %v, %v", got, known)
	}
}

func TestWhatSomebodyIsAtWorkOnIsNoOrphan(t *testing.T) {
	h := newHost(t)
	h.alloc("local", 201)
	d := h.driver()
	held, release := h.hold("create")
	created := make(chan error, 1)
	go func() {
		_, err := d.Create(t.Context(), request(h), quiet)
		created <- err
	}()
	held()
	if got, known := orphans(t, h); len(got) != 0 || known.GetTruth() != homelabv1.Truth_TRUTH_YES {
		t.Errorf("orphans %v, %v", got, known)
	}
	release()
	if err := <-created; err != nil {
		t.Fatal(err)
	}
	if got, _ := orphans(t, h); len(got) != 1 {
		t.Errorf("afterwards: %v", got)
	}
}

// TestARollBackLeavesAVolumeThatAnotherNameShows: one folder may be two storages.
func TestARollBackLeavesAVolumeThatAnotherNameShows(t *testing.T) {
	h := newHost(t, func(cfg *pve.HostConfig) {
		cfg.Storages = append(cfg.Storages, pve.StorageConfig{Name: "again", Type: "dir", Path: "/var/lib/vz", Content: []string{"images"}, TotalBytes: freeBytes})
	})
	v := h.alloc("local", 201)
	h.qm("create", "300", "--name", "theirs")
	h.write(h.conf(300), h.read(h.conf(300))+"scsi1: "+strings.Replace(v, "local:", "again:", 1)+",size=64M\n")
	d := h.driver()
	if _, err := d.Destroy(t.Context(), &driverv1.DestroyRequest{Identity: drivertest.Identity(201), HalfBuilt: true,
		Deadline: durationpb.New(20 * time.Second)}, quiet); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(h.path("var/lib/vz/images", strings.TrimPrefix(v, "local:"))); err != nil {
		t.Error(err)
	}
}

// TestThePowersWaitForPmxcfs: without it nothing is there, and nothing may be said.
func TestThePowersWaitForPmxcfs(t *testing.T) {
	h := newHost(t)
	create(t, h, h.driver())
	if err := h.pve.UnmountPmxcfs(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.driver().Config(t.Context(), drivertest.Identity(201)); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
}
