//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/homeiac/homelab/lab/pve"
)

// disksOnLocal puts all disks where the lab has linked clones.
func disksOnLocal(d doc) {
	for _, host := range at(d, "hosts") {
		at(host.(doc), "storage")["disks"] = "local"
	}
}

// vmCalls are the changing calls of qm about a VM that were not made by hand: verbs.
func (l *lab) vmCalls(host string) (verbs []string) {
	l.t.Helper()
	for _, c := range l.calls() {
		if c.Host == host && !c.byHand() && c.mutating() {
			verbs = append(verbs, c.Argv[1]+" "+c.Argv[2])
		}
	}
	return verbs
}

// templates are the templates on all hosts.
func (l *lab) templates() (list []conf) {
	l.t.Helper()
	for _, c := range l.confs() {
		if strings.Contains(c.text, "\ntemplate: 1") {
			list = append(list, c)
		}
	}
	return list
}

// mustLeaveNothing wants every volume to belong to a VM, no VM to be locked, no two of
// a name, and no intent to be open.
func (l *lab) mustLeaveNothing() {
	l.t.Helper()
	seen, owned := map[string]bool{}, map[string]string{}
	for _, c := range l.confs() {
		if seen[c.host+c.name] {
			l.t.Errorf("two VMs are named %s", c.name)
		}
		if seen[c.host+c.name] = true; strings.Contains("\n"+c.text, "\nlock: ") {
			l.t.Errorf("VM %s on %s is left locked:\n%s", c.vmid, c.host, c.text)
		}
		owned[c.host] += c.text
	}
	for _, host := range l.hostNames() {
		for _, v := range l.volumes(host) {
			if !strings.Contains(owned[host], v) && !strings.Contains(owned[host], "/"+v[strings.LastIndex(v, ":")+1:]) {
				l.t.Errorf("volume %s on %s belongs to no VM", v, host)
			}
		}
		l.mustHoldNoIntent(host)
	}
	l.mustHoldNoParts()
}

// photos makes a VM by hand with something on its disk, and gives its keepsake.
func (l *lab) photos(host, vmid string) keepsake {
	l.t.Helper()
	l.qm(host, "create", vmid, "--name", "photos", "--memory", "512", "--scsi0", "local:1")
	before := l.keep(vmid)
	for what := range before {
		if file, ok := strings.CutPrefix(what, "volume "); ok {
			l.writeAt(l.path("hosts")+file, 4096, dataText("photos", 0))
		}
	}
	return l.keep(vmid)
}

