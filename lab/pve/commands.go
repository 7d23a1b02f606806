package pve

import (
	_ "embed"
	"fmt"
	"iter"
	"maps"
	"regexp"
	"slices"
)

// The texts that the programs print without a command.
var (
	//go:embed usage/qm.txt
	qmUsage string
	//go:embed usage/pvesm.txt
	pvesmUsage string
	//go:embed usage/pvesh.txt
	pveshUsage string
)

func mapsKeys(p params) iter.Seq[string] { return maps.Keys(p) }

var resizeForm = regexp.MustCompile(`^\+?\d+(\.\d+)?[KMGT]?$`)

func resizeSize(v string) string {
	if !resizeForm.MatchString(v) {
		return "value does not match the regex pattern"
	}
	return ""
}

var (
	timeout  = natural
	vmidArgs = []string{"vmid"}
)

// qmCommands are the commands of qm that the lab simulates.
var qmCommands []command

// The table refers to functions that refer to it (aliases, pvesh), so it is
// filled here.
func init() {
	diskKey := setting{kind: enum, values: driveNames}
	anyDisk := setting{kind: enum, values: slices.Clone(driveNames)}
	for i := range 256 {
		anyDisk.values = append(anyDisk.values, fmt.Sprintf("unused%d", i))
	}
	qmCommands = []command{
		{name: "create", usage: "<vmid> [OPTIONS]", args: vmidArgs, config: true, run: (*run).create, opts: map[string]setting{
			"archive": anyText, "force": flag, "live-restore": flag, "pool": anyText, "start": flag, "storage": anyText, "unique": flag, "bwlimit": natural}},
		{name: "set", usage: "<vmid> [OPTIONS]", args: vmidArgs, config: true, run: (*run).set, opts: map[string]setting{
			"delete": anyText, "revert": anyText, "digest": anyText, "force": flag, "skiplock": flag, "background_delay": natural}},
		{name: "start", usage: "<vmid> [OPTIONS]", args: vmidArgs, run: (*run).start, opts: map[string]setting{"skiplock": flag, "timeout": timeout}},
		{name: "stop", usage: "<vmid> [OPTIONS]", args: vmidArgs, run: (*run).stop, opts: map[string]setting{
			"skiplock": flag, "timeout": timeout, "overrule-shutdown": flag, "keepActive": flag}},
		{name: "shutdown", usage: "<vmid> [OPTIONS]", args: vmidArgs, run: (*run).shutdown, opts: map[string]setting{
			"skiplock": flag, "timeout": timeout, "forceStop": flag, "keepActive": flag}},
		{name: "reboot", usage: "<vmid> [OPTIONS]", args: vmidArgs, run: (*run).reboot, opts: map[string]setting{"timeout": timeout}},
		{name: "reset", usage: "<vmid> [OPTIONS]", args: vmidArgs, run: (*run).reset, opts: map[string]setting{"skiplock": flag}},
		{name: "suspend", usage: "<vmid> [OPTIONS]", args: vmidArgs, run: (*run).suspend, opts: map[string]setting{
			"skiplock": flag, "todisk": flag, "statestorage": anyText}},
		{name: "resume", usage: "<vmid> [OPTIONS]", args: vmidArgs, run: (*run).resume, opts: map[string]setting{"skiplock": flag, "nocheck": flag}},
		{name: "destroy", usage: "<vmid> [OPTIONS]", args: vmidArgs, run: (*run).destroy, opts: map[string]setting{
			"purge": flag, "destroy-unreferenced-disks": flag, "skiplock": flag}},
		{name: "list", usage: " [OPTIONS]", run: (*run).list, opts: map[string]setting{"full": flag}},
		{name: "status", usage: "<vmid> [OPTIONS]", args: vmidArgs, run: (*run).status, opts: map[string]setting{"verbose": flag}},
		{name: "config", usage: "<vmid> [OPTIONS]", args: vmidArgs, run: (*run).config, opts: map[string]setting{"current": flag, "snapshot": anyText}},
		{name: "pending", usage: "<vmid>", args: vmidArgs, run: (*run).pending},
		{name: "unlock", usage: "<vmid>", args: vmidArgs, run: (*run).unlock},
		{name: "wait", usage: "<vmid> [OPTIONS]", args: vmidArgs, run: (*run).waitStopped, opts: map[string]setting{"timeout": timeout}},
		{name: "showcmd", usage: "<vmid> [OPTIONS]", args: vmidArgs, run: (*run).showcmd, opts: map[string]setting{"pretty": flag}},
		{name: "cloudinit dump", usage: "<vmid> <type>", args: []string{"vmid", "type"}, run: (*run).cloudInitDump,
			opts: map[string]setting{"type": oneOf("user network meta")}},
		{name: "cloudinit pending", usage: "<vmid>", args: vmidArgs, run: (*run).cloudInitPending},
		{name: "cloudinit update", usage: "<vmid>", args: vmidArgs, run: (*run).cloudInitUpdate},
		{name: "disk resize", usage: "<vmid> <disk> <size> [OPTIONS]", args: []string{"vmid", "disk", "size"}, run: (*run).resize, opts: map[string]setting{
			"disk": diskKey, "size": {kind: pattern, check: resizeSize}, "digest": anyText, "skiplock": flag}},
		{name: "disk import", usage: "<vmid> <source> <storage> [OPTIONS]", args: []string{"vmid", "source", "storage"}, run: (*run).importDisk, opts: map[string]setting{
			"format": oneOf("raw qcow2 vmdk"), "target-disk": diskKey}},
		{name: "disk unlink", usage: "<vmid> --idlist <string> [OPTIONS]", args: vmidArgs, run: (*run).unlink, opts: map[string]setting{
			"idlist": anyText, "force": flag}},
		{name: "disk move", usage: "<vmid> <disk> [<storage>] [OPTIONS]", args: []string{"vmid", "disk", "[storage]"}, run: (*run).move, opts: map[string]setting{
			"disk": anyDisk, "storage": anyText, "format": oneOf("raw qcow2 vmdk"), "delete": flag, "digest": anyText, "bwlimit": natural,
			"target-vmid": anyText, "target-disk": anyDisk, "target-digest": anyText}},
		{name: "clone", usage: "<vmid> <newid> [OPTIONS]", args: []string{"vmid", "newid"}, run: (*run).clone, opts: map[string]setting{
			"name": {kind: format, check: dnsName}, "description": anyText, "full": flag, "storage": anyText, "format": oneOf("raw qcow2 vmdk"),
			"snapname": anyText, "pool": anyText, "target": anyText, "bwlimit": natural}},
		{name: "template", usage: "<vmid> [OPTIONS]", args: vmidArgs, run: (*run).template, opts: map[string]setting{"disk": diskKey}},
		{name: "snapshot", usage: "<vmid> <snapname> [OPTIONS]", args: []string{"vmid", "snapname"}, run: (*run).snapshot, opts: map[string]setting{
			"snapname": {kind: format, check: snapshotName}, "description": anyText, "vmstate": flag}},
		{name: "delsnapshot", usage: "<vmid> <snapname> [OPTIONS]", args: []string{"vmid", "snapname"}, run: (*run).delSnapshot, opts: map[string]setting{"force": flag}},
		{name: "rollback", usage: "<vmid> <snapname> [OPTIONS]", args: []string{"vmid", "snapname"}, run: (*run).rollback, opts: map[string]setting{"start": flag}},
		{name: "listsnapshot", usage: "<vmid>", args: vmidArgs, run: (*run).listSnapshots},
		{name: "guest cmd", usage: "<vmid> <command>", args: []string{"vmid", "command"}, run: (*run).guestCmd, opts: map[string]setting{"command": oneOf(agentCommands)}},
		{name: "guest exec", usage: "<vmid> [<extra-args>] [OPTIONS]", args: []string{"vmid", "command..."}, run: (*run).guestExec, opts: map[string]setting{
			"synchronous": flag, "timeout": timeout, "pass-stdin": flag}},
		{name: "guest exec-status", usage: "<vmid> <pid>", args: []string{"vmid", "pid"}, run: (*run).guestExecStatus, opts: map[string]setting{"pid": anyInt}},
		{name: "guest passwd", usage: "<vmid> <username> [OPTIONS]", args: []string{"vmid", "username"}, run: (*run).guestPasswd, opts: map[string]setting{"crypted": flag}},
		{name: "sendkey", usage: "<vmid> <key> [OPTIONS]", args: []string{"vmid", "key"}, run: (*run).sendKey, opts: map[string]setting{"skiplock": flag}},
		{name: "terminal", usage: "<vmid> [OPTIONS]", args: vmidArgs, run: (*run).terminal, opts: map[string]setting{"iface": anyText, "escape": anyText}},
		{name: "vncproxy", usage: "<vmid>", args: vmidArgs, run: (*run).vncProxy},
		{name: "migrate", usage: "<vmid> <target> [OPTIONS]", args: []string{"vmid", "target"}, run: (*run).migrate, opts: map[string]setting{
			"online": flag, "force": flag, "with-local-disks": flag, "targetstorage": anyText, "bwlimit": natural}},
		{name: "monitor", usage: "<vmid>", args: vmidArgs, run: (*run).hmp},
		{name: "disk rescan", usage: " [OPTIONS]", run: (*run).rescan, opts: map[string]setting{"vmid": anyText, "dryrun": flag}},
	}
	for i := range qmCommands {
		if len(qmCommands[i].args) > 0 && qmCommands[i].opts == nil {
			qmCommands[i].opts = map[string]setting{}
		}
	}
	endpoints = apiEndpoints()
}

