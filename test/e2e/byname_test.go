//go:build e2e

package e2e

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// byName is an operation of hlctl by the name of a guest, as guests recreate
// k3s-2, confirmed with --yes.
func (l *lab) byName(args ...string) applied {
	l.t.Helper()
	return l.startRun(l.config, nil, args...).wait()
}

// mustDo is byName that must end with exit.
func (l *lab) mustDo(exit int, args ...string) applied {
	l.t.Helper()
	a := l.byName(args...)
	if a.exit != exit {
		l.t.Fatalf("hlctl %s: exit %d expected\n%s", strings.Join(args, " "), exit, a)
	}
	return a
}

// told is all that an apply told: notes, waits, failures and reasons of its steps.
func (a applied) told() string {
	var b strings.Builder
	for _, e := range a.events {
		if e.Text != "" {
			fmt.Fprintf(&b, "%s %s\n", e.Guest, e.Text)
		}
	}
	return b.String() + a.stderr
}

// mustTell wants an apply to have told each of the words.
func (l *lab) mustTell(a applied, words ...string) {
	l.t.Helper()
	text := a.told()
	for _, w := range words {
		if !strings.Contains(text, w) {
			l.t.Errorf("it does not say %q: %s\n%s", w, text, a)
		}
	}
}

// mustTouchNothing wants an apply to have begun no step and changed nothing.
func (l *lab) mustTouchNothing(a applied) {
	l.t.Helper()
	if steps := a.steps(); len(steps) > 0 {
		l.t.Errorf("steps %q were begun\n%s", steps, a)
	}
	if a.summary != nil && a.summary.MutatingCalls != 0 {
		l.t.Errorf("%d calls changed something\n%s", a.summary.MutatingCalls, a)
	}
}

// hasty is a Spec in which evidence ripens soon, with further changes.
func (l *lab) hasty(spec string, changes ...func(doc)) string {
	l.t.Helper()
	return l.edited(spec, func(d doc) {
		at(d, "defaults")["timeouts"] = doc{"boot": "30s", "cloudInit": "30s", "join": "1m", "unwellAfter": "2s", "soak": "1s"}
		for _, change := range changes {
			change(d)
		}
	})
}

// keepsake is what lies of some VMs on all hosts: their configurations and what is
// written of their volumes, by what it is.
type keepsake map[string]string

// keep looks at the VMs with the given VMIDs.
func (l *lab) keep(vmids ...string) keepsake {
	l.t.Helper()
	k := keepsake{}
	for _, c := range l.confs() {
		if slices.Contains(vmids, c.vmid) {
			k["configuration "+c.host+"/"+c.vmid] = c.text
		}
	}
	for _, vmid := range vmids {
		for _, pattern := range []string{
			"var/lib/vz/images/" + vmid + "/*", "dev/zvol/rpool/data/*-" + vmid + "-*", "dev/pve/*-" + vmid + "-*",
		} {
			files, err := filepath.Glob(l.path("hosts/*/root", pattern))
			if err != nil {
				l.t.Fatal(err)
			}
			for _, file := range files {
				info, err := os.Stat(file)
				if err != nil {
					l.t.Fatal(err)
				}
				if info.IsDir() {
					continue // a guest's files, which live
				}
				data, err := written(file)
				if err != nil {
					l.t.Fatal(err)
				}
				k["volume "+strings.TrimPrefix(file, l.path("hosts"))] = fmt.Sprintf("%d bytes, %x", info.Size(), sha256.Sum256(data))
			}
		}
	}
	if len(k) == 0 {
		l.t.Fatalf("there is nothing of VMs %q", vmids)
	}
	return k
}

// mustBeAsBefore wants all that was kept to be there as it was, byte for byte, and
// nothing more.
func (l *lab) mustBeAsBefore(before keepsake, after string, vmids ...string) {
	l.t.Helper()
	now := l.keep(vmids...)
	for what, was := range before {
		if is, ok := now[what]; !ok {
			l.t.Errorf("%s: %s is gone", after, what)
		} else if is != was {
			l.t.Errorf("%s: %s was changed.\nbefore:\n%s\nnow:\n%s", after, what, was, is)
		}
	}
	for what := range now {
		if _, ok := before[what]; !ok {
			l.t.Errorf("%s: there is %s now", after, what)
		}
	}
}

// mustBeConfiguredAs wants the configuration of one VM, HOST/VMID, to be as it was;
// the disks of one that runs change.
func (l *lab) mustBeConfiguredAs(before keepsake, vm string) {
	l.t.Helper()
	_, vmid, _ := strings.Cut(vm, "/")
	if was, is := before["configuration "+vm], l.keep(vmid)["configuration "+vm]; is != was {
		l.t.Errorf("VM %s was changed.\nbefore:\n%s\nnow:\n%s", vm, was, is)
	}
}

// awaitHealthy waits until exactly the guests named are healthy.
func (l *lab) awaitHealthy(limit time.Duration, names ...string) {
	l.t.Helper()
	l.eventually(limit, strings.Join(names, ", ")+" healthy", func() (bool, string) {
		guests, story := l.guests(), ""
		for _, name := range names {
			if g := guests[name]; g.Health != "healthy" {
				story += fmt.Sprintf("%+v\n", g)
			}
		}
		return story == "", story
	})
}

// awaitHealth waits until a guest is shown in one state of health, and gives it.
func (l *lab) awaitHealth(limit time.Duration, name, health string) guestDoc {
	l.t.Helper()
	var g guestDoc
	l.eventually(limit, name+" "+health, func() (bool, string) {
		g = l.guests()[name]
		return g.Health == health, fmt.Sprintf("%+v", g)
	})
	return g
}

// why is the story of a guest, one entry a line.
func (l *lab) why(guest string) string {
	l.t.Helper()
	type entry struct {
		Kind string `json:"kind"`
		Text string `json:"text"`
	}
	var b strings.Builder
	for _, e := range decode[[]entry](l, 0, l.hlctl("why", guest, "-o", "json")) {
		fmt.Fprintf(&b, "%s: %s\n", e.Kind, strings.ReplaceAll(e.Text, "\n", " | "))
	}
	return b.String()
}

// uidOf is the uid of a Node, asked through a server.
func (l *lab) uidOf(server, node string) string {
	l.t.Helper()
	n := decode[struct {
		Metadata struct {
			UID string `json:"uid"`
		} `json:"metadata"`
	}](l, 0, l.hlctl("exec", server, "--", "sudo", "k3s", "kubectl", "get", "node", node, "-o", "json"))
	if n.Metadata.UID == "" {
		l.t.Fatalf("Node %s has no uid", node)
	}
	return n.Metadata.UID
}
