// Package args builds the argument lists of Proxmox's programs, says which of
// them change something, and masks what is secret in them. It is pure: it runs
// nothing, and looks at nothing.
//
// There is no way to build --destroy-unreferenced-disks: it would take every
// volume of a VMID along, whoever made it.
package args

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Call is one call of a program.
type Call struct {
	// Program is qm, pvesm or pvesh.
	Program string
	// Args are its arguments.
	Args []string
	// VMID is the VM it is about; 0 when it is about none.
	VMID int32
	// Other is a second VM that it works on; 0 when there is none.
	Other int32
}

// VMIDs are the VMs that it is about.
func (c Call) VMIDs() []int32 {
	return slices.DeleteFunc([]int32{c.VMID, c.Other}, func(id int32) bool { return id == 0 })
}

func qm(vmid int32, verb string, rest ...string) Call {
	argv := append(strings.Fields(verb), strconv.Itoa(int(vmid)))
	return Call{Program: "qm", Args: append(argv, rest...), VMID: vmid}
}

// Start starts a VM.
func Start(vmid int32) Call { return qm(vmid, "start") }

// Stop cuts a VM's power.
func Stop(vmid int32) Call { return qm(vmid, "stop") }

// StopOverruling cuts a VM's power and ends shutdowns of it that are under way,
// which hold the VM's lock until their timeout.
func StopOverruling(vmid int32) Call { return qm(vmid, "stop", "--overrule-shutdown", "1") }

// Reset presses a VM's reset button.
func Reset(vmid int32) Call { return qm(vmid, "reset") }

// Resume lets a paused VM go on.
func Resume(vmid int32) Call { return qm(vmid, "resume") }

// Shutdown asks the guest to shut down and waits that many seconds. It holds the
// VM's lock all the while, so another call must not be made meanwhile.
func Shutdown(vmid int32, seconds int) Call {
	return qm(vmid, "shutdown", "--timeout", strconv.Itoa(max(seconds, 1)))
}

// Unlock removes the configuration's lock.
func Unlock(vmid int32) Call { return qm(vmid, "unlock") }

// Destroy removes a stopped VM and the volumes that its configuration names,
// unused ones too. Purge also takes it out of backup jobs and the like; only who
// deletes a guest for good wants that.
func Destroy(vmid int32, purge bool) Call {
	if purge {
		return qm(vmid, "destroy", "--purge", "1")
	}
	return qm(vmid, "destroy")
}

// Describe writes the description, if the configuration still has the digest:
// Proxmox's compare-and-swap. With the description that is there already it is
// how a VM is claimed.
func Describe(vmid int32, description, digest string) Call {
	return qm(vmid, "set", "--description", description, "--digest", digest)
}

// MoveDisk reassigns a disk to the same slot of another VM, if both configurations
// still have their digests. The volume gets a name of that VM.
func MoveDisk(from int32, slot, fromDigest string, to int32, toDigest string) Call {
	c := qm(from, "disk move", slot, "--target-vmid", strconv.Itoa(int(to)), "--target-disk", slot,
		"--digest", fromDigest, "--target-digest", toDigest)
	c.Other = to
	return c
}

// Resize makes a disk as large as bytes says, rounded up to a KiB.
func Resize(vmid int32, slot string, bytes int64) Call {
	return qm(vmid, "disk resize", slot, Size(bytes))
}

// Set changes cores and memory (0 leaves either), if the configuration still has
// the digest.
func Set(vmid int32, cores int32, memoryBytes int64, digest string) Call {
	var rest []string
	if cores > 0 {
		rest = append(rest, "--cores", strconv.Itoa(int(cores)))
	}
	if memoryBytes > 0 {
		rest = append(rest, "--memory", strconv.FormatInt(mebibytes(memoryBytes), 10))
	}
	return qm(vmid, "set", append(rest, "--digest", digest)...)
}

