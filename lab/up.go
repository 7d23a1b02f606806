package lab

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// Up makes a lab in o.Dir, or starts what is not running of the one there and
// adds hosts when o asks for more. It returns when every host's agent answers
// and the controllers know it.
func Up(ctx context.Context, o Options) (*Lab, error) {
	l, err := prepare(o)
	if err != nil {
		return nil, err
	}
	if err := l.lay(time.Now()); err != nil {
		return nil, fmt.Errorf("lay out the lab in %s: %w", l.Dir, err)
	}
	if err := l.start(); err != nil {
		return nil, err
	}
	settle := o.Settle
	if settle == 0 {
		settle = 30 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	return l, l.awaitReady(ctx)
}

// prepare merges the options with what the folder remembers.
func prepare(o Options) (*Lab, error) {
	l, err := Open(o.Dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if l, err = fresh(o); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	}
	if o.Bin != "" {
		if l.bin, err = filepath.Abs(o.Bin); err != nil {
			return nil, err
		}
	}
	switch {
	case o.Hosts < 0 || o.Hosts > maxHosts:
		return nil, fmt.Errorf("--hosts %d: a lab has 1 to %d", o.Hosts, maxHosts)
	case o.Controllers < 0 || o.Controllers > maxControllers:
		return nil, fmt.Errorf("--controllers %d: a lab has 1 to %d", o.Controllers, maxControllers)
	case o.Hosts != 0 && o.Hosts < l.Hosts:
		return nil, fmt.Errorf("the lab in %s has %d hosts; it can grow, not shrink", o.Dir, l.Hosts)
	case o.Controllers != 0 && l.Controllers != 0 && o.Controllers != l.Controllers:
		return nil, fmt.Errorf("the lab in %s has %d controllers, which cannot be changed", o.Dir, l.Controllers)
	}
	set(&l.Hosts, o.Hosts, 5)
	set(&l.Controllers, o.Controllers, 1)
	set(&l.LearnerTickMs, int(o.LearnerTick.Milliseconds()), 15000)
	set(&l.BootMs, int(o.Boot.Milliseconds()), 300)
	set(&l.CloudInitMs, int(o.CloudInit.Milliseconds()), 500)
	set(&l.NodeGraceMs, int(o.NodeGrace.Milliseconds()), 0)
	set(&l.AgentOutputBytes, o.AgentOutput, 0)
	switch o.QMCost {
	case "real", "none":
		l.QMCost = o.QMCost
	case "":
		if l.QMCost == "" {
			l.QMCost = "none"
		}
	default:
		return nil, fmt.Errorf("--qm-cost %q: real or none", o.QMCost)
	}
	return l, l.save()
}

// set gives a setting its new value, or its default when it has none yet.
func set(have *int, want, byDefault int) {
	if want != 0 {
		*have = want
	} else if *have == 0 {
		*have = byDefault
	}
}

// fresh makes a lab that is not there yet.
func fresh(o Options) (*Lab, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	if len(dir) > longestDir {
		return nil, fmt.Errorf("the path %s is too long for a lab: the sockets of its guests must stay below 108 characters; use a folder of at most %d characters", dir, longestDir)
	}
	if strings.ContainsAny(dir, " \"'\n:{}[],#&*") {
		return nil, fmt.Errorf("the path %s holds characters that a lab's files cannot; choose another folder", dir)
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("%s is not empty and no lab; choose another folder", dir)
	}
	switch o.PVE {
	case "", "cluster", "standalone":
	default:
		return nil, fmt.Errorf("--pve %q: cluster or standalone", o.PVE)
	}
	bin, err := ownFolder()
	if err != nil {
		return nil, err
	}
	prefix, err := freeNet(dir)
	if err != nil {
		return nil, err
	}
	return &Lab{Dir: dir, bin: bin, Config: Config{
		Fleet: fleetName, Net: prefix, Subnet: prefix + ".0/24",
		Cluster: o.PVE != "standalone", SSHPort: guestSSHPort, K3sVersion: k3sVersion,
	}}, nil
}

// freeNet finds 127.X.Y. that no other lab uses. Which one depends on the
// folder, so that labs started at the same moment do not try the same.
func freeNet(dir string) (string, error) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(dir))
	seed := h.Sum32()
	for i := range uint32(2000) {
		n := seed + i*7919
		prefix := fmt.Sprintf("127.%d.%d", 1+n%254, (n>>8)%256)
		if portFree(prefix+".1", agentPort) && portFree(prefix+".201", controllerPort) {
			return prefix, nil
		}
	}
	return "", errors.New("no free 127.x network: are there hundreds of labs? hl-lab down --dir DIR ends one")
}

func portFree(address string, port int) bool {
	ln, err := net.Listen("tcp", net.JoinHostPort(address, fmt.Sprint(port)))
	if err != nil {
		return false
	}
	return ln.Close() == nil
}

