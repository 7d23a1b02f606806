package proxmox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/proxmox/args"
	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/rpc"
)

// Adopt implements driver.Powers: one qm set, with the digest. Without a digest in
// the request it is that of the first look.
func (d *Driver) Adopt(ctx context.Context, req *driverv1.AdoptRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	id := req.GetIdentity()
	if id.GetVmid() < 100 || !args.Mark(id.GetMark()) {
		return nil, rpc.Errorf(rpc.ErrInvalid, "the identity is not whole: VMID %d, uuid %q, mark %q", id.GetVmid(), id.GetUuid(), id.GetMark())
	}
	return d.alone(ctx, []int32{id.GetVmid()}, req.GetDeadline().AsDuration(), func(ctx context.Context) (*homelabv1.VirtualMachine, error) {
		s := &session{d: d, id: id, phase: "adopting", report: report}
		if err := s.adopt(ctx, req.GetDigest()); err != nil {
			return nil, err
		}
		return d.look(ctx, id.GetVmid())
	})
}

func (s *session) adopt(ctx context.Context, digest string) error {
	vmid, text := s.id.GetVmid(), s.id.GetMark()
	c, err := s.adoptable(digest)
	if err != nil || c.Mark() == text {
		return err
	}
	digest = c.Digest
	var want string
	err = s.attemptOnce(ctx, func() (args.Call, bool, error) {
		c, err := s.adoptable(digest)
		if err != nil || c.Mark() == text {
			return args.Call{}, true, err
		}
		want = described(c.Main.Description, text)
		s.report(progress(s.phase, fmt.Sprintf("writing the mark into the description of VM %d (%s)", vmid, c.Name()), remaining(ctx)))
		return args.Describe(vmid, want, digest), false, nil
	})
	if ctx.Err() != nil && err != nil {
		return err
	}
	// What counts is what stands there, whatever qm said.
	c, lookErr := s.d.read(vmid)
	switch {
	case lookErr != nil:
		return lookErr
	case c.UUID() == strings.ToLower(s.id.GetUuid()) && c.Mark() == text && (want == "" || c.Main.Description == want):
		return nil
	case errors.Is(err, rpc.ErrBusy) && c.Digest != digest:
		return rpc.Errorf(rpc.ErrRefused, "VM %d changed since it was looked at: %v; look at it and try again (qm config %d)", vmid, err, vmid)
	case err != nil:
		return err
	}
	return rpc.Errorf(rpc.ErrUnavailable, "VM %d has not the mark in its description as it was written (qm config %d)", vmid, vmid)
}

// described is a description with the mark on a line of its own below it.
func described(description, mark string) string {
	if description = strings.TrimRight(description, " \t\r\n"); description == "" {
		return mark
	}
	return description + "\n" + mark
}

// adoptable reads the VM and gives its configuration when it may be adopted, or is.
func (s *session) adoptable(digest string) (*parse.Config, error) {
	vmid := s.id.GetVmid()
	c, err := s.d.read(vmid)
	if err != nil {
		return nil, err
	}
	refuse := func(format string, a ...any) error {
		return rpc.Errorf(rpc.ErrRefused, "VM %d (%s) is not adopted: %s", vmid, c.Name(), fmt.Sprintf(format, a...))
	}
	switch uuid := strings.ToLower(s.id.GetUuid()); {
	case c.HalfBuilt():
		return nil, s.halfBuilt()
	case c.UUID() == "":
		return nil, refuse("it has no uuid by which it could be known again; give it one and look at it again (qm set %d --smbios1 %s)", vmid, s.smbios(c))
	case uuid == "":
		return nil, rpc.Errorf(rpc.ErrInvalid, "the identity of VM %d has no uuid", vmid)
	case c.UUID() != uuid:
		return nil, refuse("its uuid is %s, not %s: it is another VM than the one that was looked at (qm config %d)", c.UUID(), uuid, vmid)
	}
	marks := c.Marks()
	if i := slices.IndexFunc(marks, func(m string) bool { return m != s.id.GetMark() }); i >= 0 {
		return nil, refuse("%s; if it is nobody's, take that line out of its description first", s.otherMark(marks[i]))
	}
	if len(marks) > 0 {
		return c, nil // adopted already
	}
	switch {
	case digest != "" && c.Digest != digest:
		return nil, refuse("it changed since it was looked at (qm config %d)", vmid)
	case c.Lock() != "":
		return nil, refuse("it is locked (%s)", c.Lock())
	case !utf8.ValidString(c.Main.Description):
		return nil, refuse("its description is not UTF-8 and would be changed by writing it again")
	}
	if _, ok := c.Pending.Keys["description"]; ok || slices.Contains(c.Deleting(), "description") {
		return nil, refuse("a change of its description waits for its next start (qm pending %d)", vmid)
	}
	return c, s.unheld(c)
}

// smbios is what to set as smbios1 for the VM to have a uuid and keep the rest.
func (s *session) smbios(c *parse.Config) string {
	uuid := "uuid=$(cat /proc/sys/kernel/random/uuid)"
	if rest := c.Main.Keys["smbios1"]; rest != "" {
		return rest + "," + uuid
	}
	return uuid
}

// otherMark says whose mark a VM bears that is not the wanted one.
func (s *session) otherMark(text string) string {
	m, err := mark.Parse(text)
	switch {
	case err != nil:
		return fmt.Sprintf("it bears something like a mark (%v): %q", err, text)
	case m.Fleet != s.id.GetFleet():
		return fmt.Sprintf("it bears the mark of guest %s of another fleet, %s", m.Guest, m.Fleet)
	}
	return fmt.Sprintf("it bears a mark of guest %s, generation %d, that is not its own: a stale copy, as a clone takes the description along", m.Guest, m.Generation)
}

// Config implements driver.Powers.
func (d *Driver) Config(_ context.Context, id *homelabv1.Identity) ([]byte, error) {
	if err := checkIdentity(id); err != nil {
		return nil, err
	}
	text, err := d.text(id.GetVmid())
	if err != nil {
		return nil, err
	}
	if err := ours(id, parse.VM(text)); err != nil {
		return nil, err
	}
	return text, nil
}
