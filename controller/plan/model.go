package plan

import (
	"cmp"
	"slices"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/spec"
)

// maxTime stands for a time that does not matter.
var maxTime = time.Unix(1<<40, 0)

// model is everything that one plan is made from, indexed, and the plan as it
// grows. It is made anew for each plan.
type model struct {
	want     Want
	seen     Seen
	now      time.Time
	made     map[string]bool // guests whose VMs the present run has made, for InitBlocked
	spec     *spec.Spec
	hosts    map[string]*hostView
	order    []*hostView // by name
	guests   []*guestView
	servers  []*guestView // of them, those that are to be in the cluster
	byName   map[string]*guestView
	ours     map[string][]place // by guest: VMs whose mark verifies
	named    map[string][]place // by guest of the Spec: VMs of its name that are not it
	copies   map[string][]place // by guest of the Spec: VMs whose mark names it and does not verify
	used     map[int32][]place  // by VMID: what was seen there, containers too
	left     map[int32][]string // by VMID: hosts with volumes of it that no configuration names
	last     map[int32]string   // by VMID: the host that does not answer and held it last
	pve      map[string]*pveCluster
	flying   map[string]flight       // by guest: a step in flight
	fetching map[string]bool         // by step id
	intents  map[string][]openIntent // by guest: creations begun and not ended
	intentAt map[int32]string        // by VMID: a guest of such a creation
	namedAt  map[int32]string        // by VMID: the guest that the Spec gives it
	lastAt   map[int32][]string      // by VMID: guests remembered with it where nobody can look
	unseen   []string                // rule 3: why some VM may exist that was not seen
	cluster  *Cluster
	toll     toll
	taken    map[int32]bool  // VMIDs that no holder may get; made when one is first asked for
	free     int             // no VMID before it is free for a holder
	fetched  map[string]bool // steps about images in the plan, by id
	// templates are those that guests of the plan are cloned from, and templateVMIDs
	// those that the plan gives out, by templateKey.
	templates     map[string]templateRef
	templateVMIDs map[string]int32
	presents      map[string]Image  // by name: what it stands for
	perHost       map[[2]string]int // by host and image: guests that are wanted
	claims        map[string]*claim // by host
	// byNameOnly are guests whose destruction must be confirmed by name.
	byNameOnly []string
	steps      []*homelabv1.Step
	rank       map[string]int // place of a join in the chain, by step id
	notes      []*homelabv1.Note
}

// place is one VM or container somewhere.
type place struct {
	host  string // the Spec's host, or the PVE node when no host of the Spec is it
	vm    *homelabv1.VirtualMachine
	kind  string // qemu or lxc
	owner Ownership
	guest string // the guest that it is, when ours
}

// flight is a step in flight.
type flight struct{ id, host string }

// openIntent is a creation, or a destruction, begun and not seen to end, with
// the host it is on.
type openIntent struct {
	intent *homelabv1.Intent
	host   *hostView
}

// left is what is undone of it, as a reason.
func (i *openIntent) left() string {
	if i.intent.GetDestroying() {
		return "its destruction was begun, and what is left of it goes first"
	}
	return "its creation was begun and left half-built"
}

func newModel(want Want, seen Seen, now time.Time) *model {
	m := &model{
		want: want, seen: seen, now: now, spec: want.Spec,
		hosts: map[string]*hostView{}, byName: map[string]*guestView{},
		ours: map[string][]place{}, named: map[string][]place{}, copies: map[string][]place{},
		used: map[int32][]place{}, left: map[int32][]string{}, last: map[int32]string{},
		flying: map[string]flight{}, fetching: map[string]bool{}, intents: map[string][]openIntent{},
		intentAt: map[int32]string{}, namedAt: map[int32]string{}, lastAt: map[int32][]string{},
		fetched: map[string]bool{}, templates: map[string]templateRef{}, templateVMIDs: map[string]int32{}, presents: map[string]Image{}, claims: map[string]*claim{}, rank: map[string]int{},
	}
	if m.want.VerifyMark == nil {
		m.want.VerifyMark = func(*homelabv1.VirtualMachine, string) Ownership {
			return Ownership{Why: "marks cannot be verified without the fleet key"}
		}
	}
	for _, name := range m.spec.HostNames() {
		h := newHostView(m.spec.Hosts[name], seen.Hosts[name], want.Paused)
		m.hosts[name] = h
		m.order = append(m.order, h)
		m.claims[name] = &claim{storage: map[string]int64{}, images: map[string]bool{}}
	}
	m.indexVMs()
	m.indexPVE()
	m.sortPlaces()
	m.findUnseen()
	m.indexWork()
	m.indexMemory()
	m.cluster = clusterOf(seen, m.order)
	for _, name := range m.spec.GuestNames() {
		g := &guestView{name: name, want: m.spec.Guests[name], mem: want.Guests[name]}
		g.host = m.hosts[g.want.Host]
		m.findHolder(g)
		m.guests = append(m.guests, g)
		m.byName[name] = g
		if g.want.IsServer() && g.want.IsMember() {
			m.servers = append(m.servers, g)
		}
	}
	for _, g := range m.guests {
		m.classify(g)
	}
	m.assignVMIDs()
	m.reserveTemplates()
	m.claimResources()
	return m
}

