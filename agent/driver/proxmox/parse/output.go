package parse

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/homeiac/homelab/internal/rpc"
)

var progressLine = regexp.MustCompile(`^transferred (.+) of (.+) \((\d+(?:\.\d+)?)%\)$`)

// Progress reads a line of an import or copy: "transferred 8.3 MiB of 64.0 MiB
// (12.93%)". 100 % may be told twice, and before a failure.
func Progress(line string) (done, whole string, percent float64, ok bool) {
	m := progressLine.FindStringSubmatch(strings.TrimSpace(line))
	if m == nil {
		return "", "", 0, false
	}
	p, _ := strconv.ParseFloat(m[3], 64)
	return m[1], m[2], p, true
}

// chatter are the lines that say nothing about a failure.
var chatter = []*regexp.Regexp{
	progressLine,
	regexp.MustCompile(`^Formatting '`),
	regexp.MustCompile(`^update VM \d+:`),
	regexp.MustCompile(`^generating cloud-init ISO$`),
	regexp.MustCompile(`^trying to acquire (cfs )?lock`),
	regexp.MustCompile(`^OK$`),
	regexp.MustCompile(`: successfully (created|imported) disk '`),
	regexp.MustCompile(`^(qm|pvesm|pvesh) .*(<vmid>|<storage>|\[OPTIONS\])`),
	regexp.MustCompile(`^perl: warning:`),
	regexp.MustCompile(`^\s+(LANGUAGE|LC_ALL|LANG) =`),
	regexp.MustCompile(`^\s+are supported and installed`),
	regexp.MustCompile(`^Task finished with \d+ warning`),
}

// Reason is what a program said about its failure, in one line. The reason stands
// on stdout for tasks (QEMU's own messages), its last line only on stderr.
func Reason(stdout, stderr string) string {
	var lines []string
	for _, text := range []string{stdout, stderr} {
		for line := range strings.Lines(text) {
			line = strings.TrimRight(line, " \t\r\n")
			trimmed := strings.TrimSpace(line)
			if trimmed == "" || slices.Contains(lines, trimmed) ||
				slices.ContainsFunc(chatter, func(r *regexp.Regexp) bool { return r.MatchString(line) || r.MatchString(trimmed) }) {
				continue
			}
			lines = append(lines, trimmed)
		}
	}
	// The end is where the reason is; QEMU can say a great deal before.
	if len(lines) > 6 {
		lines = append([]string{"..."}, lines[len(lines)-6:]...)
	}
	return strings.Join(lines, "; ")
}

// Warnings are the lines of a task that ended well but not wholly: "WARN: Could not
// remove disk ...".
func Warnings(stdout string) []string {
	var all []string
	for line := range strings.Lines(stdout) {
		if w, ok := strings.CutPrefix(strings.TrimSpace(line), "WARN: "); ok {
			all = append(all, w)
		}
	}
	return all
}

// kinds is what the texts of Proxmox mean, the first that fits. Proxmox's exit
// codes say nothing: the same text comes with 2 or 255.
var kinds = []struct {
	text *regexp.Regexp
	kind rpc.Kind
}{
	{regexp.MustCompile(`(?i)ipcc_send_rec|cluster not ready|no quorum|Unable to load access control list`), rpc.ErrUnavailable},
	{regexp.MustCompile(`/etc/pve/.*Permission denied`), rpc.ErrUnavailable}, // /etc/pve is read-only without quorum
	{regexp.MustCompile(`VM is locked \([^)]+\)|CT is locked \([^)]+\)`), rpc.ErrBusy},
	{regexp.MustCompile(`can't lock file '.*' - got timeout|can't acquire lock|cfs-lock .* (got lock request timeout|error)|got lock timeout`), rpc.ErrBusy},
	{regexp.MustCompile(`checksum mismatch|detected modified configuration`), rpc.ErrBusy},
	{regexp.MustCompile(`(?i)No space left on device|not enough (free )?space|out of space|insufficient free space`), rpc.ErrRefused},
	{regexp.MustCompile(`unable to create (VM|CT) \d+ - (VM|CT) \d+ already exists|config file already exists`), rpc.ErrExists},
	{regexp.MustCompile(`bridge '.*' does not exist`), rpc.ErrRefused},
	{regexp.MustCompile(`storage '.*' (does not exist|is disabled|is not available|does not support)|unable to activate storage`), rpc.ErrRefused},
	{regexp.MustCompile(`protection mode enabled|is running - destroy failed|still in use by linked clone`), rpc.ErrRefused},
	{regexp.MustCompile(`shrinking disks is not supported`), rpc.ErrRefused},
	{regexp.MustCompile(`No QEMU guest agent configured`), rpc.ErrUnsupported},
	{regexp.MustCompile(`QEMU guest agent is not running|qmp command '.*' failed|got timeout`), rpc.ErrUnavailable},
	{regexp.MustCompile(`Configuration file '.*' does not exist|unable to find configuration file for VM`), rpc.ErrNotFound},
	// Not NotFound: that is for the VM itself.
	{regexp.MustCompile(`volume '.*' does not exist|no such (logical )?volume|can't find file '|non-existent or non-regular file`), rpc.ErrRefused},
	{regexp.MustCompile(`start failed:|is too old to run machine type|EFI base image '.*' not found|VM is paused|VM \d+ is not running`), rpc.ErrRefused},
	{regexp.MustCompile(`already exists`), rpc.ErrExists},
	{regexp.MustCompile(`400 Parameter verification failed|unable to parse|Unknown option|invalid format|too many arguments|not enough arguments`), rpc.ErrInvalid},
}

// Kind is the kind of a failure, by its texts; empty when they are not known.
func Kind(stdout, stderr string) rpc.Kind {
	for _, k := range kinds {
		if k.text.MatchString(stderr) || k.text.MatchString(stdout) {
			return k.kind
		}
	}
	return ""
}

var createdDisk = regexp.MustCompile(`(?m)^([a-z]+\d+): successfully (?:created|imported) disk '([^',]+)(?:,([^']*))?'`)

// Created reads the disks that a program says it made, by slot.
func Created(stdout string) map[string]Drive {
	made := map[string]Drive{}
	for _, m := range createdDisk.FindAllStringSubmatch(stdout, -1) {
		o := Options(m[3], "")
		size, _ := Size(o["size"])
		made[m[1]] = Drive{Slot: m[1], Volid: m[2], SizeBytes: size, CDROM: o["media"] == "cdrom"}
	}
	return made
}
