package parse

import (
	"regexp"
	"slices"
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
	// ID is the VMID for tasks on a VM; 100@local for imgdel, 100-scsi1 or
	// 100-scsi1>200-scsi1 for moves of a disk.
	ID string
	// User is who asked for it.
	User string
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
	return UPID{Text: s, Node: m[1], PID: hex(m[2]), PStart: hex(m[3]), Start: time.Unix(hex(m[4]), 0), Type: m[5], ID: m[6], User: m[7]}, true
}

var taskID = regexp.MustCompile(`^(\d+)(?:@|-[a-z]+\d+(?:(?:>|%3E)(\d+)-[a-z]+\d+)?$|$)`)

// VMIDs are the VMs the task works on; a move of a disk may work on two.
func (u UPID) VMIDs() []int32 {
	var ids []int32
	if m := taskID.FindStringSubmatch(u.ID); m != nil {
		for _, text := range m[1:] {
			if id := number(text, 0); id != 0 {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// EndedTask is one line of /var/log/pve/tasks/index.
type EndedTask struct {
	UPID
	// End is when it ended.
	End time.Time
	// Status is OK, "WARNINGS: n" or the error's first line.
	Status string
}

// EndedTasks reads the tasks of VMs in /var/log/pve/tasks/index ("UPID ENDHEX
// STATUS"), the earliest end first.
func EndedTasks(text []byte) []EndedTask {
	var all []EndedTask
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), " ", 3)
		if len(f) < 3 {
			continue
		}
		u, ok := ReadUPID(f[0])
		end, err := strconv.ParseInt(f[1], 16, 64)
		if ok && err == nil && strings.HasPrefix(u.Type, "qm") {
			all = append(all, EndedTask{UPID: u, End: time.Unix(end, 0), Status: f[2]})
		}
	}
	return all
}

// stopping and starting are the types of tasks that end and begin a VM's life.
var (
	stopping = []string{"qmstop", "qmshutdown", "qmsuspend", "qmdestroy"}
	starting = []string{"qmstart", "qmresume", "qmreboot", "qmcreate", "qmrestore"}
)

// LastStops gives for each VMID the latest task that stopped it, unless one that
// started or made it ended well after that: what ended it since then was no task.
// The lists are in the order of time.
func LastStops(lists ...[]EndedTask) map[int32]EndedTask {
	last := map[int32]EndedTask{}
	for _, t := range slices.Concat(lists...) {
		for _, id := range t.VMIDs() {
			switch {
			case slices.Contains(stopping, t.Type):
				last[id] = t
			case slices.Contains(starting, t.Type) && (t.Status == "OK" || strings.HasPrefix(t.Status, "WARNINGS")):
				delete(last, id)
			}
		}
	}
	return last
}

// BootTime reads the time of the boot from /proc/stat.
func BootTime(stat []byte) (time.Time, bool) {
	for line := range strings.Lines(string(stat)) {
		if text, ok := strings.CutPrefix(line, "btime "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			return time.Unix(n, 0), err == nil
		}
	}
	return time.Time{}, false
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
