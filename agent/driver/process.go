package driver

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	plugin "github.com/hashicorp/go-plugin"

	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
)

// Pauses before a relaunch: the first after a good while, doubled to the last.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
	// goodWhile is how long a driver must have run to be launched again at once.
	goodWhile = 10 * time.Second
	// launchLimit bounds a launch, until the plugin has said where it listens.
	launchLimit = 20 * time.Second
)

// Config says how a driver is started.
type Config struct {
	// Command is the program and its arguments (hl-agent driver proxmox --root /).
	Command []string
	// Sockets is a folder of the agent's own for the plugin's socket, emptied at
	// each launch; a temporary one when it is empty or its path too long.
	Sockets string
	// Log takes the driver's lines and the supervision's.
	Log *slog.Logger
}

// Process is a Driver in a process of its own, supervised: relaunched when it
// ends. While it is down every call is Unavailable, and so is one in flight when
// it dies. Run must be called once for it to be up at all.
type Process struct {
	config Config

	mu      sync.Mutex
	current *client       // nil while it is down
	down    string        // why it is down
	changed chan struct{} // closed and made anew at every change of current
	pid     int           // of the driver that runs; 0 while it is down

	ending chan struct{} // closed by End
	end    sync.Once
}

var _ Driver = (*Process)(nil)

// New makes the supervision; it starts nothing.
func New(c Config) *Process {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Process{config: c, down: "not started yet", changed: make(chan struct{}), ending: make(chan struct{})}
}

// Run launches the driver and relaunches it whenever it ends, until ctx ends; then
// it ends the driver and returns nil. Programs that the driver started live on.
func (p *Process) Run(ctx context.Context) error {
	wait := firstPause
	for ctx.Err() == nil && !p.ended() {
		wait = p.round(ctx, wait)
	}
	p.set(nil, 0, "the agent is ending")
	return nil
}

// End asks the driver, by SIGTERM, to come to an end: to begin no more programs and
// to wait for nothing but those that run. It is up until Run's context ends, so that
// the calls at work can tell how they ended; one that dies instead is not launched
// again.
func (p *Process) End() { p.end.Do(func() { close(p.ending) }) }

func (p *Process) ended() bool {
	select {
	case <-p.ending:
		return true
	default:
		return false
	}
}

// round runs the driver once and waits after its end; it gives the next wait.
func (p *Process) round(ctx context.Context, wait time.Duration) (next time.Duration) {
	began := time.Now()
	err := p.once(ctx)
	if ctx.Err() != nil {
		return wait
	}
	if time.Since(began) >= goodWhile {
		wait = firstPause
	}
	p.set(nil, 0, err.Error())
	if p.ended() {
		return wait
	}
	p.config.Log.Error("driver is down", "error", err, "relaunch_in", wait)
	pause.For(ctx, wait)
	return min(2*wait, lastPause)
}

// once launches the driver and waits for its end; it always gives an error.
func (p *Process) once(ctx context.Context) error {
	if len(p.config.Command) == 0 {
		return rpc.Errorf(rpc.ErrInvalid, "no command for the driver")
	}
	theirs, ours, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("lifeline: %w", err)
	}
	defer ours.Close()
	defer theirs.Close()
	// A driver that is killed leaves its socket behind.
	sockets, err := p.socketFolder()
	if err != nil {
		return fmt.Errorf("folder for the driver's socket: %w", err)
	}
	defer os.RemoveAll(sockets)
	cmd := exec.Command(p.config.Command[0], p.config.Command[1:]...)
	cmd.ExtraFiles = []*os.File{theirs} // descriptor 3: lifeline
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", plugin.EnvUnixSocketDir + "=" + sockets, lifelineVar + "=1"}
	if home, ok := os.LookupEnv("HOME"); ok {
		cmd.Env = append(cmd.Env, "HOME="+home)
	}
	// A Ctrl-C meant for the agent is not the driver's.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	launched := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  handshake,
		Plugins:          plugin.PluginSet{pluginName: &grpcPlugin{}},
		Cmd:              cmd,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		AutoMTLS:         true,
		SkipHostEnv:      true,
		StartTimeout:     launchLimit,
		Logger:           bridged(p.config.Log),
	})
	defer launched.Kill()
	protocol, err := launched.Client()
	if err != nil {
		return fmt.Errorf("launch %s: %s", strings.Join(p.config.Command, " "), firstLine(err.Error()))
	}
	raw, err := protocol.Dispense(pluginName)
	if err != nil {
		return fmt.Errorf("launch %s: %w", strings.Join(p.config.Command, " "), err)
	}
	c := raw.(*client)
	p.set(c, cmd.Process.Pid, "")
	p.config.Log.Info("driver is up", "pid", cmd.Process.Pid)
	for ending := p.ending; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.gone.Done():
			return fmt.Errorf("process %d ended", cmd.Process.Pid)
		case <-ending:
			ending = nil
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				return fmt.Errorf("end process %d: %w", cmd.Process.Pid, err)
			}
		}
	}
}

func (p *Process) set(c *client, pid int, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current, p.pid, p.down = c, pid, why
	close(p.changed)
	p.changed = make(chan struct{})
}

// PID is the process id of the driver that runs; 0 while it is down.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// WaitUp waits until the driver is up. When ctx ends first it says why it is down.
func (p *Process) WaitUp(ctx context.Context) error {
	for {
		p.mu.Lock()
		up, changed := p.current != nil, p.changed
		p.mu.Unlock()
		if up {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			_, err := p.up()
			return err
		}
	}
}

// up gives the driver that runs.
func (p *Process) up() (*client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil || p.current.gone.Err() != nil {
		why := p.down
		if why == "" {
			why = "its process ended"
		}
		return nil, rpc.Errorf(rpc.ErrUnavailable, "the driver is down (%s); it is being relaunched", why)
	}
	return p.current, nil
}

// longestFolder keeps a socket's path, of which go-plugin adds about 20, below the
// 107 characters that it may have.
const longestFolder = 70

// socketFolder makes the folder for the plugin's socket. The agent's own is
// emptied: what lies there is a dead plugin's.
func (p *Process) socketFolder() (string, error) {
	if dir := p.config.Sockets; dir != "" && len(dir) <= longestFolder {
		if err := os.RemoveAll(dir); err != nil {
			return "", err
		}
		return dir, os.MkdirAll(dir, 0o700)
	}
	temp := os.TempDir()
	if len(temp) > longestFolder-len("/hl-driver0123456789") {
		temp = "/tmp"
	}
	return os.MkdirTemp(temp, "hl-driver")
}

// firstLine keeps go-plugin's page of advice out of the log.
func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}
