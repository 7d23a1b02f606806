package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/homeiac/homelab/cli/discover"
	"github.com/homeiac/homelab/cli/remote"
)

// rootShell is a host that init looks at.
type rootShell interface {
	discover.Shell
	io.Closer
	// IP is where the host is.
	IP() netip.Addr
}

func dialRemote(ctx context.Context, t remote.Target, o remote.Options) (rootShell, error) {
	h, err := remote.Dial(ctx, t, o)
	if err != nil {
		return nil, err // and no *remote.Host that is nil
	}
	return h, nil
}

// fromHosts is what init --from-hosts was told.
type fromHosts struct {
	targets  []string
	hostKeys []string // none, or one for each target
	options  remote.Options
	dial     func(ctx context.Context, t remote.Target, o remote.Options) (rootShell, error)
	// listening asks which addresses answer on the port of the Kubernetes API.
	listening func(ctx context.Context, all []netip.Addr) []discover.Answer

	found   *found
	unasked bool // since the Spec is there already
}

const (
	// lookingLong is how long one host may take: five starts of Perl at least, and as long
	// as a storage makes Proxmox wait.
	lookingLong = 3 * time.Minute
	lookAtOnce  = 8
)

func (f *fromHosts) check() error {
	for i, t := range f.targets {
		if _, err := remote.ParseTarget(t); err != nil {
			return fmt.Errorf("--from-hosts: %w", err)
		}
		if slices.Contains(f.targets[:i], t) {
			return fmt.Errorf("--from-hosts names %s twice", t)
		}
	}
	if n := len(f.hostKeys); n > 0 && n != len(f.targets) {
		return fmt.Errorf("--host-key is there %d times for %s of --from-hosts: one for each, in their order", n, plural(len(f.targets), "host", "hosts"))
	}
	return nil
}

// look asks all hosts. One that cannot be looked at makes all of it fail: a Spec without
// it would look as if it were whole.
func (f *fromHosts) look(ctx context.Context, d *dotenv, progress func(string)) (*found, error) {
	if len(f.targets) == 0 {
		return nil, nil
	}
	shells := make([]rootShell, len(f.targets))
	defer func() {
		for _, s := range shells {
			if s != nil {
				_ = s.Close()
			}
		}
	}()
	all := &found{hosts: make([]*foundHost, len(f.targets))}
	var wrong []error
	// One after the other: each may ask whether a host's key is the right one.
	for i, t := range f.targets {
		all.hosts[i] = &foundHost{target: discover.Plain(t)}
		o := f.options
		if len(f.hostKeys) > 0 {
			o.HostKey = f.hostKeys[i]
		}
		target, err := remote.ParseTarget(t)
		if err != nil {
			return nil, err
		}
		if shells[i], err = f.dial(ctx, target, o); err != nil {
			shells[i] = nil
			wrong = append(wrong, fmt.Errorf("%s: %w", t, err))
			continue
		}
		all.hosts[i].address = shells[i].IP()
	}
	if len(wrong) == 0 {
		progress("looking at " + strings.Join(f.targets, ", ") + " (nothing is changed there)")
		wrong = f.ask(ctx, shells, all)
	}
	if len(wrong) == 0 {
		wrong = all.twice()
	}
	if len(wrong) > 0 {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w\nnothing was made; leave out of --from-hosts what is not to be in the Spec yet, or try again", errors.Join(wrong...))
	}
	for _, h := range all.hosts {
		h.settle()
	}
	asked := all.guestAddresses()
	if server, err := netip.ParseAddr(d.values["K3S_EXISTING_NODE_IP"]); err == nil && server.Zone() == "" {
		asked = append([]netip.Addr{server}, asked...)
	}
	all.answers = f.listening(ctx, asked)
	return all, ctx.Err()
}

// ask looks at the hosts, several at a time, and gives what is wrong with each.
func (f *fromHosts) ask(ctx context.Context, shells []rootShell, all *found) (wrong []error) {
	errs := make([]error, len(shells))
	var g errgroup.Group
	g.SetLimit(lookAtOnce)
	for i, s := range shells {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, lookingLong)
			defer cancel()
			h, err := discover.Look(ctx, s)
			if err != nil {
				errs[i] = fmt.Errorf("%s: %w", f.targets[i], err)
			}
			all.hosts[i].Host = h
			return nil
		})
	}
	_ = g.Wait() // none gives an error
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

