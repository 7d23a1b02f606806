package parse

import (
	"regexp"
	"strconv"
	"strings"
	"time"
)

// UPID names one task of Proxmox.
type UPID struct {
	// Text is the whole of it.
	Text string
	// Node is where it runs.
	Node string
	// PID and PStart are the worker's process and its start, in clock ticks since
	// boot, as field 22 of /proc/PID/stat.
	PID, PStart int64
	// Start is when it began.
	Start time.Time
	// Type is qmcreate, qmstart, imgdel...
	Type string
	// ID is the VMID for tasks on a VM; 100@local for imgdel.
	ID string
}

var upidText = regexp.MustCompile(`^UPID:([^:\s]+):([0-9A-Fa-f]{8,9}):([0-9A-Fa-f]{8,9}):([0-9A-Fa-f]{8}):([^:\s]+):([^:\s]*):([^:\s]+):$`)

// ReadUPID reads UPID:NODE:PID:PSTART:START:TYPE:ID:USER:, numbers in hex.
func ReadUPID(s string) (UPID, bool) {
	m := upidText.FindStringSubmatch(s)
	if m == nil {
		return UPID{}, false
	}
	hex := func(s string) int64 {
		n, _ := strconv.ParseInt(s, 16, 64)
		return n
	}
	return UPID{Text: s, Node: m[1], PID: hex(m[2]), PStart: hex(m[3]), Start: time.Unix(hex(m[4]), 0), Type: m[5], ID: m[6]}, true
}

// VMID is the VM the task works on; 0 when it is none.
func (u UPID) VMID() int32 {
	id, _, _ := strings.Cut(u.ID, "@")
	return number(id, 0)
}

// ActiveTasks reads /var/log/pve/tasks/active: the tasks that have not ended by it
// ("UPID", "UPID 0"); those that have carry an end and a status. A worker that was
// killed is still listed: its process must be looked for.
func ActiveTasks(text []byte) []UPID {
	var all []UPID
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) == 0 || len(f) > 2 {
			continue
		}
		if u, ok := ReadUPID(f[0]); ok {
			all = append(all, u)
		}
	}
	return all
}

// StartTime reads a process's start from /proc/PID/stat: field 22, in clock ticks
// since boot. The second field may hold spaces and parentheses.
func StartTime(stat string) (ticks int64, ok bool) {
	end := strings.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, false
	}
	f := strings.Fields(stat[end+1:])
	if len(f) < 20 {
		return 0, false
	}
	if f[0] == "Z" || f[0] == "X" {
		return 0, false // dead, only not reaped yet
	}
	n, err := strconv.ParseInt(f[19], 10, 64)
	return n, err == nil
}

// KVM reads a process's command line (/proc/PID/cmdline): whether it is the kvm of
// that VM, as Proxmox itself judges it: by -pidfile, and here by -id too.
func KVM(cmdline []byte, vmid int32) bool {
	argv := strings.Split(string(cmdline), "\x00")
	id := strconv.Itoa(int(vmid))
	var named, filed bool
	for i := 0; i+1 < len(argv); i++ {
		switch argv[i] {
		case "-id":
			named = named || argv[i+1] == id
		case "-pidfile":
			filed = filed || strings.HasSuffix(argv[i+1], "/run/qemu-server/"+id+".pid")
		}
	}
	return named && filed
}
