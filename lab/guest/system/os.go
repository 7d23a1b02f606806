package system

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/homeiac/homelab/lab/guest/shell"
	"github.com/homeiac/homelab/lab/guest/tree"
)

// OS is one running guest OS, from power-on to its end.
type OS struct {
	m       Machine
	tree    *tree.Tree
	Shell   *shell.Shell
	journal *journal
	units   *units
	booted  time.Time
	wire    *wire

	mu       sync.Mutex
	hostname string
	ifaces   []iface
	agentUp  bool
	ci       ciStatus
	ciDone   chan struct{} // closed when cloud-init has ended
	end      Reason
	shut     context.CancelFunc // ends the boot
	downOnce sync.Once
}

// iface is a configured network interface.
type iface struct {
	name  string
	mac   string
	addrs []netip.Prefix
	net   netip.Prefix // what the wire leads to
}

// New opens the machine's disk; nothing runs yet. Programs adds what is
// simulated elsewhere (k3s) to the shell.
func New(m Machine, programs func(*OS)) (*OS, error) {
	t, err := tree.Open(m.Tree)
	if err != nil {
		return nil, err
	}
	o := &OS{m: m, tree: t, Shell: shell.New(t), wire: newWire(), ciDone: make(chan struct{}), hostname: "ubuntu"}
	o.addCommands()
	if programs != nil {
		programs(o)
	}
	if err := o.firstBoot(); err != nil {
		return nil, errors.Join(fmt.Errorf("guest image: %w", err), t.Close())
	}
	return o, nil
}

// Machine is what the OS runs on.
func (o *OS) Machine() Machine { return o.m }

// Settings are the lab's.
func (o *OS) Settings() Settings { return o.m.Settings }

// FS is the tree as root sees it.
func (o *OS) FS() *tree.View { return o.tree.Super() }

// Tree is the whole tree.
func (o *OS) Tree() *tree.Tree { return o.tree }

// Console notes a kernel message.
func (o *OS) Console(text string) { o.journal.add("", "kernel", 0, text) }

// Run boots the guest and returns when it has stopped: by itself, or because
// ctx, its power, ended. The OS cannot be run again.
func (o *OS) Run(ctx context.Context) (Reason, error) {
	defer o.tree.Close()
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return Killed, err
	}
	var err error
	if o.journal, err = openJournal(o.FS(), hex.EncodeToString(id)); err != nil {
		return Killed, fmt.Errorf("guest journal: %w", err)
	}
	defer o.journal.close()
	run, shut := context.WithCancel(ctx)
	defer shut()
	o.mu.Lock()
	o.shut, o.booted, o.end = shut, time.Now(), Killed
	o.mu.Unlock()
	uctx, ucancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer ucancel(shell.Killed(9))
	o.units = newUnits(uctx, o)

	var wg sync.WaitGroup
	o.readWire()
	wg.Go(func() { o.watchWire(run) })
	wg.Go(func() { o.boot(run) })
	<-run.Done()
	o.mu.Lock()
	reason := o.end
	o.mu.Unlock()
	if ctx.Err() == nil {
		// A clean shutdown stops the services first.
		start := time.Now()
		sctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		o.units.stopAll(sctx)
		cancel()
		o.wait(ctx, "shutdown", ms(o.m.Settings.ShutdownMs), start)
	}
	ucancel(shell.Killed(9))
	o.units.settle()
	wg.Wait()
	if ctx.Err() != nil {
		reason = Killed
	}
	return reason, nil
}

// Shutdown begins an orderly end; the first call decides which.
func (o *OS) Shutdown(r Reason) {
	o.downOnce.Do(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.end = r
		if o.shut != nil {
			o.shut()
		}
	})
}

// wait takes simulated time, counted from start, and logs it.
func (o *OS) wait(ctx context.Context, what string, d time.Duration, start time.Time) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(time.Until(start.Add(d)))
	defer t.Stop()
	select {
	case <-t.C:
		o.LogWait(what, start)
	case <-ctx.Done():
	}
}

// Wait takes simulated time that ends early with ctx, and logs it.
func (o *OS) Wait(ctx context.Context, what string, d time.Duration) {
	o.wait(ctx, what, d, time.Now())
}

