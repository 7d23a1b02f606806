package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/homeiac/homelab/cli/onhost"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/version"
)

// readiness says how daemons are waited for.
type readiness struct {
	// limit is how long a host may take to be online with what was installed.
	limit time.Duration
	// poll is how often is looked, and looks how often in a row it must be well: a
	// daemon that dies again a second after its start is not.
	poll  time.Duration
	looks int
	// release is how long a pause is tried to be ended: a controller may just be
	// starting.
	release time.Duration
}

var usualReadiness = readiness{limit: 60 * time.Second, poll: time.Second, looks: 3, release: 30 * time.Second}

// upgrade is the exchange of the package on hosts, one after the other.
type upgrade struct {
	a        *app
	ssh      sshFlags
	from     string            // where the package lies; empty is beside hlctl
	checksum string            // of the one that a person trusts
	names    []string          // of hosts; none is all
	target   map[string]string // SSH targets by host, where they are said
	oneWay   bool              // go on where there is no old package to go back to
	lower    bool              // install an earlier version than is there

	pkg   onhost.Package // its data is read when a host needs it
	hosts []*upgraded
	held  *hold
}

// upgraded is one host of it, and how it went.
type upgraded struct {
	name   string
	was    *homelabv1.HostStatus
	on     *onhost.Host // nil when it was not reached
	old    string       // the package to go back to; empty is none
	at     string       // IP:PORT of the controller on it that was asked; empty is none
	result string
	reason string
}

// How an upgrade ended for a host.
const (
	resultUpgraded  = "upgraded"
	resultUnchanged = "unchanged"
	resultSkipped   = "skipped"
	resultReverted  = "reverted"
	resultFailed    = "failed"
	resultUntouched = "untouched"
)

// upgradeDoc is one host of an upgrade in JSON.
type upgradeDoc struct {
	Name   string `json:"name"`
	From   string `json:"from"`
	To     string `json:"to"`
	Result string `json:"result"`
	Reason string `json:"reason"`
}