// Two guests of an image on one host are linked clones of one template, which is made
// once. One of them that is stopped by hand is made anew as the same machine and again
// a clone; the template stays as it is, and so does what somebody else made of it.
func TestGuestsOfOneImageAreClonesOfOneTemplate(t *testing.T) {
	t.Parallel()
	net := newInternet(t)
	l := newLab(t, options{hosts: 3})
	content := bootable(30, 8*mib)
	source := net.serve("/two.img", content)
	guests := doc{"web-4": doc{"host": "pve2", "image": "two"}}
	for i := 1; i <= 3; i++ {
		guests[fmt.Sprintf("web-%d", i)] = doc{"host": "pve1", "image": "two"}
		guests[fmt.Sprintf("other-%d", i)] = doc{"host": "pve2", "image": "two", "state": "stopped", "clone": "linked"}
		guests[fmt.Sprintf("last-%d", i)] = doc{"host": "pve3", "image": "two", "state": "stopped"}
	}
	images := doc{"two": doc{"url": net.url("/two.img"), "sha256": sha256Of(content)}}
	spec := l.imaged(images, guests, disksOnLocal)
	l.mustApply(spec, 0)
	running := []string{"web-1", "web-2", "web-3", "web-4"}
	l.mustBeHealthy(running...)
	served(t, source, len(content), 1, 1)
	templates := l.templates()
	if len(templates) != 3 {
		t.Fatalf("%d templates, one on each host was wanted: %+v", len(templates), templates)
	}
	for i, host := range []string{"pve1", "pve2", "pve3"} {
		verbs := l.vmCalls(host)
		count := func(verb string) int {
			return len(slices.DeleteFunc(slices.Clone(verbs), func(v string) bool { return !strings.HasPrefix(v, verb+" ") }))
		}
		if clones := []int{3, 4, 3}[i]; count("create") != 1 || count("template") != 1 || count("clone") != clones {
			t.Errorf("%s: one create, one template and %d clones were wanted: %q", host, clones, verbs)
		}
	}
	for _, d := range l.images("two") {
		if d.Template == nil || *d.Template < 9000 || *d.Template > 9099 {
			t.Errorf("hlctl images shows the template of %s as %v", d.Host, d.Template)
		}
	}
	if g := l.guests(); len(g) != len(guests) {
		t.Errorf("hlctl guests shows %d guests, there are %d: templates are none", len(g), len(guests))
	}
	l.mustChangeNothing(spec)

	template := templates[0].vmid
	l.qm("pve1", "clone", template, "900", "--name", "theirs")
	before := l.keep(template, "900")
	who := l.portrait("web-1")
	l.fault("guest-stop", "web-1")
	a := l.mustApply(spec, 0)
	l.mustBeHealthy(running...)
	who.mustBeMadeAnew(l, "web-1", false)
	if text := l.confOf("web-1").text; !strings.Contains(text, "base-"+template+"-disk-0") {
		t.Errorf("web-1 is no linked clone any more:\n%s", text)
	}
	if steps := a.steps(); slices.ContainsFunc(steps, func(s string) bool { return !strings.HasSuffix(s, "/web-1") }) {
		t.Errorf("more than web-1 was changed: %q", steps)
	}
	l.mustBeAsBefore(before, "web-1 was made anew", template, "900")
	served(t, source, len(content), 1, 1)
	l.mustChangeNothing(spec)
	l.mustLeaveNothing()

	// Nobody needs the image any more. On pve1 somebody else's VM stands on the template.
	gone := l.imaged(doc{"lab": doc{"url": "file:" + l.path("files/lab.img")}}, doc{"rest": standby("pve3", "lab")}, disksOnLocal)
	for name := range guests {
		l.mustDo(0, "guests", "delete", name, "--destroy", name)
	}
	l.mustApply(gone, 0)
	dry := l.hlctl("images", "prune", "--dry-run", "-o", "json")
	p := decode[planDoc](l, 0, dry)
	removes := map[string]int{}
	for _, s := range p.Steps {
		removes[s.Host]++
	}
	if removes["pve1"] != 1 || removes["pve2"] != 2 || removes["pve3"] != 2 {
		t.Errorf("the file on each host and two templates were to be removed: %v\n%s", removes, dry)
	}
	if !slices.ContainsFunc(p.Notes, func(n noteDoc) bool {
		return n.Host == "pve1" && strings.Contains(n.Text, template) && strings.Contains(n.Text, "900")
	}) {
		t.Errorf("it does not say why template %s stays: %+v", template, p.Notes)
	}
	if r := l.hlctl("images", "prune"); r.exit != 1 || !strings.Contains(r.stderr, "--yes") {
		t.Errorf("without a terminal and --yes nothing is done\n%s", r)
	}
	if n := len(l.templates()); n != 3 || len(l.images("two")) != 3 {
		t.Errorf("asking removed something: %d templates, %+v", n, l.images("two"))
	}
	l.mustDo(0, "images", "prune")
	l.mustBeAsBefore(before, "images prune", template, "900")
	if left := l.templates(); len(left) != 1 || left[0].vmid != template || left[0].host != "pve1" {
		t.Errorf("templates after the prune: %+v", left)
	}
	l.mustHoldNoImage("two", "pve1", "pve2", "pve3")
	l.qm("pve1", "destroy", "900")
	l.mustDo(0, "images", "prune")
	if left := l.templates(); len(left) != 0 {
		t.Errorf("nothing stands on it any more: %+v", left)
	}
	l.mustLeaveNothing()
}