// twice finds hosts that one Spec cannot hold.
func (f *found) twice() (wrong []error) {
	for i, h := range f.hosts {
		for _, o := range f.hosts[:i] {
			switch {
			case h.Name != o.Name:
			case slices.ContainsFunc(h.Addresses, func(a netip.Addr) bool { return slices.Contains(o.Addresses, a) }):
				wrong = append(wrong, fmt.Errorf("%s: it is the same host as %s, %s: name it once", h.target, o.target, h.Name))
			default:
				wrong = append(wrong, fmt.Errorf("%s: it calls itself %s, and so does %s: a fleet's hosts need names of their own", h.target, h.Name, o.target))
			}
		}
	}
	return wrong
}

// settle finds the address for the Spec: the one by which the host was reached where that
// is its own, that of its Proxmox cluster, or that of the bridge which leads outside.
func (h *foundHost) settle() {
	has := func(a netip.Addr) bool { return a.IsValid() && slices.Contains(h.Addresses, a) }
	reached := h.address
	h.address = netip.Addr{}
	switch {
	case has(reached):
		h.address = reached
	case has(h.ClusterAddress):
		h.address, h.from = h.ClusterAddress, "that in its Proxmox cluster"
	default:
		for _, b := range h.Bridges {
			for _, n := range b.Nets {
				i := slices.IndexFunc(h.Addresses, n.Subnet.Contains)
				if i >= 0 && n.Gateway.IsValid() && !h.address.IsValid() {
					h.address, h.from = h.Addresses[i], "that of "+b.Name
				}
			}
		}
	}
}

// toAdd are the hosts for hosts add, that of the first controller before the others;
// empty when it is not among them.
func (f *fromHosts) toAdd(controller netip.Addr) string {
	first := -1
	for i, h := range f.found.list() {
		if slices.Contains(h.Addresses, controller) {
			first = i
		}
	}
	if first < 0 {
		return ""
	}
	targets := slices.Delete(slices.Clone(f.targets), first, first+1)
	return strings.Join(slices.Insert(targets, 0, f.targets[first]), " ")
}

// foundDoc is a host that init looked at, in JSON.
type foundDoc struct {
	Name        string `json:"name"`
	Target      string `json:"target"`
	Address     string `json:"address"`
	Version     string `json:"version"`
	CPUs        int    `json:"cpus"`
	MemoryBytes int64  `json:"memoryBytes"`
	Guests      int    `json:"guests"`
	Containers  int    `json:"containers"`
}

func (f *fromHosts) doc() []foundDoc {
	docs := []foundDoc{}
	for _, h := range f.found.list() {
		one := foundDoc{Name: h.Name, Target: h.target, Version: h.Version, CPUs: h.CPUs, MemoryBytes: h.Memory, Guests: len(h.Guests), Containers: len(h.Containers)}
		if h.address.IsValid() {
			one.Address = h.address.String()
		}
		docs = append(docs, one)
	}
	return docs
}

func (a *app) showFound(f *fromHosts, spec string) {
	if f.unasked {
		fmt.Fprintf(a.out, "%s is there already, so no host was asked; --out FILE writes another.\n\n", spec)
		return
	}
	if f.found == nil {
		return
	}
	fmt.Fprintln(a.out, "Found:")
	for _, h := range f.found.hosts {
		fmt.Fprintf(a.out, "  %-24s %s: Proxmox VE %s, %s, %s\n", h.Name, h.target, h.Version, plural(len(h.Guests), "VM", "VMs"), plural(len(h.Containers), "container", "containers"))
	}
	for _, answer := range f.found.answers {
		fmt.Fprintf(a.out, "  %s: perhaps the API of a k3s; to join its cluster, see k3s.existing in the Spec\n", f.found.answering(answer))
	}
	fmt.Fprintln(a.out)
}