// view is a guest by its name: one of the Spec, or one that it dropped, by what
// is remembered and seen of it. nil when neither is known.
func (m *model) view(name string) *guestView {
	if g := m.byName[name]; g != nil {
		return g
	}
	r, remembered := m.want.Guests[name]
	there := m.ours[name]
	if !remembered && len(there) == 0 {
		return nil
	}
	g := &guestView{name: name, mem: r, want: &spec.Guest{Name: name, Host: r.Host, State: spec.StateRunning, OnUnhealthy: spec.PolicyReport}}
	if len(there) > 0 {
		g.want.Host = there[0].host
	}
	if r.Role != "" {
		g.want.K3s = &spec.Member{Role: r.Role, Name: r.NodeName}
	} else if role := m.roleSeen(name); r.NodeName == "" && role != "" {
		g.want.K3s = &spec.Member{Role: role} // not remembered: a Node has its guest's name unless the Spec says otherwise
	}
	g.host = m.hosts[g.want.Host]
	m.findHolder(g)
	m.classify(g)
	return g
}

// roleSeen is what the cluster says that a guest is of whose role nobody knows;
// empty for no member.
func (m *model) roleSeen(name string) spec.Role {
	node := m.cluster.Node(name)
	switch {
	case node.GetServer() || m.cluster.Member(name, nil) != nil:
		return spec.RoleServer
	case node != nil:
		return spec.RoleAgent
	}
	return ""
}

// indexVMs notes every VM that a host itself shows. What a partial list shows
// is there all the same; only what it does not show is not known.
func (m *model) indexVMs() {
	for _, h := range m.order {
		if h.obs == nil {
			for _, vmid := range m.want.LastVMIDs[h.name] {
				m.last[vmid] = h.name
			}
			continue
		}
		for _, vm := range h.obs.GetVms() {
			m.indexVM(h.name, vm)
		}
		for _, vmid := range h.obs.GetLeftoverVmids() {
			m.left[vmid] = append(m.left[vmid], h.name)
		}
	}
	for name, vmids := range m.want.LastVMIDs { // hosts that left the Spec
		if m.hosts[name] == nil {
			for _, vmid := range vmids {
				if h := m.last[vmid]; h == "" || name < h {
					m.last[vmid] = name
				}
			}
		}
	}
}

func (m *model) indexVM(host string, vm *homelabv1.VirtualMachine) {
	p := place{host: host, vm: vm, kind: "qemu", owner: Ownership{Why: "it has no mark"}}
	if claimed, err := mark.Parse(vm.GetMark()); err == nil {
		p.owner = m.want.VerifyMark(vm, claimed.Guest)
		switch {
		case p.owner.Ours:
			p.guest = claimed.Guest
			m.ours[claimed.Guest] = append(m.ours[claimed.Guest], p)
		case m.spec.Guests[claimed.Guest] != nil:
			m.copies[claimed.Guest] = append(m.copies[claimed.Guest], p)
		}
	} else if vm.GetMark() != "" {
		p.owner.Why = err.Error()
	}
	if name := vm.GetName(); name != p.guest && m.spec.Guests[name] != nil {
		m.named[name] = append(m.named[name], p)
	}
	m.used[vm.GetVmid()] = append(m.used[vm.GetVmid()], p)
}

// sortPlaces makes what is said of several places the same in whatever order
// they were told.
func (m *model) sortPlaces() {
	sortAll := func(list []place) {
		slices.SortStableFunc(list, func(a, b place) int {
			return cmp.Or(cmp.Compare(a.host, b.host), cmp.Compare(a.vm.GetVmid(), b.vm.GetVmid()), cmp.Compare(a.kind, b.kind))
		})
	}
	for _, lists := range []map[string][]place{m.ours, m.named, m.copies} {
		for _, list := range lists {
			sortAll(list)
		}
	}
	for _, list := range m.used {
		sortAll(list)
	}
}

// add puts a step into the plan and gives its id.
func (m *model) add(s *homelabv1.Step) string {
	slices.Sort(s.After)
	s.After = slices.Compact(s.After)
	m.steps = append(m.steps, s)
	return s.Id
}

func (m *model) note(kind homelabv1.NoteKind, guest, host, text string) {
	m.notes = append(m.notes, &homelabv1.Note{Kind: kind, Guest: guest, Host: host, Text: text})
}