// start starts what does not run.
func (l *Lab) start() error {
	if l.Controllers > 1 {
		if _, ok := l.etcdProcess(); !ok {
			if err := l.daemon("etcd", "hl-lab", "etcd", "--dir", l.Dir); err != nil {
				return err
			}
		}
	}
	for _, name := range l.controllerNames() {
		if err := l.startController(name); err != nil {
			return err
		}
	}
	for _, name := range l.HostNames() {
		if l.isOff(name) {
			continue
		}
		if err := l.startHost(name); err != nil {
			return err
		}
	}
	return errors.Join(l.refreshMembers(), l.startImpostors())
}

func (l *Lab) startController(name string) error {
	if _, ok := l.controllerProcess(name); ok {
		return nil
	}
	return l.daemon(name, "hl-controller", "--config", l.controllerConfig(name))
}

// startHost starts the machine (pvestatd and the like) and its agent.
func (l *Lab) startHost(name string) error {
	if _, ok := l.hostProcess(name); !ok {
		if err := l.daemon("host-"+name, "hl-lab", "host", "--dir", l.Dir, name); err != nil {
			return err
		}
	}
	return l.startAgent(name)
}

func (l *Lab) startAgent(name string) error {
	if _, ok := l.agentProcess(name); ok {
		return nil
	}
	return l.daemon("agent-"+name, "hl-agent", "--config", l.agentConfig(name))
}

// awaitReady asks the controllers until each of them sees every host that is
// switched on, and says what is missing when that takes too long.
func (l *Lab) awaitReady(ctx context.Context) error {
	for i := range l.controllerNames() {
		name := l.controllerNames()[i]
		var last error
		for {
			if last = l.askReady(ctx, l.controllerEndpoints()[i]); last == nil {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s is not ready: %w; look at %s", name, last, l.path("log"))
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	return nil
}

func (l *Lab) askReady(ctx context.Context, endpoint string) error {
	cert, key := l.certFiles("admin")
	creds, err := rpc.LoadTLS(l.path("pki", "trusted.pem"), cert, key)
	if err != nil {
		return err
	}
	conn, err := rpc.Dial(rpc.Target{Address: endpoint, Role: rpc.RoleController, Credentials: creds})
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	resp, err := controllerv1.NewControllerServiceClient(conn).Status(ctx, &controllerv1.StatusRequest{Fresh: true})
	if err != nil {
		return err
	}
	online := map[string]string{}
	for _, h := range resp.GetHosts() {
		online[h.GetName()] = h.GetReason()
		// One whose PVE cluster has no quorum is degraded and started all the same;
		// one whose driver is still being launched is not.
		driver := h.GetObservation().GetDriver().GetTruth() == homelabv1.Truth_TRUTH_YES
		if h.GetState() == homelabv1.HostState_HOST_STATE_ONLINE || h.GetState() == homelabv1.HostState_HOST_STATE_DEGRADED && driver {
			online[h.GetName()] = "online"
		}
	}
	for _, name := range l.HostNames() {
		if !l.isOff(name) && online[name] != "online" {
			return fmt.Errorf("host %s is not online yet (%s)", name, online[name])
		}
	}
	return nil
}

// Down ends every process of the lab: daemons first and politely, guests last.
func (l *Lab) Down() error {
	// A stopped process does not hear SIGTERM before it is continued.
	all, err := l.processes(l.Dir)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(p process) bool { return !stopped(p.pid) })
	if err := kill(pids(withoutCallers(all))...); err != nil {
		return err
	}
	for range 20 {
		list, err := l.processes(l.Dir)
		if err != nil {
			return err
		}
		list = withoutCallers(list)
		if len(list) == 0 {
			return l.clearRun()
		}
		if err := terminate(3*time.Second, pids(list)...); err != nil {
			return err
		}
	}
	return fmt.Errorf("processes of the lab in %s start faster than they can be ended", l.Dir)
}

// daemons are the commands of hl-lab that up and faults start.
var daemons = []string{"host", "etcd", "impostor"}

// withoutCallers leaves out the lab's own commands in the foreground (up, tour),
// which may be the ones that call Down.
func withoutCallers(list []process) []process {
	var out []process
	for _, p := range list {
		if len(p.argv) > 1 && filepath.Base(p.argv[0]) == "hl-lab" && !slices.Contains(daemons, p.argv[1]) {
			continue
		}
		out = append(out, p)
	}
	return out
}

// clearRun empties the hosts' /run, which does not outlive a machine's power.
func (l *Lab) clearRun() error {
	var errs []error
	for _, name := range l.HostNames() {
		errs = append(errs, l.clearHostRun(name))
	}
	return errors.Join(errs...)
}

func (l *Lab) clearHostRun(name string) error {
	for _, dir := range []string{"run/qemu-server", "run/lock/qemu-server", "run/lock/pve-manager"} {
		full := filepath.Join(l.hostRoot(name), dir)
		entries, err := os.ReadDir(full)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(full, e.Name())); err != nil {
				return err
			}
		}
	}
	err := os.Remove(l.bootedFile(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