// boot is what init does.
func (o *OS) boot(ctx context.Context) {
	o.Console("Linux version " + kernelRelease + " (lab)")
	o.wait(ctx, "boot", ms(o.m.Settings.BootMs), time.Now())
	if ctx.Err() != nil {
		return
	}
	if err := o.writeProc(); err != nil {
		o.Console("proc: " + err.Error())
	}
	o.restoreHostname()
	ci := o.cloudInit()
	if err := o.network(ctx, ci.network()); err != nil {
		ci.fail("init-local", err)
	}
	ci.init(ctx)
	if ctx.Err() != nil {
		return
	}
	for _, u := range o.units.wanted() {
		go func() { _ = o.units.start(ctx, u) }() // its failure is in the journal
	}
	for _, u := range []string{"ssh.service", "qemu-guest-agent.service"} {
		if _, err := findUnit(o.FS(), u); err == nil {
			go func() { _ = o.units.start(ctx, u) }()
		}
	}
	ci.final(ctx)
	close(o.ciDone)
}

// Hostname is the kernel's.
func (o *OS) Hostname() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.hostname
}

// SetHostname sets it and, when static, /etc/hostname.
func (o *OS) SetHostname(name string, static bool) error {
	o.mu.Lock()
	o.hostname = name
	o.mu.Unlock()
	if err := o.FS().Put("/proc/sys/kernel/hostname", []byte(name+"\n"), 0o644); err != nil {
		return err
	}
	if !static {
		return nil
	}
	return o.FS().Put("/etc/hostname", []byte(name+"\n"), 0o644)
}

func (o *OS) restoreHostname() {
	if b, err := o.FS().ReadFile("/etc/hostname"); err == nil && strings.TrimSpace(string(b)) != "" {
		if err := o.SetHostname(strings.TrimSpace(string(b)), false); err != nil {
			o.Console("hostname: " + err.Error())
		}
	}
}

// Addresses are the guest's that others in the lab can reach.
func (o *OS) Addresses() []netip.Addr {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []netip.Addr
	for _, i := range o.ifaces {
		for _, a := range i.addrs {
			if i.net.IsValid() && i.net.Contains(a.Addr()) && o.inLab(a.Addr()) {
				out = append(out, a.Addr())
			}
		}
	}
	return out
}

// inLab says whether an address leads to nobody outside of the lab.
func (o *OS) inLab(a netip.Addr) bool { return o.m.OwnHost || a.IsLoopback() }

// Address is the first of Addresses, as text; "" when there is none.
func (o *OS) Address() string {
	if a := o.Addresses(); len(a) > 0 {
		return a[0].String()
	}
	return ""
}

// errUnreachable is what connecting out of the lab gives.
var errUnreachable = errors.New("connect: network is unreachable")

// Dial connects from inside the guest. The guest's own loopback is its address,
// since all guests share the machine's real one; whatever is not in one of the
// guest's networks is unreachable.
func (o *OS) Dial(ctx context.Context, host string, port int) (net.Conn, error) {
	own := o.Address()
	switch host {
	case "localhost", "127.0.0.1", "::1", "0.0.0.0":
		if own == "" {
			return nil, errors.New("connect: connection refused")
		}
		host = own
	default:
		a, err := netip.ParseAddr(host)
		if err != nil {
			return nil, fmt.Errorf("lookup %s: no such host", host)
		}
		ok := false
		o.mu.Lock()
		for _, i := range o.ifaces {
			ok = ok || i.net.IsValid() && len(i.addrs) > 0 && i.net.Contains(a)
		}
		o.mu.Unlock()
		if !ok || !o.inLab(a) {
			return nil, errUnreachable
		}
	}
	d := net.Dialer{Timeout: 30 * time.Second} // as kubectl and most others have it
	return d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
}

// Listen opens a port on the guest's address.
func (o *OS) Listen(ctx context.Context, port int) (net.Listener, error) {
	own := o.Address()
	if own == "" {
		return nil, errors.New("listen: the guest has no address")
	}
	return o.gate(ctx, net.JoinHostPort(own, strconv.Itoa(port)), port)
}

// AgentUp tells whether the guest agent runs.
func (o *OS) AgentUp() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.agentUp
}

func (o *OS) setAgent(up bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.agentUp = up
}