// GuestExec runs a command through the guest agent and waits that many seconds.
func GuestExec(vmid int32, seconds int, stdin bool, argv []string) Call {
	rest := []string{"--timeout", strconv.Itoa(max(seconds, 1))}
	if stdin {
		rest = append(rest, "--pass-stdin", "1")
	}
	return qm(vmid, "guest exec", append(append(rest, "--"), argv...)...)
}

// GuestExecStatus asks what became of a command in a guest. Once it has ended the
// guest agent tells it one time only.
func GuestExecStatus(vmid int32, pid int64) Call {
	return qm(vmid, "guest exec-status", strconv.FormatInt(pid, 10))
}

// Storages tells state and space of all storages.
func Storages() Call { return Call{Program: "pvesm", Args: []string{"status"}} }

// Volumes lists the volumes of a VMID (0: of all) on a storage.
func Volumes(storage string, vmid int32) Call {
	if vmid == 0 {
		return Call{Program: "pvesm", Args: []string{"list", storage}}
	}
	return Call{Program: "pvesm", Args: []string{"list", storage, "--vmid", strconv.Itoa(int(vmid))}, VMID: vmid}
}

// Free removes one volume, by name.
func Free(volid string, vmid int32) Call {
	return Call{Program: "pvesm", Args: []string{"free", volid}, VMID: vmid}
}

// Size writes a size for Proxmox: the largest unit that divides it, a part of a
// KiB counted whole.
func Size(bytes int64) string {
	k := (bytes + 1023) / 1024
	switch {
	case k%(1<<20) == 0:
		return strconv.FormatInt(k>>20, 10) + "G"
	case k%(1<<10) == 0:
		return strconv.FormatInt(k>>10, 10) + "M"
	}
	return strconv.FormatInt(k, 10) + "K"
}

func mebibytes(bytes int64) int64 { return (bytes + 1<<20 - 1) >> 20 }

func gibibytes(bytes int64) int64 { return (bytes + 1<<30 - 1) >> 30 }

// reading are the calls that change nothing, by their first words. Whatever is not
// here is taken for a change. guest is for the caller to judge: only he knows what
// the command does.
var reading = map[string]bool{
	"qm config": true, "qm pending": true, "qm status": true, "qm list": true, "qm listsnapshot": true,
	"qm showcmd": true, "qm help": true, "qm cloudinit dump": true, "qm cloudinit pending": true,
	"qm agent": true, "qm guest": true, "qm wait": true,
	"pvesm status": true, "pvesm list": true, "pvesm path": true, "pvesm help": true,
	"pvesh get": true, "pvesh ls": true, "pvesh usage": true, "pvesh help": true,
}

// Mutating tells whether a call counts as changing something, whether it succeeds
// or not. This is the one table.
func (c Call) Mutating() bool {
	for n := min(2, len(c.Args)); n > 0; n-- {
		if reading[c.Program+" "+strings.Join(c.Args[:n], " ")] {
			return false
		}
	}
	return true
}

var secretOption = regexp.MustCompile(`(?i)^--?(cipassword|password|secret|token|key)$`)
var secretPart = regexp.MustCompile(`(?i)((?:^|[,\s?&-])(?:cipassword|password|secret|token|passwd)=)[^,\s&]+`)

// Masked are the arguments with what is secret in them as "***". A command given
// to a guest is not shown beyond its program: its arguments are not ours to judge.
func (c Call) Masked() []string {
	out := make([]string, 0, len(c.Args))
	hide, guest := false, 0
	for i, a := range c.Args {
		switch {
		case hide:
			a, hide = "***", false
		case guest == 1:
			guest = 2
		case guest == 2:
			return append(out, "***")
		case a == "--" && i > 1 && c.Args[0] == "guest":
			guest = 1
		case secretOption.MatchString(a):
			hide = true
		default:
			a = secretPart.ReplaceAllString(a, "${1}***")
		}
		out = append(out, a)
	}
	return out
}
