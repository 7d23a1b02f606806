package controller

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/homeiac/homelab/controller/store"
	"github.com/homeiac/homelab/internal/rpc"
)

func TestWhichCertificatesShouldHaveBeenRenewed(t *testing.T) {
	const day = 24 * time.Hour
	now := time.Now()
	cert := func(role, name, serial string, life, left time.Duration) store.Issued {
		end := now.Add(left)
		return store.Issued{Role: role, Name: name, Serial: serial, NotBefore: end.Add(-life - time.Hour), NotAfter: end}
	}
	got := overdue([]store.Issued{
		cert(rpc.RoleAdmin, "day", "1", day, 5*time.Hour), cert(rpc.RoleAdmin, "day-old", "2", day, 3*time.Hour),
		cert(rpc.RoleAdmin, "gone", "3", 365*day, -day), cert(rpc.RoleAdmin, "month", "4", 365*day, 30*day), cert(rpc.RoleAdmin, "soon", "5", 365*day, 13*day),
		cert(rpc.RoleAdmin, "twice", "6", 365*day, 13*day), cert(rpc.RoleAdmin, "twice", "7", 365*day, 300*day),
		cert(rpc.RoleAgent, "expired", "8", 90*day, -day), cert(rpc.RoleAgent, "fresh", "9", 90*day, 80*day), cert(rpc.RoleAgent, "late", "a", 90*day, 14*day),
		cert(rpc.RoleAgent, "renewing", "b", 90*day, 16*day), cert(rpc.RoleAgent, "revoked", "c", 90*day, day),
		cert(rpc.RoleController, "c1", "d", 90*day, 80*day), cert(rpc.RoleController, "c1", "e", 90*day, day), cert(rpc.RoleViewer, "tv", "f", 365*day, day),
	}, func(serial string) bool { return serial == "c" }, now)
	var names []string
	for _, i := range got {
		names = append(names, i.Role+"@"+i.Name)
	}
	if want := []string{"admin@day-old", "admin@soon", "agent@expired", "agent@late", "viewer@tv"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
}

func TestStatusTellsWhatEndsSoon(t *testing.T) {
	f := newFleet(t, "pve1")
	clk := &clock{t: time.Now().Add(-time.Hour)}
	f.twoLevels(clk)
	tune, still := f.tune, &clock{t: clk.now()}
	f.tune = func(c *Controller) {
		tune(c)
		c.creds.Now = still.now // else it may renew its own certificate before it is asked
	}
	c := f.up()
	told := func() []string {
		// Within the process: its certificates are of the real present.
		resp, err := c.status(t.Context(), false, false)
		if err != nil {
			t.Fatal(err)
		}
		var roles []string
		for _, e := range resp.GetEnding() {
			roles = append(roles, e.GetRole()+"@"+e.GetName())
		}
		return roles
	}
	// The root has a year and an hour left, and so has what it signed.
	if got := told(); slices.ContainsFunc(got, func(s string) bool { return !strings.HasPrefix(s, "agent@") }) {
		t.Errorf("%q", got)
	}
	clk.add(30 * 24 * time.Hour)
	want := []string{"root@homelab CA of fleet lab", "issuing@homelab issuing CA of controller-1 of fleet lab", "controller@controller-1"}
	got := slices.DeleteFunc(told(), func(s string) bool { return strings.HasPrefix(s, "agent@") })
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
