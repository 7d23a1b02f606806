package proxmox_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/homeiac/homelab/agent/driver/drivertest"
	"github.com/homeiac/homelab/agent/driver/proxmox"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

func adoptee() *homelabv1.Identity {
	id := drivertest.Identity(201)
	id.Generation, id.Mark = 0, "hl1:home:g-201:0:ffeeddccbbaa99887766554433221100"
	return id
}

func adopt(t *testing.T, d *proxmox.Driver) error {
	_, err := d.Adopt(t.Context(), &driverv1.AdoptRequest{Identity: adoptee(), Deadline: durationpb.New(20 * time.Second)}, quiet)
	return err
}

// theirs makes a VM that may be adopted, with that description.
func (h *host) theirs(description ...string) {
	h.t.Helper()
	argv := []string{"create", "201", "--name", "mine", "--memory", "64", "--scsi0", "local:1", "--smbios1", "uuid=" + adoptee().GetUuid()}
	for _, d := range description {
		argv = append(argv, "--description", d)
	}
	h.qm(argv...)
}

func TestTheMarkIsWrittenBelowTheDescription(t *testing.T) {
	for _, description := range []string{"", "one line", "a b\nc: d\n#e\n100% ünï %41\n\nlast"} {
		h := newHost(t)
		if description == "" {
			h.theirs()
		} else {
			h.theirs(description)
		}
		before := h.read(h.conf(201))
		if err := adopt(t, h.driver()); err != nil {
			t.Fatalf("%q: %v", description, err)
		}
		const line = "#hl1%3Ahome%3Ag-201%3A0%3Affeeddccbbaa99887766554433221100\n"
		i := strings.LastIndex("\n"+before, "\n#")
		end := 0 // of the description
		if i >= 0 {
			end = i + strings.Index(before[i:], "\n") + 1
		}
		rest := before[:end] + line + before[end:]
		if got := h.read(h.conf(201)); got != rest {
			t.Errorf("%q:\n%s\nwant\n%s", description, got, rest)
		}
	}
}

func TestWhatIsNotAdopted(t *testing.T) {
	for name, c := range map[string]struct {
		make func(h *host)
		says []string
	}{
		"without a uuid": {func(h *host) {
			h.theirs()
			h.write(h.conf(201), strings.Replace(h.read(h.conf(201)), "smbios1: uuid="+adoptee().GetUuid(), "smbios1: serial=x", 1))
		}, []string{"no uuid", "qm set 201 --smbios1 serial=x,uuid="}},
		"of another fleet":  {func(h *host) { h.theirs("hl1:work:g-9:1:00112233445566778899aabbccddeeff") }, []string{"g-9", "another fleet, work"}},
		"a clone of ours":   {func(h *host) { h.theirs("hl1:home:g-201:3:00112233445566778899aabbccddeeff") }, []string{"g-201", "generation 3", "stale copy"}},
		"with a torn mark":  {func(h *host) { h.theirs("hl1:home:g") }, []string{"something like a mark"}},
		"with two marks":    {func(h *host) { h.theirs(adoptee().GetMark() + "\nhl1:work:g-9:1:00112233445566778899aabbccddeeff") }, []string{"work"}},
		"under HA":          {func(h *host) { h.theirs(); h.write("etc/pve/ha/resources.cfg", "vm: 201\n") }, []string{"HA"}},
		"locked":            {func(h *host) { h.theirs(); h.qm("set", "201", "--lock", "backup") }, []string{"locked (backup)"}},
		"a template":        {func(h *host) { h.theirs(); h.qm("template", "201") }, []string{"template"}},
		"half-built":        {func(h *host) { h.write(h.conf(201), "lock: create\n") }, []string{"half-built"}},
		"that is not UTF-8": {func(h *host) { h.theirs(); h.write(h.conf(201), "#caf%E9\n"+h.read(h.conf(201))) }, []string{"UTF-8"}},
	} {
		h := newHost(t)
		c.make(h)
		before := h.read(h.conf(201))
		n := len(h.calls())
		err := adopt(t, h.driver())
		if !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, s := range c.says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %q does not say %q", name, err, s)
			}
		}
		if h.read(h.conf(201)) != before || len(h.calls()) != n {
			t.Errorf("%s: something was done: %v", name, h.calls()[n:])
		}
	}
}

func TestAVMThatChangesWhileItIsAdoptedIsRefused(t *testing.T) {
	h := newHost(t)
	h.theirs("keep")
	h.wrap("qm", fmt.Sprintf(`if [ "$1" = set ]; then echo "onboot: 1" >> %s; fi`, h.path(h.conf(201))))
	err := adopt(t, h.driver())
	wantRefused(t, err, "changed since it was looked at")
	if text := h.read(h.conf(201)); strings.Contains(text, "hl1") || !strings.Contains(text, "onboot: 1") {
		t.Errorf("%s", text)
	}
}