// cutOff is a moment in which something is killed: a point at which qm is, or the
// first event that is it, at which the agent or its driver is.
type cutOff struct {
	point              string // of qm
	victim, kind, text string
	step               string // verb
}

func (c cutOff) String() string {
	if c.point != "" {
		return "qm killed at " + c.point
	}
	return strings.TrimSpace(c.victim + " killed at " + c.step + " " + c.kind + " " + c.text)
}

// Whatever is killed while a template or a clone is made, the next apply goes on:
// nothing of ours is left over, and a VM made by hand stays byte for byte.
func TestKilledWhileATemplateOrACloneIsMade(t *testing.T) {
	t.Parallel()
	var qm, agents, drivers []cutOff
	for _, point := range []string{
		"create disks", "template marked", "template renamed", "clone reserved", "clone copied", "clone drive", "set begun", "set disks",
	} {
		qm = append(qm, cutOff{point: point})
	}
	for _, c := range []cutOff{
		{step: "template", kind: "step-started"}, {step: "template", text: "creating VM"}, {step: "template", text: "making a template"},
		{step: "template", kind: "step-done"}, {step: "create", kind: "step-started"}, {step: "create", text: "as a linked clone"},
		{step: "create", kind: "call"}, {step: "create", kind: "step-done"},
	} {
		c.victim = "agent"
		agents = append(agents, c)
		c.victim = "driver"
		drivers = append(drivers, c)
	}
	for name, moments := range map[string][]cutOff{"qm": qm, "agent": agents, "driver": drivers} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			net := newInternet(t)
			l := newLab(t, options{hosts: 1, real: name != "qm"})
			before := l.photos("pve1", "900")
			images, guests := doc{}, doc{}
			for i, c := range moments {
				image := fmt.Sprintf("cut-%d", i)
				content := bootable(uint64(200+i), 2*mib)
				net.serve("/"+image+".img", content)
				images[image] = doc{"url": net.url("/" + image + ".img"), "sha256": sha256Of(content)}
				guests[image+"-a"], guests[image+"-b"] = standby("pve1", image), standby("pve1", image)
				spec := l.imaged(images, guests)
				if c.point != "" {
					h, err := pve.Open(l.path("hosts/pve1"))
					if err != nil {
						t.Fatal(err)
					}
					if err := h.Update(func(cfg *pve.HostConfig) { cfg.Trouble.Die = c.point }); err != nil {
						t.Fatal(err)
					}
					l.apply(spec)
				} else {
					l.killWhen(spec, c.String(), func(e eventDoc) bool {
						return strings.HasPrefix(e.Step, c.step+"/pve1/") && (c.kind == "" || e.Kind == c.kind) &&
							(c.text == "" || strings.Contains(e.Text, c.text) || e.Kind == "step-done")
					}, func(a *applying) func(eventDoc) {
						shoot := victims[c.victim](l, "pve1", a)
						return func(eventDoc) { shoot() }
					})
				}
				if next := l.apply(spec); next.exit != 0 {
					t.Errorf("%s: the next apply does not make everything\n%s", c, next)
				}
				if n := len(l.templates()); n != i+1 {
					t.Errorf("%s: there are %d templates, %d were wanted", c, n, i+1)
				}
				for _, guest := range []string{image + "-a", image + "-b"} {
					if text := l.confOf(guest).text; !strings.Contains(text, "base-") {
						t.Errorf("%s: %s is no linked clone:\n%s", c, guest, text)
					}
				}
				l.mustLeaveNothing()
				l.mustBeAsBefore(before, c.String(), "900")
				if t.Failed() {
					t.Fatalf("after %s", c)
				}
			}
			l.mustChangeNothing(l.imaged(images, guests))
			for _, call := range l.calls() {
				if !call.byHand() && call.mutating() && slices.Contains(call.Argv[2:], "900") {
					t.Errorf("somebody called %q", call.Argv)
				}
			}
		})
	}
}
