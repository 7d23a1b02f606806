package pve

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// rrdKeep is how long a line of something that is gone stays in .rrd.
const rrdKeep = 5 * time.Minute

// WriteStat does what pvestatd does every ten seconds: it writes this node's
// lines of .rrd (the node, its storages, its VMs) and the host's /proc files.
// It also makes .vmlist agree with the files.
func (h *Host) WriteStat(now time.Time) error {
	if err := h.writeProc(now); err != nil {
		return err
	}
	if !h.mounted() || h.cfg.Trouble.Hang {
		return nil
	}
	if err := Refresh(h.pmxcfs()); err != nil {
		return err
	}
	lines, err := h.rrdLines(now)
	if err != nil {
		return err
	}
	unlock, err := lockFile(filepath.Join(h.pmxcfs(), ".rrd.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	path := filepath.Join(h.pmxcfs(), ".rrd")
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for line := range strings.Lines(string(old)) {
		line = strings.TrimSuffix(line, "\n")
		key, _, _ := strings.Cut(line, ":")
		fresh := func(l string) bool { k, _, _ := strings.Cut(l, ":"); return k == key }
		if line != "" && !slices.ContainsFunc(lines, fresh) && now.Sub(rrdTime(line)) < rrdKeep {
			lines = append(lines, line)
		}
	}
	return replaceFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o640)
}

// rrdTime is when a line was written.
func rrdTime(line string) time.Time {
	f := strings.Split(line, ":")
	at := 1 // storages
	switch {
	case strings.Contains(f[0], "-node"):
		at = 3
	case strings.Contains(f[0], "-vm"):
		at = 5
	case strings.HasPrefix(f[0], "pve2-node"):
		at = 3
	case strings.HasPrefix(f[0], "pve2-vm"):
		at = 5
	}
	if len(f) <= at {
		return time.Time{}
	}
	return time.Unix(intOr(f[at], 0), 0)
}

// rrdKey is the name of a line: PVE 8 and older wrote others.
func (h *Host) rrdKey(what, id string) string {
	if h.oldRRD() {
		return "pve2-" + what + "/" + id
	}
	return "pve-" + what + "-9.0/" + id
}

func (h *Host) oldRRD() bool { return strings.HasPrefix(h.cfg.PVEVersion, "8.") }

func (h *Host) rrdLines(now time.Time) ([]string, error) {
	stamp := ctime(now)
	list, err := h.storages()
	if err != nil {
		return nil, err
	}
	var lines []string
	var root usage
	for _, s := range list {
		if s.disabled() || !s.onNode(h.cfg.NodeName) || h.activate(s) != nil {
			continue
		}
		u := h.usage(s)
		if s.id == "local" {
			root = u
		}
		lines = append(lines, fmt.Sprintf("%s:%s:%d:%d", h.rrdKey("storage", h.cfg.NodeName+"/"+s.id), stamp, u.total, u.used))
	}
	ids, err := h.guests()
	if err != nil {
		return nil, err
	}
	used := baseMemory(h.cfg.MemoryBytes)
	for _, vmid := range ids {
		c, err := h.load(vmid)
		if err != nil {
			continue
		}
		s := h.vmStatus(vmid, c, false)
		if pidOf(s) != 0 {
			used += memoryMiB(c.main) << 20
		}
		lines = append(lines, h.rrdVM(vmid, c, s, stamp))
	}
	used = min(used, h.cfg.MemoryBytes)
	node := fmt.Sprintf("%s:%d::%s:%.2f:%d:%s:%s:%d:%d:0:0:%d:%d:%d:%d", h.rrdKey("node", h.cfg.NodeName),
		h.uptime(now), stamp, 0.12, h.cfg.CPUs, "0.021", "0.0004", h.cfg.MemoryBytes, used, root.total, root.used, 1293587835, 4701610)
	if !h.oldRRD() {
		node += fmt.Sprintf(":%d:0:0.00:0.00:0.00:0.00:0.00", h.cfg.MemoryBytes-used)
	}
	return append([]string{node}, lines...), nil
}

// baseMemory is what a host takes without guests.
func baseMemory(total int64) int64 { return min(1<<30, total/4) }

func (h *Host) rrdVM(vmid string, c *conf, s map[string]any, stamp string) string {
	pid := pidOf(s)
	cpu, mem, io := "U", "U", "U:U:U:U"
	if pid != 0 {
		cpu, mem, io = "0.01", strconv.FormatInt(memoryMiB(c.main)<<20, 10), "0:0:0:0"
	}
	template := 0
	if c.main["template"] == "1" {
		template = 1
	}
	line := fmt.Sprintf("%s:%v:%v:%v:%d:%s:%v:%s:%v:%s:%v:0:%s", h.rrdKey("vm", vmid), s["uptime"], s["name"], s["status"],
		template, stamp, s["cpus"], cpu, s["maxmem"], mem, s["maxdisk"], io)
	if h.oldRRD() {
		return line
	}
	if pid == 0 {
		return line + ":U:U:U:U:U:U:U"
	}
	return line + ":" + mem + ":0:0:0:0:0:0"
}

// uptime is how long the host is up, in seconds. A clock that is wrong does not
// change it.
func (h *Host) uptime(now time.Time) int64 {
	return int64(math.Max((now.Sub(h.cfg.Boot) - h.cfg.Trouble.ClockSkew).Seconds(), 0))
}

// runningMemory is what the running guests were given, in bytes.
func (h *Host) runningMemory() int64 {
	ids, err := h.guests()
	if err != nil {
		return 0
	}
	var sum int64
	for _, vmid := range ids {
		if c, err := h.load(vmid); err == nil && h.running(vmid) != 0 {
			sum += memoryMiB(c.main) << 20
		}
	}
	return sum
}

// writeProc writes the files of /proc that tell of the host itself.
func (h *Host) writeProc(now time.Time) error {
	if h.cfg.Own {
		return nil
	}
	total := h.cfg.MemoryBytes
	available := max(total-baseMemory(total)-h.runningMemory(), 0)
	kib := func(n int64) int64 { return n >> 10 }
	var stat, cpuinfo strings.Builder
	up := h.uptime(now)
	line := func(name string, n int64) {
		fmt.Fprintf(&stat, "%s %d 0 %d %d %d 0 0 0 0 0\n", name, up*n, up*n, up*98*n, up*n/10)
	}
	line("cpu", int64(h.cfg.CPUs))
	for i := range h.cfg.CPUs {
		line(fmt.Sprintf("cpu%d", i), 1)
		fmt.Fprintf(&cpuinfo, "processor\t: %d\nvendor_id\t: GenuineIntel\nmodel name\t: Example CPU\ncpu MHz\t\t: 2596.134\nphysical id\t: 0\nsiblings\t: %d\ncore id\t\t: %d\ncpu cores\t: %d\nflags\t\t: fpu vme vmx sse4_2 aes hypervisor\n\n",
			i, h.cfg.CPUs, i, h.cfg.CPUs)
	}
	fmt.Fprintf(&stat, "btime %d\nprocesses 4242\nprocs_running 1\nprocs_blocked 0\n", h.cfg.Boot.Add(h.cfg.Trouble.ClockSkew).Unix())
	for name, text := range map[string]string{
		"meminfo": fmt.Sprintf("MemTotal:       %d kB\nMemFree:        %d kB\nMemAvailable:   %d kB\nBuffers:        0 kB\nCached:         0 kB\nSwapTotal:      0 kB\nSwapFree:       0 kB\n",
			kib(total), kib(available), kib(available)),
		"stat": stat.String(), "cpuinfo": cpuinfo.String(),
		"loadavg": "0.12 0.10 0.08 1/321 4242\n",
		"uptime":  fmt.Sprintf("%d.00 %d.00\n", up, up*int64(h.cfg.CPUs)),
		"version": fmt.Sprintf("Linux version %s (build@proxmox) #1 SMP PREEMPT_DYNAMIC\n", h.kernel()),
	} {
		if err := replaceFile(h.path("proc", name), []byte(text), 0o444); err != nil {
			return err
		}
	}
	return nil
}
