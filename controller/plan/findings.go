package plan

import (
	"fmt"
	"slices"
	"strings"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"go.yaml.in/yaml/v3"
)

// Finding is one thing that does not agree between the Spec, the Nodes and
// etcd's members.
type Finding struct {
	// Kind is ghost-node, ghost-member, learner, version, address, certificate,
	// config, not-ready, not-member, quorum, two-servers, stopped-voter, cordoned or unknown.
	Kind  string
	Guest string
	Name  string // of the Node or member
	Text  string
	Bad   bool // more than a warning
}

// Findings compares the cluster with the Spec, worst first.
func Findings(want Want, seen Seen, now time.Time) []Finding {
	m := newModel(want, seen, now)
	if m.spec.K3s == nil {
		return nil
	}
	f := &finder{m: m}
	f.known()
	f.quorum()
	f.members()
	f.nodes()
	f.servers()
	slices.SortStableFunc(f.all, func(a, b Finding) int {
		switch {
		case a.Bad == b.Bad:
			return 0
		case a.Bad:
			return -1
		}
		return 1
	})
	return f.all
}

type finder struct {
	m   *model
	all []Finding
}

func (f *finder) add(kind, guest, name string, bad bool, format string, args ...any) {
	f.all = append(f.all, Finding{Kind: kind, Guest: guest, Name: name, Bad: bad, Text: fmt.Sprintf(format, args...)})
}

// known is what could not be asked.
func (f *finder) known() {
	c := f.m.cluster
	switch {
	case c.Split != "":
		f.add("quorum", "", "", true, "%s", c.Split)
	case !yes(c.API) && f.m.existing():
		f.add("unknown", "", "", true, "the k3s API does not answer%s: who is a member is not known", because(c.API))
	case yes(c.API) && !yes(c.Etcd):
		f.add("unknown", "", "", true, "etcd does not answer%s", because(c.Etcd))
	}
	for _, g := range f.m.guests {
		if g.want.IsServer() && g.want.IsMember() && g.host != nil && g.host.want.Enabled && g.look == nil && f.m.existing() {
			if c := f.m.condition(g); c.reason != "" {
				f.add("unknown", g.name, "", true, "it could not be asked: %s", f.m.unwellText(c))
			}
		}
	}
}

func (f *finder) quorum() {
	c := f.m.cluster
	if !yes(c.Etcd) || c.Voters == 0 {
		return
	}
	switch left := MayFail(c); {
	case left < 0:
		f.add("quorum", "", "", true, "the quorum is lost: %s; the cluster stands still until enough of them are back", c.arithmetic())
	case left == 0 && c.Voters > 1:
		f.add("quorum", "", "", c.Healthy < c.Voters, "no voter may fail: %s", c.arithmetic())
	}
	if c.Voters == 2 {
		f.add("two-servers", "", "", false, "two servers bear no loss, and one that is lost stops both: add a third, or keep one")
	}
}

func (f *finder) members() {
	m := f.m
	for _, e := range m.cluster.Members {
		g := f.guestOf(e)
		switch {
		case g == nil && e.GetLearner():
			f.add("ghost-member", "", learnerName(e), true, "learner %s belongs to no guest of the Spec; k3s drops a stalled one after 5 min", learnerName(e))
		case g == nil && m.spec.K3s.Existing == nil:
			f.add("ghost-member", "", learnerName(e), true, "etcd member %s belongs to no guest of the Spec, and it counts as a voter", learnerName(e))
		case g == nil:
		case e.GetLearner():
			f.add("learner", g.name, learnerName(e), false, "its member %s has no vote yet", learnerName(e))
		case g.want.Standby() || g.situation == Stopped:
			f.add("stopped-voter", g.name, learnerName(e), true, "it is stopped and still a voter, so the cluster bears less: start it, or take it out with hlctl k3s remove %s", g.name)
		case no(e.GetHealthy()):
			f.add("not-member", g.name, learnerName(e), true, "its etcd member is not well%s", because(e.GetHealthy()))
		}
	}
}

func (f *finder) guestOf(e *homelabv1.EtcdMember) *guestView {
	for _, g := range f.m.guests {
		if g.want.IsServer() && memberOf(e, g.want.NodeName(), g.addresses()) {
			return g
		}
	}
	return nil
}

