package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/homeiac/homelab/cli/onhost"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/rpc"
)

// removal takes one host out of the fleet.
type removal struct {
	a       *app
	name    string
	at      string // SSH target, where it is said
	ssh     sshFlags
	noSSH   bool
	purge   bool
	yes     bool
	status  *controllerv1.StatusResponse
	was     *homelabv1.HostStatus // nil when it is not shown any more
	on      *onhost.Host          // nil: it does not answer, or is not to be asked
	silent  string                // why
	holders []string              // ROLE@NAME whose certificates are taken back
	apart   *answering            // a controller that is not on the host
	// controller is the name of the one that is on it, and address its IP:PORT; empty
	// for none and not known.
	controller, address string
	dropped             string // the file out of which address was taken
	doc                 removalDoc
}

// removalDoc is what became of it, in JSON.
type removalDoc struct {
	Name string `json:"name"`
	// Package is removed, purged, absent, or kept: it could not be reached.
	Package string    `json:"package"`
	Silent  string    `json:"silent"`
	Revoked []string  `json:"revoked"`
	Late    []string  `json:"late"`
	Left    []leftDoc `json:"left"`
	// Kept are files that purge moved away and did not delete.
	Kept []string `json:"kept"`
	// Needed says of the controller's issuing CA that it stays good, and for whom.
	Needed string `json:"needed"`
}

// leftDoc is a VM of ours that is left on the host.
type leftDoc struct {
	Guest string  `json:"guest"`
	VMID  int32   `json:"vmid"`
	Power *string `json:"power"`
}

