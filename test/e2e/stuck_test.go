//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// breaking is one way in which a server gets stuck, and what apply must say of it.
type breaking struct {
	fault  string
	server int
	says   []string
}

var breakings = map[string][]breaking{
	"stopped, paused, crashed": {
		{"guest-stop", 2, []string{"stopped", "qmstop by root@pam"}},
		{"guest-pause", 3, []string{"paused"}},
		{"guest-crash", 1, []string{"stopped", "its process ended, and no task of Proxmox did that"}},
	},
	"hangs": {
		{"guest-hang", 1, []string{"guest agent and SSH are mute"}},
		{"kvm-hang", 2, []string{"guest agent and SSH are mute"}},
	},
}

// A server that got stuck, however it did, is made anew by one apply and is a voter
// again, and the others never notice more than an election.
func TestAStuckServerIsMadeAnew(t *testing.T) {
	t.Parallel()
	for name, list := range breakings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, options{})
			spec := l.impatient()
			l.mustApply(spec, 0)
			cluster := l.openEtcd("k3s-1")
			var clients []*clientv3.Client
			for n := range 3 {
				clients = append(clients, cluster.through(n+1))
			}
			for _, b := range list {
				var others []*clientv3.Client
				for i, c := range clients {
					if i+1 != b.server {
						others = append(others, c)
					}
				}
				l.unstick(spec, b, cluster, others)
				if t.Failed() {
					t.Fatalf("after %s", b.fault)
				}
			}
			l.mustChangeNothing(spec)
		})
	}
}

func (l *lab) unstick(spec string, b breaking, cluster *etcd, others []*clientv3.Client) {
	l.t.Helper()
	guest := fmt.Sprintf("k3s-%d", b.server)
	before, uids, rest := l.portrait(guest), cluster.nodeUIDs(others[0]), l.still(l.others(guest)...)
	l.fault(b.fault, guest)
	stop := watchQuorum(others...)
	r := l.hlctl("apply", "-f", spec, "--yes")
	l.mustHaveKept(stop())
	if r.exit != 0 {
		l.t.Fatalf("%s %s\n%s", b.fault, guest, r)
	}
	said := strings.Join(strings.Fields(r.stdout), " ") // in whatever lines
	for _, want := range append(b.says, guest, "destroy VM "+before.vmid) {
		if !strings.Contains(said, want) {
			l.t.Errorf("%s: apply does not say %q\n%s", b.fault, want, r)
		}
	}
	l.t.Logf("%s %s: made anew after %.1f s", b.fault, guest, r.took.Seconds())
	before.mustBeMadeAnew(l, guest, false)
	l.mustBeStill(rest, l.others(guest)...)
	l.mustBeHealthy(names(3)...)
	l.mustBeClean(names(3)...)
	now := cluster.nodeUIDs(others[0])
	for name, uid := range uids {
		if anew := name == guest; (now[name] != uid) != anew || now[name] == "" {
			l.t.Errorf("the Node %s is %q and was %q", name, now[name], uid)
		}
	}
	l.mustChangeNothing(spec)
	l.eventually(10*time.Second, guest+" has soaked", func() (bool, string) {
		p, exit := l.plan(spec)
		return exit == 0, fmt.Sprintf("%+v", p)
	})
}