func TestAMarkThatWasNotWrittenIsSeen(t *testing.T) {
	h := newHost(t)
	h.theirs("keep")
	h.wrap("qm", `if [ "$1" = set ]; then exit 0; fi`)
	if err := adopt(t, h.driver()); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
	// And one that was, though qm did not live to say so, is.
	if err := os.Remove(h.path("usr/sbin/qm")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(h.path("usr/real/qm"), h.path("usr/sbin/qm")); err != nil {
		t.Fatal(err)
	}
	h.wrap("qm", `if [ "$1" = set ]; then $REAL "$@"; kill -9 $$; fi`)
	if err := adopt(t, h.driver()); err != nil {
		t.Errorf("error %v", err)
	}
}

func TestAMoveIsJudgedByBothConfigurations(t *testing.T) {
	t.Parallel()
	holder := func(h *host, d *proxmox.Driver) {
		create(t, h, d)
		if _, err := d.CreateHolder(t.Context(), &driverv1.CreateHolderRequest{Identity: drivertest.Holder(), Name: "hl-holder-g-201"}, quiet); err != nil {
			t.Fatal(err)
		}
	}
	move := func(d *proxmox.Driver) error {
		_, err := d.MoveDisk(t.Context(), &driverv1.MoveDiskRequest{From: drivertest.Identity(201), To: drivertest.Holder(), Slot: "scsi1",
			Deadline: durationpb.New(10 * time.Second)}, quiet)
		return err
	}
	for name, c := range map[string]struct {
		script string
		kind   rpc.Kind
		says   string
	}{
		"a move that does nothing":      {`if [ "$2" = move ]; then exit 0; fi`, rpc.ErrUnavailable, "still has local:201/vm-201-disk-1.raw"},
		"a move that dies at the end":   {`if [ "$2" = move ]; then $REAL "$@"; kill -9 $$; fi`, "", ""},
		"a move that loses the disk":    {`if [ "$2" = move ]; then sed -i /scsi1/d $HOST/root/etc/pve/qemu-server/201.conf; exit 0; fi`, rpc.ErrUnavailable, "pvesm list local"},
		"a move that brings another":    {`if [ "$2" = move ]; then $REAL "$@"; sed -i s/size=2G/size=1G/ $HOST/root/etc/pve/qemu-server/203.conf; exit 0; fi`, rpc.ErrUnavailable, "1 GiB there instead of 2 GiB"},
		"a VM that changed in between":  {`if [ "$2" = move ] && [ ! -e $HOST/once ]; then touch $HOST/once; echo "onboot: 1" >> $HOST/root/etc/pve/qemu-server/201.conf; fi`, "", ""},
		"a snapshot that uses the disk": {`: snapshot`, rpc.ErrRefused, "its snapshot a uses it"},
		"a change that waits":           {`: pending`, rpc.ErrRefused, "waits for the next start"},
		"a volume of another VM":        {`: foreign`, rpc.ErrRefused, "not that VM's own"},
	} {
		h := newHost(t)
		d := h.driver()
		holder(h, d)
		text := h.read(h.conf(201))
		switch c.script {
		case ": snapshot":
			h.write(h.conf(201), text+"\n[a]\nscsi1: local:201/vm-201-disk-1.raw,size=2G\n")
		case ": pending":
			h.write(h.conf(201), text+"\n[PENDING]\ndelete: scsi1\n")
		case ": foreign":
			h.write(h.conf(201), strings.Replace(text, "local:201/vm-201-disk-1.raw", "local:300/vm-300-disk-1.raw", 1))
		}
		h.wrap("qm", c.script)
		err := move(d)
		if c.kind == "" && err != nil || c.kind != "" && (!errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Whoever works on either of the two is waited for.
	h := newHost(t)
	d := h.driver()
	holder(h, d)
	for _, id := range []int32{201, 203} {
		unlock := h.flock(id)
		_, err := d.MoveDisk(t.Context(), &driverv1.MoveDiskRequest{From: drivertest.Identity(201), To: drivertest.Holder(), Slot: "scsi1",
			Deadline: durationpb.New(300 * time.Millisecond)}, quiet)
		if !errors.Is(err, rpc.ErrBusy) || !strings.Contains(err.Error(), fmt.Sprint(id)) {
			t.Errorf("while VM %d is held: %v", id, err)
		}
		unlock()
	}
	held, release := h.hold("disk")
	moved := make(chan error, 1)
	go func() { moved <- move(d) }()
	held()
	for _, id := range []*homelabv1.Identity{drivertest.Identity(201), drivertest.Holder()} {
		_, err := h.driver().Destroy(t.Context(), &driverv1.DestroyRequest{Identity: id, Deadline: durationpb.New(300 * time.Millisecond)}, quiet)
		if !errors.Is(err, rpc.ErrBusy) || !strings.Contains(err.Error(), "qm disk move 201") {
			t.Errorf("VM %d meanwhile: %v", id.GetVmid(), err)
		}
	}
	release()
	if err := <-moved; err != nil {
		t.Error(err)
	}
}