func (a *app) hostsRemoveCommand() *cobra.Command {
	r := &removal{a: a}
	cmd := &cobra.Command{
		Use: "remove HOST", Short: "Take a host out of the fleet; its guests stay", Args: cobra.ExactArgs(1),
		Long: `remove ends the agent on a host, and a controller that is on it, and removes their
package; then it takes their certificates back and gives the rest of the fleet a new
gossip key. No guest is stopped or destroyed: those that stay are listed. Guests that
are to go are deleted before, while the host answers (hlctl guests delete).

A host that does not answer over SSH is only locked out: certificates and gossip key.
If it comes back, its agent runs, and nobody speaks to it.

HOST is its name in the Spec. It is reached as root at its agent's address, else where
--ssh says. Data stays on it; --purge removes that too, but for what cannot be made
again, which is moved into a folder that is named.

It is refused while a run is going on, and for the last controller. It is safe to
repeat. The host comes back with hlctl hosts add.`,
		Example: `  hlctl hosts remove pve4
  hlctl hosts remove pve4 --yes --purge
  hlctl hosts remove pve4 --ssh root@pve4.lan:2222
  hlctl hosts remove pve4 --no-ssh       it is stolen, or its root is not ours any more`,
		RunE: func(cmd *cobra.Command, args []string) error {
			r.name = args[0]
			return r.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.at, "ssh", "", "root@NAME[:PORT] where the host is reached over SSH")
	f.BoolVar(&r.noSSH, "no-ssh", false, "only take the certificates back and rotate the gossip key")
	f.BoolVar(&r.purge, "purge", false, "remove its data too, but for what cannot be made again")
	f.BoolVar(&r.yes, "yes", false, "do not ask")
	r.ssh.add(cmd)
	cmd.MarkFlagsMutuallyExclusive("ssh", "no-ssh")
	cmd.MarkFlagsMutuallyExclusive("purge", "no-ssh")
	return cmd
}

func (r *removal) run(ctx context.Context) (err error) {
	if err := r.look(ctx); err != nil {
		return err
	}
	if r.on != nil {
		defer func() { _ = r.on.Close() }()
	}
	if err := r.confirm(ctx); err != nil {
		return err
	}
	held, err := r.a.hold(ctx, "remove "+r.name)
	if err != nil {
		return err
	}
	// A host is not left half removed because somebody goes away.
	if err := held.end(ctx, r.carryOut(context.WithoutCancel(ctx))); err != nil {
		return err
	}
	return r.a.print(r.doc, r.tell)
}

func (r *removal) say(format string, args ...any) {
	if r.a.format == "table" {
		fmt.Fprintf(r.a.out, format+"\n", args...)
	}
}

// look finds out what there is of the host, and refuses what may not be. It changes
// nothing.
func (r *removal) look(ctx context.Context) error {
	c, err := r.a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	if r.status, err = ask(ctx, c.Status, &controllerv1.StatusRequest{Fresh: true, Looks: true}); err != nil {
		return err
	}
	if err := idle(r.status); err != nil {
		return fmt.Errorf("nothing was done: %w", err)
	}
	trust, err := ask(ctx, c.Trust, &controllerv1.TrustRequest{})
	if err != nil {
		return err
	}
	var known []string
	for _, h := range r.status.GetHosts() {
		known = append(known, h.GetName())
		if h.GetName() == r.name {
			r.was = h
		}
	}
	all, valid := holdersOf(trust)
	if r.was == nil && !all[rpc.RoleAgent+"@"+r.name] && !all[rpc.RoleController+"@"+r.name] {
		return rpc.Errorf(rpc.ErrNotFound, "no host %s is known (there are %s); see: hlctl hosts", r.name, strings.Join(known, ", "))
	}
	if err := r.reach(ctx); err != nil {
		return err
	}
	r.doc = removalDoc{Name: r.name, Package: "kept", Silent: r.silent, Revoked: []string{}, Late: []string{}, Left: r.left(), Kept: []string{}}
	if r.controller, err = r.controllerOn(ctx, valid); err != nil {
		return err
	}
	for _, holder := range []string{rpc.RoleAgent + "@" + r.name, rpc.RoleController + "@" + r.controller} {
		if valid[holder] {
			r.holders = append(r.holders, holder)
		}
	}
	return nil
}

// holdersOf are all who have certificates, and those who have any that counts.
func holdersOf(trust *controllerv1.TrustResponse) (all, valid map[string]bool) {
	all, valid = make(map[string]bool), make(map[string]bool)
	for _, s := range trust.GetCertificates() {
		holder := s.GetRole() + "@" + s.GetName()
		all[holder] = true
		if s.GetRevoked() == nil {
			valid[holder] = true
		}
	}
	return all, valid
}

// reach opens the host's shell. One that does not answer is locked out only; one that
// does not let us in, or is not the one that it was, is for a person to decide.
func (r *removal) reach(ctx context.Context) error {
	if r.noSSH {
		r.silent = "it was not to be reached (--no-ssh)"
		return nil
	}
	target, noTarget := sshTarget(r.name, r.at, r.was)
	if noTarget != nil {
		r.silent = noTarget.Error()
		return nil //nolint:nilerr // one that cannot be reached is locked out
	}
	var err error
	r.on, err = r.a.lookAt(ctx, r.name, target, r.ssh)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rpc.ErrUnavailable) && ctx.Err() == nil:
		r.silent, _, _ = strings.Cut(err.Error(), "\n")
		return nil
	}
	return fmt.Errorf("%w\n  nothing was done; to lock it out without SSH: hlctl hosts remove %s --no-ssh", err, r.name)
}

// controllerOn is the name of the controller on the host, empty for none, and finds one
// that is elsewhere: that one does what is to be done, and the fleet goes on with it.
func (r *removal) controllerOn(ctx context.Context, valid map[string]bool) (string, error) {
	every, err := r.a.everyController(ctx)
	if err != nil {
		return "", err
	}
	name := ""
	switch {
	case r.on != nil && r.on.Controller != "":
		name = r.on.Controller
	case r.on == nil && valid[rpc.RoleController+"@"+r.name]:
		name = r.name // it cannot be asked
	}
	for _, c := range every {
		switch {
		case c.name == name:
			r.address = c.address
		case r.on == nil && r.isAt(c.ip()): // sshd alone does not answer
			name, r.address = c.name, c.address
		case r.apart == nil:
			r.apart = c
		}
	}
	if r.apart == nil {
		return "", rpc.Errorf(rpc.ErrRefused, `nothing was done: %s has the last controller that answers (%s), and a fleet without one is lost
  make another first: hlctl hosts add --controller root@OTHER-HOST`, r.name, name)
	}
	return name, nil
}

