package controller

import (
	"fmt"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// verbs are the actions as people read them; %s is the guest.
var verbs = map[homelabv1.Action]string{
	homelabv1.Action_ACTION_FETCH:    "fetch %s",
	homelabv1.Action_ACTION_ROLLBACK: "undo the half-built %s",
	homelabv1.Action_ACTION_CREATE:   "create %s",
	homelabv1.Action_ACTION_START:    "start %s",
	homelabv1.Action_ACTION_BOOT:     "boot %s",
	homelabv1.Action_ACTION_INIT:     "start the cluster on %s",
	homelabv1.Action_ACTION_JOIN:     "join %s",
	homelabv1.Action_ACTION_VERIFY:   "verify %s",
	homelabv1.Action_ACTION_SAVE:     "save the configuration of %s",
	homelabv1.Action_ACTION_SNAPSHOT: "take an etcd snapshot before %s changes,",
	homelabv1.Action_ACTION_DRAIN:    "drain %s",
	homelabv1.Action_ACTION_HALT:     "stop k3s in %s",
	homelabv1.Action_ACTION_STOP:     "stop %s",
	homelabv1.Action_ACTION_LEAVE:    "take %s out of the cluster",
	homelabv1.Action_ACTION_CLEAN:    "remove k3s from %s",
	homelabv1.Action_ACTION_DETACH:   "move the data disks of %s to its holder",
	homelabv1.Action_ACTION_DESTROY:  "destroy %s",
	homelabv1.Action_ACTION_ATTACH:   "move the data disks of %s back",
	homelabv1.Action_ACTION_RESET:    "reset %s",
	homelabv1.Action_ACTION_RESUME:   "resume %s",
	homelabv1.Action_ACTION_SOAK:     "watch %s stay well",
	homelabv1.Action_ACTION_ADOPT:    "adopt %s",
	homelabv1.Action_ACTION_TEMPLATE: "make a template of %s",
	homelabv1.Action_ACTION_PRUNE:    "remove %s",
}

// phases are the actions while they go on.
var phases = map[homelabv1.Action]string{
	homelabv1.Action_ACTION_FETCH:    "fetching",
	homelabv1.Action_ACTION_ROLLBACK: "undoing",
	homelabv1.Action_ACTION_CREATE:   "creating",
	homelabv1.Action_ACTION_START:    "starting",
	homelabv1.Action_ACTION_BOOT:     "booting",
	homelabv1.Action_ACTION_INIT:     "joining",
	homelabv1.Action_ACTION_JOIN:     "joining",
	homelabv1.Action_ACTION_VERIFY:   "verifying",
	homelabv1.Action_ACTION_SAVE:     "saving",
	homelabv1.Action_ACTION_SNAPSHOT: "taking a snapshot",
	homelabv1.Action_ACTION_DRAIN:    "draining",
	homelabv1.Action_ACTION_HALT:     "stopping k3s",
	homelabv1.Action_ACTION_STOP:     "stopping",
	homelabv1.Action_ACTION_LEAVE:    "leaving",
	homelabv1.Action_ACTION_CLEAN:    "cleaning",
	homelabv1.Action_ACTION_DETACH:   "moving disks",
	homelabv1.Action_ACTION_DESTROY:  "destroying",
	homelabv1.Action_ACTION_ATTACH:   "moving disks",
	homelabv1.Action_ACTION_RESET:    "resetting",
	homelabv1.Action_ACTION_RESUME:   "resuming",
	homelabv1.Action_ACTION_SOAK:     "soaking",
	homelabv1.Action_ACTION_ADOPT:    "adopting",
	homelabv1.Action_ACTION_TEMPLATE: "making a template",
	homelabv1.Action_ACTION_PRUNE:    "removing",
}

// sentence names a step for people: create k3s-2 on pve2.
func sentence(s *homelabv1.Step) string {
	what := s.GetGuest()
	switch {
	case s.GetAction() == homelabv1.Action_ACTION_PRUNE && s.GetVmid() != 0:
		what = fmt.Sprintf("template %d of image %s", s.GetVmid(), s.GetImage())
	case s.GetAction() == homelabv1.Action_ACTION_FETCH, s.GetAction() == homelabv1.Action_ACTION_TEMPLATE, s.GetAction() == homelabv1.Action_ACTION_PRUNE:
		what = "image " + s.GetImage()
	case s.GetAction() == homelabv1.Action_ACTION_SNAPSHOT && (what == "" || what == s.GetThrough()):
		return fmt.Sprintf("take an etcd snapshot through %s on %s", s.GetThrough(), s.GetHost())
	}
	text := fmt.Sprintf(verbs[s.GetAction()], what)
	if s.GetThrough() != "" {
		text += " through " + s.GetThrough()
	}
	return text + " on " + s.GetHost()
}
