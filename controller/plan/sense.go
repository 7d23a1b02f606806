package plan

import (
	"fmt"
	"strings"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// Ways in which SSH fails, as a look tells them.
const (
	sshRefused     = "refused"
	sshFiltered    = "filtered"
	sshUnreachable = "unreachable"
	sshTimeout     = "timeout"
	sshAuth        = "auth"
	sshHostKey     = "host key"
	sshMachine     = "machine"
)

// allSignals are those that tracking may carry on while nothing can be seen.
var allSignals = []Signal{
	SignalStopped, SignalPaused, SignalIOError, SignalInternalError, SignalPanicked, SignalSilent, SignalK3sDown, SignalNotReady,
	SignalSSHRefused, SignalWrongMachine, SignalCloudInit, SignalWrongAddress,
}

// sense is what speaks against a guest that has a VM, and for it, in the order
// of how much it says; blind are the signals of which nothing could be seen.
func (m *model) sense(g *guestView) (seen []Sighting, blind []Signal) {
	vm := g.vm
	if !yes(vm.GetReadable()) || g.want.Standby() {
		return nil, allSignals
	}
	tell := func(s Signal, format string, args ...any) {
		seen = append(seen, Sighting{Signal: s, Text: fmt.Sprintf(format, args...)})
	}
	switch vm.GetPower() {
	case homelabv1.Power_POWER_STOPPED:
		text, since := m.stopped(g)
		return []Sighting{{Signal: SignalStopped, Text: text, Since: since}}, nil
	case homelabv1.Power_POWER_PAUSED:
		tell(pausedSignal(vm), "%s", pausedText(vm))
		return seen, nil
	case homelabv1.Power_POWER_RUNNING:
	case homelabv1.Power_POWER_ABSENT, homelabv1.Power_POWER_UNSPECIFIED:
		if !yes(vm.GetProcess()) {
			return nil, allSignals
		}
	}
	look := g.look
	switch why := look.GetSshWhy(); {
	case yes(look.GetSsh()):
	case look.GetSsh() == nil || !no(look.GetSsh()):
		blind = append(blind, SignalSilent, SignalSSHRefused, SignalWrongMachine)
	case why == sshHostKey || why == sshMachine:
		tell(SignalWrongMachine, "another machine answers at its address%s", because(look.GetSsh()))
	case why == sshRefused || why == sshAuth:
		tell(SignalSSHRefused, "SSH is refused%s", because(look.GetSsh()))
	case !muteSSH(why):
	case no(vm.GetGuestAgent()):
		tell(SignalSilent, "guest agent and SSH are mute%s", because(look.GetSsh()))
	case !yes(vm.GetGuestAgent()):
		blind = append(blind, SignalSilent)
	}
	switch reason := look.GetBooted().GetReason(); {
	case yes(look.GetBooted()):
		tell(SignalWell, "booted")
	case no(look.GetBooted()) && strings.HasPrefix(reason, "cloud-init failed"):
		if tail := look.GetCloudInit().GetReason(); len(tail) > len(reason) {
			reason = "cloud-init failed: " + tail
		}
		tell(SignalCloudInit, "%s", reason)
	case no(look.GetBooted()) && (strings.HasPrefix(reason, "on network ") || strings.HasPrefix(reason, "its hostname is ")):
		tell(SignalWrongAddress, "%s", reason)
	case !no(look.GetBooted()):
		blind = append(blind, SignalCloudInit, SignalWrongAddress)
	}
	more, less := m.senseK3s(g)
	return append(seen, more...), append(blind, less...)
}

// senseK3s is what speaks against a member's k3s. With an API that is silent
// nothing is said of it.
func (m *model) senseK3s(g *guestView) (seen []Sighting, blind []Signal) {
	if !g.want.IsMember() || !g.mem.Joined {
		return nil, nil
	}
	if !yes(m.cluster.API) {
		return nil, []Signal{SignalK3sDown, SignalNotReady}
	}
	k := g.look.GetK3S()
	active := k.GetServerActive()
	if g.want.IsAgent() {
		active = k.GetAgentActive()
	}
	switch {
	case no(active):
		seen = append(seen, Sighting{Signal: SignalK3sDown, Text: "k3s does not run" + because(active)})
	case !yes(active):
		blind = append(blind, SignalK3sDown)
	}
	node := m.cluster.Node(g.want.NodeName())
	switch {
	case node == nil, yes(node.GetReady()):
	case no(node.GetReady()):
		seen = append(seen, Sighting{Signal: SignalNotReady, Text: "Node " + node.GetName() + " is not Ready" + because(node.GetReady())})
	default:
		blind = append(blind, SignalNotReady)
	}
	return seen, blind
}

// muteSSH says whether SSH failed in a way in which a machine that hangs fails:
// one that refuses, or speaks something else, lives.
func muteSSH(why string) bool {
	return why == sshFiltered || why == sshUnreachable || why == sshTimeout
}

// taskSlack is how inexact the times of Proxmox's tasks are, which are whole
// seconds of the host's clock.
const taskSlack = 3 * time.Second

// stopped says how a VM came to be stopped, and when, as far as that is known.
// A task from before it was last seen well did not stop it.
func (m *model) stopped(g *guestView) (text string, since time.Time) {
	t := g.vm.GetLastStop()
	since = g.host.told(t.GetEnded())
	if since.IsZero() || since.Before(g.mem.Began) || m.bootedSince(g, since.Add(taskSlack)) {
		return "stopped: its process ended, and no task of Proxmox did that", time.Time{}
	}
	return fmt.Sprintf("stopped: %s by %s", t.GetType(), t.GetUser()), since
}

func pausedSignal(vm *homelabv1.VirtualMachine) Signal {
	switch vm.GetQemuStatus() {
	case "io-error":
		return SignalIOError
	case "internal-error":
		return SignalInternalError
	case "guest-panicked":
		return SignalPanicked
	}
	return SignalPaused
}

func pausedText(vm *homelabv1.VirtualMachine) string {
	switch pausedSignal(vm) {
	case SignalIOError:
		return "paused by an I/O error of its disk"
	case SignalInternalError:
		return "QEMU met an internal error"
	case SignalPanicked:
		return "its kernel panicked"
	}
	if r := vm.GetPowerReason(); r != "" {
		return "paused: " + r
	}
	return "paused"
}