// isAt says whether an address is that of the host's agent.
func (r *removal) isAt(ip netip.Addr) bool {
	host, _, err := net.SplitHostPort(r.was.GetAddress())
	own, parseErr := netip.ParseAddr(host)
	return err == nil && parseErr == nil && own == ip
}

// left are the VMs with our mark that were seen on the host last, and guests of the Spec
// that are remembered there.
func (r *removal) left() []leftDoc {
	list := []leftDoc{}
	seen := make(map[int32]bool)
	for _, vm := range r.was.GetObservation().GetVms() {
		m, err := mark.Parse(vm.GetMark())
		if err != nil {
			continue
		}
		seen[vm.GetVmid()] = true
		list = append(list, leftDoc{m.Guest, vm.GetVmid(), powerWord(vm.GetPower())})
	}
	for _, g := range r.status.GetGuests() {
		if g.GetHost() == r.name && g.GetVmid() != 0 && g.GetUuid() != "" && !seen[g.GetVmid()] && g.GetPower() != homelabv1.Power_POWER_ABSENT {
			list = append(list, leftDoc{g.GetName(), g.GetVmid(), powerWord(g.GetPower())})
		}
	}
	slices.SortFunc(list, func(a, b leftDoc) int { return strings.Compare(a.Guest, b.Guest) })
	return list
}

func (r *removal) confirm(ctx context.Context) error {
	if r.a.format == "table" {
		r.announce()
	}
	switch {
	case r.yes:
		return nil
	case r.a.format != "table":
		return fmt.Errorf("nothing was done: -o %s does not ask; confirm with --yes", r.a.format)
	case !r.a.inIsTerm:
		return errors.New("nothing was done: there is no terminal to ask on; confirm with --yes")
	}
	yes, err := r.a.yesNo(ctx, "Remove "+r.name+" from the fleet? [y/N] ")
	if err == nil && !yes {
		err = errors.New("nothing was done: it was not confirmed")
	}
	return err
}

// announce says what will be done.
func (r *removal) announce() {
	switch {
	case r.on == nil:
		r.say("%s is only locked out, and what runs on it stays: %s", r.name, r.silent)
	case r.on.Installed == "":
		r.say("%s: the package is not installed on it any more", r.name)
	case r.purge:
		r.say("%s: its daemons are ended, and package %s is removed with its data", r.name, r.on.Installed)
	default:
		r.say("%s: its daemons are ended, and package %s is removed", r.name, r.on.Installed)
	}
	if len(r.holders) > 0 {
		r.say("  taken back: the certificates of %s", enumerate(r.holders))
	}
	if len(r.doc.Left) > 0 {
		seen := ""
		if !answers(r.was) {
			seen = " (as they were seen last)"
		}
		r.say("  left as they are, and no longer looked after%s:", seen)
		for _, l := range r.doc.Left {
			power := "not seen"
			if l.Power != nil {
				power = *l.Power
			}
			r.say("    %s (VM %d), %s", l.Guest, l.VMID, power)
		}
	}
}