func (a *app) hostsUpgradeCommand() *cobra.Command {
	u := &upgrade{a: a}
	var ssh []string
	cmd := &cobra.Command{
		Use: "upgrade [HOST...]", Short: "Bring agents and controllers to hlctl's version",
		Long: `upgrade installs the package that belongs to this hlctl on the hosts named, else on
all: one after the other, hosts with a controller last. Guests and a qm at work live
on; configuration, keys and certificates stay.

All changes are paused meanwhile (hlctl status says so), so that no run begins; while
one is going on nothing is done. A host that is not online within a minute gets its
old package again, and no other is touched: exit code 1, with the last lines of the
journal. Ctrl-C ends it after the host that it is at.

The old package is the one that hosts add or upgrade left in /var/cache/homelab on
the host. Where there is none there is no way back: it asks first (--no-way-back).

HOST is its name in the Spec. It is reached as root at its agent's address, else where
--ssh says. A host that has the version already is left alone, and one that does not
answer is skipped.

Exit codes: 0 done or nothing to do, 1 failed, 3 partial: a host was skipped.`,
		Example: `  hlctl hosts upgrade
  hlctl hosts upgrade pve3
  hlctl hosts upgrade --from ~/Downloads --ssh pve1=root@pve1.lan`,
		RunE: func(cmd *cobra.Command, args []string) error {
			u.names = args
			var err error
			if u.target, err = targetsByHost(ssh, args); err != nil {
				return err
			}
			return u.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&u.from, "from", "", "folder with the package (default beside hlctl, then "+onhost.SharedPackages+")")
	f.StringVar(&u.checksum, "checksum", "", "SHA-256 of the package in --from that is trusted instead of hlctl's own")
	f.StringArrayVar(&ssh, "ssh", nil, "HOST=root@NAME[:PORT] where a host is reached over SSH")
	f.BoolVar(&u.oneWay, "no-way-back", false, "go on where there is no old package to go back to")
	f.BoolVar(&u.lower, "downgrade", false, "install an earlier version than is there")
	u.ssh.add(cmd)
	_ = cmd.MarkFlagDirname("from")
	return cmd
}

// targetsByHost reads --ssh. With one host its name may be left out.
func targetsByHost(said, hosts []string) (map[string]string, error) {
	targets := make(map[string]string)
	for _, text := range said {
		host, target, ok := strings.Cut(text, "=")
		switch {
		case ok:
		case len(hosts) == 1:
			host, target = hosts[0], text
		default:
			return nil, fmt.Errorf("--ssh %s: it is not said of which host; write HOST=%s", text, text)
		}
		if len(hosts) > 0 && !slices.Contains(hosts, host) {
			return nil, fmt.Errorf("--ssh %s: %s is not among the hosts that are to be upgraded", text, host)
		}
		targets[host] = target
	}
	return targets, nil
}

func (u *upgrade) run(ctx context.Context) error {
	wanted, err := onhost.Want(u.from, u.checksum)
	if err != nil {
		return err
	}
	u.pkg.Version = wanted.Version
	status, err := u.a.status(ctx, true, false)
	if err != nil {
		return err
	}
	if err := idle(status); err != nil {
		return fmt.Errorf("nothing was done: %w", err)
	}
	if err := u.choose(status); err != nil {
		return err
	}
	defer u.close()
	if err := u.look(ctx); err != nil {
		return err
	}
	if len(u.due()) > 0 {
		if u.pkg, err = wanted.Read(); err != nil {
			return err
		}
	}
	if err := u.mayGo(ctx); err != nil {
		return err
	}
	err = u.carryOut(ctx)
	if u.a.format != "table" {
		err = errors.Join(u.a.print(u.docs(), nil), err)
	}
	if err != nil {
		return err
	}
	return u.verdict()
}

// say tells a step to people.
func (u *upgrade) say(format string, args ...any) {
	if u.a.format == "table" {
		fmt.Fprintf(u.a.out, format+"\n", args...)
	}
}

// choose picks the hosts.
func (u *upgrade) choose(status *controllerv1.StatusResponse) error {
	var known []string
	for _, h := range status.GetHosts() {
		known = append(known, h.GetName())
		if len(u.names) > 0 && !slices.Contains(u.names, h.GetName()) {
			continue
		}
		host := &upgraded{name: h.GetName(), was: h, result: resultUntouched}
		if h.GetState() == homelabv1.HostState_HOST_STATE_DISABLED {
			host.result, host.reason = resultUnchanged, "the Spec disables it, and it could not be seen whether it is well afterwards"
		}
		u.hosts = append(u.hosts, host)
	}
	for _, name := range u.names {
		if !slices.Contains(known, name) {
			return rpc.Errorf(rpc.ErrNotFound, "no host %s is known (there are %s); see: hlctl hosts", name, strings.Join(known, ", "))
		}
	}
	for name := range u.target {
		if !slices.Contains(known, name) {
			return rpc.Errorf(rpc.ErrNotFound, "--ssh %s: no host of that name is known; see: hlctl hosts", name)
		}
	}
	if len(u.hosts) == 0 {
		return rpc.Errorf(rpc.ErrNotFound, "no host is known yet; begin with: hlctl hosts add root@HOST")
	}
	return nil
}

// look finds out what is on the hosts, and changes nothing. Hosts that do not answer
// are skipped; whom a host does not let in has to mend that first.
func (u *upgrade) look(ctx context.Context) error {
	controllers, err := u.a.everyController(ctx)
	if err != nil {
		return err
	}
	u.say("hlctl %s has package %s", version.String(), u.pkg.Version)
	for _, h := range u.hosts {
		if h.result != resultUntouched {
			continue
		}
		target, err := sshTarget(h.name, u.target[h.name], h.was)
		if err != nil {
			return err
		}
		h.on, err = u.a.lookAt(ctx, h.name, target, u.ssh)
		switch {
		case errors.Is(err, rpc.ErrUnavailable) && ctx.Err() == nil:
			h.result, h.reason = resultSkipped, err.Error()
			continue
		case err != nil:
			return fmt.Errorf("host %s: %w", h.name, err)
		}
		if err := u.plan(ctx, h, controllers); err != nil {
			return fmt.Errorf("host %s: %w", h.name, err)
		}
	}
	// Controllers last, so that a host which goes wrong is seen by one that is known to work.
	slices.SortStableFunc(u.hosts, func(a, b *upgraded) int {
		return b2i(a.hasController()) - b2i(b.hasController())
	})
	return nil
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (h *upgraded) hasController() bool { return h.on != nil && h.on.Controller != "" }

// plan decides what becomes of a host that answers.
func (u *upgrade) plan(ctx context.Context, h *upgraded, controllers []*answering) error {
	if h.on.Installed == "" {
		h.result, h.reason = resultSkipped, "the package is not installed on it; see: hlctl hosts add"
		return nil
	}
	if !slices.Contains(h.on.Services, onhost.AgentService) {
		h.result, h.reason = resultSkipped, "hl-agent neither runs on it nor is to at its boot; see: hlctl hosts add"
		return nil
	}
	runs, why := "agent "+h.was.GetVersion(), agentNotReady(h.was, h.was, h.on.Program)
	if h.on.Broken {
		why = "dpkg did not get to its end with it"
	}
	if h.on.Controller != "" {
		runs += ", controller " + h.on.Controller
		for _, c := range controllers {
			if c.name != h.on.Controller {
				continue
			}
			h.at = c.address
			runs += " " + c.version
			if c.version != h.on.Program && why == "" {
				why = fmt.Sprintf("controller %s says that it is version %s", c.name, c.version)
			}
		}
	}
	u.say("  %s: package %s, %s", h.name, h.on.Installed, runs)
	if h.on.Installed == u.pkg.Version {
		if why == "" {
			h.result = resultUnchanged
			return nil
		}
		u.say("    it has the package, but not to effect: %s", why)
		return nil
	}
	later, err := h.on.Later(ctx, h.on.Installed, u.pkg.Version)
	if err != nil {
		return err
	}
	if later && !u.lower {
		return rpc.Errorf(rpc.ErrRefused, "it has package %s, which is later than %s, that of hlctl %s: take the hlctl that belongs to it, or --downgrade",
			h.on.Installed, u.pkg.Version, version.String())
	}
	if ok, err := h.on.Keeps(ctx, h.on.Installed); err != nil || !ok {
		return err
	}
	h.old = onhost.KeptAt(h.on.Installed)
	return nil
}

// mayGo asks where there is no way back.
func (u *upgrade) mayGo(ctx context.Context) error {
	var without []string
	for _, h := range u.hosts {
		if h.result == resultUntouched && h.old == "" && h.on.Installed != u.pkg.Version {
			without = append(without, h.name)
		}
	}
	if len(without) == 0 || u.oneWay {
		return nil
	}
	text := fmt.Sprintf("on %s the package that is installed is not in %s, so there is no way back if the new one does not work", enumerate(without), onhost.PackageFolder)
	next := fmt.Sprintf("to have one: copy the package that is installed (homelab_VERSION_amd64.deb) to %s on the host; without: --no-way-back", onhost.PackageFolder)
	if !u.a.inIsTerm || u.a.format != "table" {
		return rpc.Errorf(rpc.ErrRefused, "nothing was done: %s\n  %s", text, next)
	}
	yes, err := u.a.yesNo(ctx, strings.ToUpper(text[:1])+text[1:]+".\n"+next+"\nGo on without? [y/N] ")
	if err == nil && !yes {
		err = errors.New("nothing was done: it was not confirmed")
	}
	return err
}

// carryOut upgrades the hosts that need it, under a pause.
func (u *upgrade) carryOut(ctx context.Context) (err error) {
	names := u.due()
	if len(names) == 0 {
		return nil
	}
	if u.held, err = u.a.hold(ctx, "upgrade of "+strings.Join(names, ", ")+" to "+u.pkg.Version); err != nil {
		return err
	}
	u.say("Paused: no run begins while hosts are upgraded.")
	defer func() { err = u.held.end(ctx, err) }()
	for _, h := range u.hosts {
		if h.result != resultUntouched {
			continue
		}
		err := ctx.Err()
		if err == nil {
			// A host that was begun is finished, whoever goes away.
			told := context.AfterFunc(ctx, func() { fmt.Fprintf(u.a.errw, "interrupted: %s is finished first\n", h.name) })
			err = u.one(context.WithoutCancel(ctx), h)
			told()
		}
		if err != nil {
			return u.stopped(err)
		}
	}
	return nil
}

// due are the hosts that are still to be upgraded.
func (u *upgrade) due() []string {
	var names []string
	for _, h := range u.hosts {
		if h.result == resultUntouched {
			names = append(names, h.name)
		}
	}
	return names
}

// stopped is why no further host is touched, and which those are.
func (u *upgrade) stopped(err error) error {
	text, left := err.Error(), u.due()
	if errors.Is(err, context.Canceled) {
		text = "interrupted"
	}
	if len(left) > 0 {
		text += "\n  not touched: " + strings.Join(left, ", ")
	}
	return &exitError{exitFailed, errors.New(text)}
}

// verdict sums up what was not stopped.
func (u *upgrade) verdict() error {
	count := make(map[string]int)
	for _, h := range u.hosts {
		count[h.result]++
		switch {
		case h.result == resultUnchanged && h.reason == "":
			u.say("%s has %s already.", h.name, u.pkg.Version)
		case h.result == resultUnchanged, h.result == resultSkipped:
			u.say("%s was left alone: %s", h.name, u.a.wrap(h.reason, 2))
		}
	}
	switch {
	case count[resultSkipped] == 0:
		return nil
	case count[resultUpgraded]+count[resultUnchanged] == 0:
		return &exitError{exitFailed, nil}
	}
	return &exitError{exitPartial, nil}
}

func (u *upgrade) docs() []upgradeDoc {
	docs := []upgradeDoc{}
	for _, h := range u.hosts {
		d := upgradeDoc{Name: h.name, Result: h.result, Reason: h.reason}
		if h.on != nil {
			d.From, d.To = h.on.Installed, h.on.Installed
		}
		if h.result == resultUpgraded {
			d.To = u.pkg.Version
		}
		docs = append(docs, d)
	}
	return docs
}

func (u *upgrade) close() {
	for _, h := range u.hosts {
		if h.on != nil {
			_ = h.on.Close()
		}
	}
}

// sshTarget is where a host is reached: as it was said, or at its agent's address.
func sshTarget(host, said string, was *homelabv1.HostStatus) (string, error) {
	if said != "" {
		return said, nil
	}
	address, _, err := net.SplitHostPort(was.GetAddress())
	if err != nil {
		return "", rpc.Errorf(rpc.ErrNotFound, "the address of %s is not known; say it with --ssh root@HOST", host)
	}
	return "root@" + address, nil
}
