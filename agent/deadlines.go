package agent

import (
	"time"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// Waits that the Spec can set, when it sets none.
const (
	defaultBoot      = 5 * time.Minute
	defaultCloudInit = 10 * time.Minute
	defaultJoin      = 10 * time.Minute
)

// slack is what a step may take beside its waits: connections, a last look,
// stopping a unit and reading its log.
const slack = 2 * time.Minute

// deadline is the longest that a step may take, the one table of it. A step runs
// without its caller's deadline, so this is what ends it when all else fails.
func deadline(req *agentv1.RunRequest) time.Duration {
	want := req.GetWant()
	switch req.GetStep().GetAction() {
	case homelabv1.Action_ACTION_FETCH:
		return 30 * 24 * time.Hour // there is no limit to what a line can take; a stall ends it
	case homelabv1.Action_ACTION_ROLLBACK:
		return 10 * time.Minute
	case homelabv1.Action_ACTION_CREATE, homelabv1.Action_ACTION_TEMPLATE:
		return time.Hour // copying the image onto a slow disk
	case homelabv1.Action_ACTION_SAVE:
		return time.Hour // a compressed image is unpacked to its end
	case homelabv1.Action_ACTION_START:
		return 10 * time.Minute
	case homelabv1.Action_ACTION_BOOT:
		return bootLimit(want) + cloudInitLimit(want) + slack
	case homelabv1.Action_ACTION_INIT, homelabv1.Action_ACTION_JOIN:
		return joinLimit(want) + 2*slack
	case homelabv1.Action_ACTION_VERIFY:
		return 10 * time.Minute
	case homelabv1.Action_ACTION_SNAPSHOT:
		return 15 * time.Minute // gigabytes at most, from a small VM's disk
	case homelabv1.Action_ACTION_DRAIN:
		return drainLimit + slack
	case homelabv1.Action_ACTION_STOP:
		return quietLimit + shutdownLimit + 2*slack
	case homelabv1.Action_ACTION_HALT, homelabv1.Action_ACTION_LEAVE:
		return 5 * time.Minute
	case homelabv1.Action_ACTION_CLEAN:
		return 10 * time.Minute
	case homelabv1.Action_ACTION_DETACH, homelabv1.Action_ACTION_ATTACH, homelabv1.Action_ACTION_DESTROY,
		homelabv1.Action_ACTION_PRUNE:
		return 15 * time.Minute // of waiting for locks: each is quick in itself
	case homelabv1.Action_ACTION_SOAK:
		return req.GetSoak().AsDuration() + slack
	case homelabv1.Action_ACTION_RESET, homelabv1.Action_ACTION_RESUME, homelabv1.Action_ACTION_ADOPT:
		return slack
	}
	return slack
}

func bootLimit(w *homelabv1.GuestWant) time.Duration {
	return orElse(w.GetBootTimeout().AsDuration(), defaultBoot)
}

func cloudInitLimit(w *homelabv1.GuestWant) time.Duration {
	return orElse(w.GetCloudInitTimeout().AsDuration(), defaultCloudInit)
}

func joinLimit(w *homelabv1.GuestWant) time.Duration {
	return orElse(w.GetJoinTimeout().AsDuration(), defaultJoin)
}

func orElse(d, otherwise time.Duration) time.Duration {
	if d <= 0 {
		return otherwise
	}
	return d
}