func (r *removal) carryOut(ctx context.Context) error {
	if r.on != nil {
		if err := r.uninstall(ctx); err != nil {
			return fmt.Errorf("host %s: %w\n  its daemons may be ended, and its certificates were not taken back yet; again: hlctl hosts remove %s", r.name, err, r.name)
		}
	}
	c, err := r.a.controllerAt(ctx, r.apart.address)
	if err != nil {
		return r.notYet(fmt.Errorf("controller %s: %s", r.apart.address, cause(err)))
	}
	defer c.close()
	for _, holder := range r.holders {
		got, err := ask(ctx, c.RevokeCertificate, &controllerv1.RevokeCertificateRequest{Holder: holder})
		if err != nil && !errors.Is(err, rpc.ErrNotFound) { // somebody was faster
			return r.notYet(fmt.Errorf("take back the certificates of %s: %w", holder, err))
		}
		r.doc.Revoked = append(r.doc.Revoked, got.GetSerials()...)
	}
	// Also when nothing was left to take back: an earlier attempt may have ended between
	// both, and a key more costs nothing.
	rotated, err := ask(ctx, c.RotateGossip, &controllerv1.RotateGossipRequest{})
	if err != nil {
		return fmt.Errorf("the certificates were taken back, but %s still knows the gossip key: %w\n  again: hlctl trust rotate-gossip", r.name, err)
	}
	r.doc.Late = append(r.doc.Late, rotated.GetLate()...)
	r.dropAddress()
	if r.controller == "" {
		return nil
	}
	trust, err := ask(ctx, c.Trust, &controllerv1.TrustRequest{})
	r.doc.Needed = stillIssuing(trust, r.controller)
	return err
}

// notYet is what people are told when the fleet's half of it is not done.
func (r *removal) notYet(err error) error {
	did := "nothing was done on the host"
	if r.on != nil {
		did = "its daemons are ended"
	}
	return fmt.Errorf("%w\n  %s, and its certificates are not all taken back; again: hlctl hosts remove %s", err, did, r.name)
}

// uninstall ends the daemons and removes the package.
func (r *removal) uninstall(ctx context.Context) error {
	r.doc.Package = "absent"
	if r.on.Installed == "" && !r.purge {
		return nil
	}
	kept, err := r.on.Remove(ctx, r.purge)
	if err != nil {
		return err
	}
	r.doc.Package, r.doc.Kept = "removed", append(r.doc.Kept, kept...)
	if r.purge {
		r.doc.Package = "purged"
	}
	return nil
}

// tell says what was done, and what is left to do.
func (r *removal) tell() {
	r.say("%s is removed.", r.name)
	if len(r.doc.Kept) > 0 {
		r.say("Kept on it, because it cannot be made again:\n  %s", strings.Join(r.doc.Kept, "\n  "))
	}
	if len(r.doc.Late) > 0 {
		r.say("The new gossip key was not told yet, and is told again: %s", strings.Join(r.doc.Late, ", "))
	}
	if r.on == nil {
		r.say("Its daemons were not ended. When it answers again: hlctl hosts remove %s --ssh root@HOST", r.name)
	}
	for _, g := range r.status.GetGuests() {
		if g.GetHost() == r.name {
			r.say("The Spec names it still: take hosts.%s and the guests on it out of it, and apply it.", r.name)
			break
		}
	}
	if r.controller == "" {
		return
	}
	next := "take its address out of controllers in hlctl's configuration"
	if r.dropped != "" {
		next = r.address + " is taken out of " + r.dropped
	}
	r.say("Controller %s is gone: %s. Others name it still when it is among their seeds.", r.controller, next)
	if r.doc.Needed != "" {
		r.say("%s", r.doc.Needed)
	}
	if r.doc.Package != "purged" {
		r.say("The fleet's key and its issuing CA's are in its state folder on the host; when others may have read them: hlctl trust rotate-ca")
	}
}

// dropAddress takes the controller that is gone out of hlctl's configuration, so that no
// command waits for it. Where that cannot be, it is said.
func (r *removal) dropAddress() {
	c, err := r.a.loadContext()
	if err != nil || r.address == "" {
		return
	}
	if dropped, err := dropController(c, r.address); dropped && err == nil {
		r.dropped = c.where
	}
}
