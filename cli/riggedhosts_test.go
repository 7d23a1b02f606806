package cli

import (
	"os"
	"slices"
	"strings"

	"github.com/homeiac/homelab/cli/onhost"
	"github.com/homeiac/homelab/cli/onhost/onhosttest"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"google.golang.org/protobuf/proto"
)

// host starts a host that lets us in, and that the rig's controller finds. Its host key is
// not known.
func (r *rig) host(hostname string) *onhosttest.Host {
	r.t.Helper()
	h := onhosttest.Start(r.t, hostname)
	r.t.Setenv("HOME", r.dir)
	r.t.Setenv("SSH_AUTH_SOCK", "")
	h.Lock()
	h.Authorized = r.lets
	h.Unlock()
	if r.lets == nil {
		key, err := os.ReadFile(h.Identity(r.t, ""))
		if err == nil {
			err = os.MkdirAll(r.path(".ssh"), 0o700)
		}
		if err != nil {
			r.t.Fatal(err)
		}
		r.write(".ssh/id_ed25519", string(key))
		r.lets = h.Authorized
	}
	if r.registry != nil {
		h.Enrol = r.registry.enrol
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hosts = append(r.hosts, h)
	return h
}

// member starts a host of the fleet, with the package of that version at work.
func (r *rig) member(name, version string) *onhosttest.Host {
	r.t.Helper()
	h := r.host(name)
	h.Know(r.t, r.dir)
	h.Have(version)
	r.status.Hosts = append(r.status.Hosts, &homelabv1.HostStatus{Name: name, Address: "192.0.2.9:8400"})
	return h
}

// sshTo is where a host is reached, as --ssh says it.
func sshTo(h *onhosttest.Host) string { return h.Hostname + "=" + h.Target() }

// seen are the hosts that are known, as their agents say they are now. It is called under
// the lock.
func (f *fake) seen() (list []*homelabv1.HostStatus) {
	for _, known := range f.status.GetHosts() {
		list = append(list, proto.CloneOf(known))
	}
	for _, h := range f.hosts {
		agent := h.Daemon(onhost.AgentService)
		name, counts := h.Hostname, true // one whose data was purged is remembered
		if f.registry != nil {
			name, counts = agent.Name, f.registry.counts(agent)
		}
		i := slices.IndexFunc(list, func(s *homelabv1.HostStatus) bool { return s.GetName() == name })
		switch {
		case i < 0 && agent.Serial == "":
			continue // nobody has heard of it
		case i < 0:
			i, list = len(list), append(list, &homelabv1.HostStatus{Name: name, Address: "127.0.0.1:8400"})
		}
		switch s := list[i]; {
		case agent.Version != "" && counts:
			s.State, s.Reason, s.Version = homelabv1.HostState_HOST_STATE_ONLINE, "", agent.Version
		case h.Off:
			s.State = homelabv1.HostState_HOST_STATE_SILENT
		case s.GetState() != homelabv1.HostState_HOST_STATE_ONLINE: // another of its name is
			s.State, s.Reason = homelabv1.HostState_HOST_STATE_AGENT_GONE, s.GetAddress()+" refuses the connection"
		}
	}
	return list
}

// runs is the version of the controller of a name that runs on one of the hosts; empty
// for none.
func (f *fake) runs(name string) string {
	for _, h := range f.hosts {
		if c := h.Daemon(onhost.ControllerService); c.Name == name && c.Version != "" {
			return c.Version
		}
	}
	return ""
}

// guestsOn puts guests on a host, as Status shows them.
func (r *rig) guestsOn(host string, names ...string) {
	for i, name := range names {
		r.status.Guests = append(r.status.Guests, &controllerv1.GuestStatus{
			Name: name, Host: host, Vmid: int32(201 + i), Uuid: "u", Power: homelabv1.Power_POWER_RUNNING, //nolint:gosec // small
		})
	}
}

// changedOn is what was done on each of the hosts.
func changedOn(hosts []*onhosttest.Host) (all []string) {
	for _, h := range hosts {
		all = append(all, h.Done())
	}
	return all
}

// masked takes out where a host is.
func masked(h *onhosttest.Host, text string) string {
	return strings.NewReplacer(h.At(), "HOST", strings.Replace(h.At(), "127.0.0.1:", "[127.0.0.1]:", 1), "[HOST]").Replace(text)
}
