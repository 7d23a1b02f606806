package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// breaking is one way in which a guest gets stuck, with words of which apply must say
// one.
type breaking struct {
	fault, guest string
	words        []string
}

var breakings = []breaking{
	{"guest-stop", "k3s-2", []string{"stopped"}},
	{"guest-pause", "k3s-3", []string{"paused"}},
	{"guest-hang", "k3s-1", []string{"mute", "silent", "hang"}},
	{"guest-crash", "k3s-2", []string{"crashed", "process", "stopped", "gone"}},
}

// stuckVM breaks servers one after the other; one apply each time makes the cluster
// whole again.
func (d *demo) stuckVM(ctx context.Context) error {
	text, err := os.ReadFile(d.spec())
	if err != nil {
		return err
	}
	hasty := strings.Replace(string(text), "unwellAfter: 10s, soak: 2s", "unwellAfter: 3s, soak: 1s", 1)
	if hasty == string(text) {
		return fmt.Errorf("%s has other timeouts than expected", d.spec())
	}
	if err := writeFile(d.spec(), []byte(hasty), 0o644); err != nil {
		return err
	}
	if _, err := d.apply(ctx, d.spec()); err != nil {
		return err
	}
	if err := d.settle(ctx, 3); err != nil {
		return err
	}
	c, err := d.openCluster()
	if err != nil {
		return err
	}
	defer c.Close()
	for _, b := range breakings {
		if err := d.breakOne(ctx, c, b); err != nil {
			return fmt.Errorf("%s %s: %w", b.fault, b.guest, err)
		}
	}
	return nil
}

func (d *demo) breakOne(ctx context.Context, c *cluster, b breaking) error {
	before, err := d.portrait(ctx, c, b.guest)
	if err != nil {
		return err
	}
	if err := d.Fault(b.fault, b.guest); err != nil {
		return err
	}
	watch := c.watch(ctx, before.address)
	applied, err := d.apply(ctx, d.spec())
	lost := watch()
	if err != nil {
		return err
	}
	if lost != nil {
		return lost
	}
	said := applied.stdout + applied.stderr
	if !strings.Contains(said, b.guest) || !slices.ContainsFunc(b.words, func(w string) bool { return strings.Contains(said, w) }) {
		return fmt.Errorf("apply does not say that %s is %s:\n%s", b.guest, strings.Join(b.words, " or "), said)
	}
	if err := d.settle(ctx, 3); err != nil {
		return err
	}
	after, err := d.portrait(ctx, c, b.guest)
	if err != nil {
		return err
	}
	return before.madeAnew(after)
}

// portrait is what must stay of a guest that is made anew, and what must not.
type portrait struct {
	host, address   string
	vmid            int
	mac, uuid, size string
	mark, node      string // must not stay
	member          uint64
	members         int
}

func (d *demo) portrait(ctx context.Context, c *cluster, guest string) (portrait, error) {
	var p portrait
	var err error
	if p.host, p.vmid, err = d.findGuest(guest); err != nil {
		return p, err
	}
	if p.address, err = d.addressOf(p.host, p.vmid); err != nil {
		return p, err
	}
	data, err := os.ReadFile(filepath.Join(d.confDir(p.host), fmt.Sprintf("%d.conf", p.vmid)))
	if err != nil {
		return p, err
	}
	for part, form := range map[*string]string{
		&p.mac: `(?m)^net0: virtio=([0-9A-Fa-f:]+)`, &p.uuid: `(?m)^smbios1: .*uuid=([0-9a-f-]+)`,
		&p.size: `(?m)^scsi0: .*size=(\w+)`, &p.mark: `(?m)^#(hl1.*)$`,
	} {
		m := regexp.MustCompile(form).FindSubmatch(data)
		if m == nil {
			return p, fmt.Errorf("the configuration of VM %d has no %s:\n%s", p.vmid, form, data)
		}
		*part = string(m[1])
	}
	nodes, err := c.nodes(ctx)
	if err != nil {
		return p, err
	}
	if p.node = nodes[guest].Meta.UID; p.node == "" {
		return p, fmt.Errorf("there is no Node %s", guest)
	}
	members, err := c.members(ctx)
	if err != nil {
		return p, err
	}
	p.members = len(members)
	for _, m := range members {
		if strings.HasPrefix(m.Name, guest+"-") {
			p.member = m.ID
		}
	}
	return p, nil
}

func (p portrait) madeAnew(now portrait) error {
	switch {
	case now.host != p.host || now.vmid != p.vmid:
		return fmt.Errorf("VM %d on %s became VM %d on %s", p.vmid, p.host, now.vmid, now.host)
	case now.mac != p.mac || now.uuid != p.uuid || now.size != p.size || now.address != p.address:
		return fmt.Errorf("its identity changed: MAC %s, uuid %s, disk %s, address %s; was %s, %s, %s, %s",
			now.mac, now.uuid, now.size, now.address, p.mac, p.uuid, p.size, p.address)
	case now.mark == p.mark:
		return fmt.Errorf("it was not made anew: its mark is %s as before", now.mark)
	case now.node == p.node:
		return fmt.Errorf("its Node is the same object as before, %s", now.node)
	case now.member == p.member:
		return fmt.Errorf("its etcd member is the same as before, %x", now.member)
	case now.members != p.members:
		return fmt.Errorf("etcd has %d members, was %d", now.members, p.members)
	}
	return nil
}