func (f *finder) nodes() {
	m := f.m
	byNode := map[string]*guestView{}
	for _, g := range m.guests {
		if g.want.K3s != nil {
			byNode[g.want.NodeName()] = g
		}
	}
	for _, n := range m.cluster.Nodes {
		g := byNode[n.GetName()]
		if g == nil {
			f.add("ghost-node", "", n.GetName(), no(n.GetReady()), "Node %s belongs to no guest of the Spec", n.GetName())
			continue
		}
		switch {
		case no(n.GetReady()):
			f.add("not-ready", g.name, n.GetName(), true, "Node %s is not Ready%s", n.GetName(), because(n.GetReady()))
		case !yes(n.GetReady()):
			f.add("not-ready", g.name, n.GetName(), true, "whether Node %s is Ready is not known%s", n.GetName(), because(n.GetReady()))
		}
		// Somebody's wish, or what is left of a recreation that was cut off before
		// its VM stopped: only a person can tell.
		if n.GetCordoned() {
			f.add("cordoned", g.name, n.GetName(), false, "Node %s is cordoned and takes no new pods; if nobody wants that: k3s kubectl uncordon %s", n.GetName(), n.GetName())
		}
		if v := n.GetVersion(); v != "" && v != m.spec.K3s.Version {
			f.add("version", g.name, n.GetName(), true, "Node %s runs k3s %s, the Spec pins %s", n.GetName(), v, m.spec.K3s.Version)
		}
		if n.GetServer() != g.want.IsServer() {
			f.add("config", g.name, n.GetName(), true, "Node %s is %s, the Spec says %s", n.GetName(), roleWord(n.GetServer()), roleWord(g.want.IsServer()))
		}
		if a := n.GetAddress(); a != "" && g.want.NICs[0].Address.IsValid() && a != g.want.NICs[0].Address.Addr().String() {
			f.add("address", g.name, n.GetName(), true, "Node %s is at %s, the Spec says %s", n.GetName(), a, g.want.NICs[0].Address.Addr())
		}
	}
	if !yes(m.cluster.API) {
		return
	}
	for _, g := range m.guests {
		if g.want.IsMember() && g.host != nil && g.host.want.Enabled && m.cluster.Node(g.want.NodeName()) == nil && g.vm != nil {
			f.add("not-member", g.name, g.want.NodeName(), true, "it has no Node; join it with: hlctl k3s join %s", g.name)
		}
	}
}

func roleWord(server bool) string {
	if server {
		return "a server"
	}
	return "an agent"
}

// servers compares what the servers were started with: the names in their
// certificates and their flags, which must be the same on all.
func (f *finder) servers() {
	configs := map[string]map[string]string{}
	names := map[string]string{}
	for _, g := range f.m.guests {
		if !g.want.IsServer() || g.look == nil {
			continue
		}
		k := g.look.GetK3S()
		if text := k.GetConfigYaml(); text != "" {
			if flags, ok := flagsOf(text); ok {
				configs[g.name] = flags
			}
		}
		if list := k.GetServingNames(); len(list) > 0 {
			names[g.name] = strings.Join(list, " ")
			f.certificate(g, list)
		}
	}
	keys := map[string]bool{}
	for _, flags := range configs {
		for key := range flags {
			keys[key] = true
		}
	}
	for _, key := range sorted(keys) {
		values := map[string][]string{}
		for _, guest := range sorted(configs) {
			values[configs[guest][key]] = append(values[configs[guest][key]], guest)
		}
		if len(values) > 1 {
			var parts []string
			for _, value := range sorted(values) {
				shown := value
				if shown == "" {
					shown = "not set"
				}
				parts = append(parts, strings.Join(values[value], ", ")+": "+shown)
			}
			f.add("config", "", key, true, "server flag %s differs (%s)", key, strings.Join(parts, "; "))
		}
	}
}

// certificate says which names a server's certificate lacks.
func (f *finder) certificate(g *guestView, has []string) {
	var wanted []string
	if e := f.m.spec.K3s.Endpoint; e != "" {
		wanted = append(wanted, e)
	}
	switch san := f.m.spec.K3s.Config["tls-san"].(type) {
	case string:
		wanted = append(wanted, strings.Split(san, ",")...)
	case []string:
		wanted = append(wanted, san...)
	}
	var missing []string
	for _, name := range wanted {
		if name = strings.TrimSpace(name); name != "" && !slices.Contains(has, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		f.add("certificate", g.name, "", true, "the certificate of its API lacks %s (k3s.config.tls-san, k3s.endpoint)", strings.Join(missing, ", "))
	}
}

// ownFlags differ from server to server and must.
var ownFlags = map[string]bool{
	"node-name": true, "node-ip": true, "node-label": true, "cluster-init": true, "server": true, "token-file": true, "tls-san": true,
	"node-external-ip": true, "node-taint": true,
}

// flagsOf reads a config.yaml as flags that must be the same on all servers.
func flagsOf(text string) (map[string]string, bool) {
	var raw map[string]any
	if err := yaml.Unmarshal([]byte(text), &raw); err != nil {
		return nil, false
	}
	flags := map[string]string{}
	for key, value := range raw {
		if !ownFlags[key] {
			flags[key] = fmt.Sprint(value)
		}
	}
	return flags, true
}
