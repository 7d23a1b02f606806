// Package proxmox is the driver for Proxmox VE: it makes, starts, stops and
// destroys VMs with qm, and sees them without it, in the files of /etc/pve and
// /run and through short connections to QEMU and the guest agent.
//
// Argument lists are built in package args and texts read in package parse, both
// pure; this package holds what touches the host. Proxmox's habits that it is
// built around: exit codes say little (a failed resize exits 0), so what counts is
// what is seen afterwards; a create that is killed leaves a lock and a volume;
// destroy frees every volume that the configuration names; locks are busy for ten
// seconds and then an error; an empty /etc/pve means that pmxcfs is down, not that
// there are no VMs. Of k3s, plans, bridges and images it knows nothing.
package proxmox

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
)

// Config says where the host is.
type Config struct {
	// Root is the folder under which all the host's paths lie; "/" on a real host.
	Root string
	// Proc is where processes are looked for; "/proc".
	Proc string
	// State is the driver's own folder, for the outputs of the programs it runs. It
	// is made when needed, and must outlive the process.
	State string
	// Log takes one line for every program run.
	Log *slog.Logger
}

// Driver is the Proxmox VE driver of one host.
type Driver struct {
	root, proc, state string
	log               *slog.Logger

	configs    *cache[*parse.Config]
	containers *cache[parse.Container]
	ended      *cache[[]parse.EndedTask]

	mu       sync.Mutex
	turns    map[int32]chan struct{} // one changing call per VMID
	working  map[int32]*work         // programs that a call left behind
	probes   map[int32]probe         // what a VM's sockets said last
	looking  time.Time               // when the observation began that runs; zero is none
	leftover leftovers
	swept    sync.Once
	seq      int64

	execWait time.Duration // execWait of a new driver; tests shorten it

	ending chan struct{} // closed by End
	end    sync.Once
}

var _ driver.Full = (*Driver)(nil)

// How long things may take.
const (
	// defaultDeadline bounds a changing call that names none.
	defaultDeadline = 5 * time.Minute
	// socketLimit bounds one short conversation with QEMU or the guest agent.
	socketLimit = 300 * time.Millisecond
	// probeAge is how old an answer of theirs may be in an observation.
	probeAge = 10 * time.Second
	// lookAgain is the pause between two looks while waiting.
	lookAgain = 200 * time.Millisecond
	// tellAgain is the pause between two words about the same wait.
	tellAgain = 5 * time.Second
	// tellProgress is the least time between two words about a copy.
	tellProgress = 500 * time.Millisecond
)

// New makes the driver; it touches nothing.
func New(c Config) *Driver {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Root == "" {
		c.Root = "/"
	}
	if c.Proc == "" {
		c.Proc = "/proc"
	}
	return &Driver{
		root: c.Root, proc: c.Proc, state: c.State, log: c.Log,
		configs:    newCache(parse.VM),
		containers: newCache(parse.LXC),
		ended:      newCache(parse.EndedTasks),
		turns:      map[int32]chan struct{}{},
		working:    map[int32]*work{},
		probes:     map[int32]probe{},
		execWait:   execWait,
		ending:     make(chan struct{}),
	}
}

// errEnding is why a call that waits ends when its agent is to end.
var errEnding = errors.New("the agent is ending")

// End begins the end of the driver: no more programs are begun, and calls that wait
// end, but for those whose program runs. Repeating it does nothing.
func (d *Driver) End() { d.end.Do(func() { close(d.ending) }) }

// unlessEnding gives a context that End ends too, with errEnding as its cause.
func (d *Driver) unlessEnding(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-d.ending:
			cancel(errEnding)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// host is a path of the host, where this process finds it.
func (d *Driver) host(elem ...string) string {
	return filepath.Join(append([]string{d.root}, elem...)...)
}

// pve is a path under /etc/pve.
func (d *Driver) pve(elem ...string) string {
	return filepath.Join(append([]string{d.root, "etc/pve"}, elem...)...)
}

// run is a VM's file in /run/qemu-server.
func (d *Driver) run(vmid int32, what string) string {
	return d.host("run/qemu-server", strconv.Itoa(int(vmid))+"."+what)
}