// pvesmCommands are the commands of pvesm that the lab simulates.
var pvesmCommands = []command{
	{name: "status", usage: " [OPTIONS]", run: (*run).pvesmStatus, opts: map[string]setting{
		"storage": anyText, "content": anyText, "enabled": flag, "target": anyText}},
	{name: "list", usage: "<storage> [OPTIONS]", args: []string{"storage"}, run: (*run).pvesmList, opts: map[string]setting{
		"content": anyText, "vmid": anyText}},
	{name: "alloc", usage: "<storage> <vmid> <filename> <size> [OPTIONS]", args: []string{"storage", "vmid", "filename", "size"},
		run: (*run).pvesmAlloc, opts: map[string]setting{"format": oneOf("raw qcow2 subvol vmdk")}},
	{name: "free", usage: "<volume> [OPTIONS]", args: []string{"volume"}, run: (*run).pvesmFree, opts: map[string]setting{
		"storage": anyText, "delay": natural}},
	{name: "path", usage: "<volume>", args: []string{"volume"}, run: (*run).pvesmPath},
	{name: "add", usage: "<type> <storage> [OPTIONS]", args: []string{"type", "storage"}, run: (*run).pvesmAdd, opts: storageOptions},
	{name: "set", usage: "<storage> [OPTIONS]", args: []string{"storage"}, run: (*run).pvesmSet, opts: withDelete(storageOptions)},
	{name: "remove", usage: "<storage>", args: []string{"storage"}, run: (*run).pvesmRemove},
}

var storageOptions = map[string]setting{
	"path": anyText, "content": anyText, "nodes": anyText, "disable": flag, "shared": flag, "is_mountpoint": anyText,
	"pool": anyText, "vgname": anyText, "thinpool": anyText, "sparse": flag, "blocksize": anyText, "mkdir": flag,
}

func withDelete(m map[string]setting) map[string]setting {
	return withKeys(m, map[string]setting{"delete": anyText})
}
