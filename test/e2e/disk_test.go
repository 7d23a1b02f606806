//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// labConfig is what is read of DIR/lab.json.
type labConfig struct {
	Net        string `json:"net"`
	K3sVersion string `json:"k3sVersion"`
}

func (l *lab) readConfig() labConfig {
	l.t.Helper()
	var c labConfig
	if err := json.Unmarshal([]byte(l.read("lab.json")), &c); err != nil {
		l.t.Fatal(err)
	}
	return c
}

// read reads a file below the lab's folder.
func (l *lab) read(name string) string {
	l.t.Helper()
	data, err := os.ReadFile(l.path(name))
	if err != nil {
		l.t.Fatal(err)
	}
	return string(data)
}

// call is one line of DIR/calls.jsonl.
type call struct {
	Time        time.Time `json:"time"`
	Host        string    `json:"host"`
	Argv        []string  `json:"argv"`
	Environment []string  `json:"environment"`
	Exit        int       `json:"exit"`
	WallMS      int64     `json:"wall_ms"`
}

// byHand says whether an administrator or the machine itself made the call.
func (c call) byHand() bool {
	return slices.ContainsFunc(c.Environment, func(v string) bool { return strings.HasPrefix(v, "HL_LAB_HAND=") })
}

// readOnly are the verbs of the simulated programs that change nothing.
var readOnly = map[string][]string{
	"qm":         {"list", "status", "config", "pending", "help", "showcmd", "listsnapshot", "wait", "guest"},
	"pvesm":      {"status", "list", "path", "help"},
	"pvesh":      {"get", "ls", "usage", "help"},
	"pveversion": {""},
}

func (c call) mutating() bool {
	verb := ""
	if len(c.Argv) > 1 {
		verb = c.Argv[1]
	}
	return !slices.Contains(readOnly[filepath.Base(c.Argv[0])], verb)
}

// calls are all calls of simulated programs so far.
func (l *lab) calls() []call {
	l.t.Helper()
	data, err := os.ReadFile(l.path("calls.jsonl"))
	if err != nil && !os.IsNotExist(err) {
		l.t.Fatal(err)
	}
	var list []call
	for line := range strings.Lines(string(data)) {
		var c call
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			l.t.Fatalf("calls.jsonl: %v: %s", err, line)
		}
		list = append(list, c)
	}
	return list
}

// conf is a VM's configuration file.
type conf struct {
	host, vmid, name, text string
}

// confs are the configuration files of all VMs, as they lie on the hosts.
func (l *lab) confs() []conf {
	l.t.Helper()
	files, err := filepath.Glob(l.path("hosts", "*", "root", "etc/pve/qemu-server/*.conf"))
	if err != nil {
		l.t.Fatal(err)
	}
	var list []conf
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			l.t.Fatal(err)
		}
		rel, _ := filepath.Rel(l.path("hosts"), file)
		c := conf{host: strings.Split(rel, "/")[0], vmid: strings.TrimSuffix(filepath.Base(file), ".conf"), text: string(text)}
		for line := range strings.Lines(c.text) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), "name: "); ok && c.name == "" {
				c.name = v
			}
		}
		list = append(list, c)
	}
	return list
}

// confOf is the configuration of the one VM of a name.
func (l *lab) confOf(name string) conf {
	l.t.Helper()
	var found []conf
	for _, c := range l.confs() {
		if c.name == name {
			found = append(found, c)
		}
	}
	if len(found) != 1 {
		l.t.Fatalf("%d VMs are named %s", len(found), name)
	}
	return found[0]
}

// volumes are the disk volumes that lie on a host's storages, by volume id.
func (l *lab) volumes(host string) []string {
	l.t.Helper()
	var list []string
	for prefix, pattern := range map[string]string{
		"local":     "var/lib/vz/images/*/*",
		"local-zfs": "dev/zvol/rpool/data/*",
		"local-lvm": "dev/pve/*",
	} {
		files, err := filepath.Glob(l.host(host, pattern))
		if err != nil {
			l.t.Fatal(err)
		}
		for _, file := range files {
			name := filepath.Base(file)
			if prefix == "local" {
				name = filepath.Base(filepath.Dir(file)) + "/" + name
			}
			list = append(list, prefix+":"+strings.TrimSuffix(name, ".fs"))
		}
	}
	slices.Sort(list)
	return slices.Compact(list) // a guest's files lie beside its volume
}

func (l *lab) hostNames() []string {
	l.t.Helper()
	entries, err := os.ReadDir(l.path("hosts"))
	if err != nil {
		l.t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// mustBeClean wants no second guest of a name, no volume that no configuration
// names, and one etcd member for each of the server guests named.
func (l *lab) mustBeClean(servers ...string) {
	l.t.Helper()
	where := map[string]string{}
	owned := map[string]string{} // host to all its configurations
	for _, c := range l.confs() {
		if other := where[c.name]; other != "" {
			l.t.Errorf("two VMs are named %s: on %s and %s/%s", c.name, other, c.host, c.vmid)
		}
		where[c.name] = c.host + "/" + c.vmid
		owned[c.host] += c.text
		if strings.Contains(c.text, "\nlock: ") || strings.HasPrefix(c.text, "lock: ") {
			l.t.Errorf("VM %s on %s is left locked:\n%s", c.vmid, c.host, c.text)
		}
	}
	for _, host := range l.hostNames() {
		volumes := l.volumes(host)
		if owned[host] != "" && len(volumes) == 0 {
			l.t.Errorf("the volumes on %s were not found", host) // this would look at the wrong place
		}
		for _, v := range volumes {
			if !strings.Contains(owned[host], v) {
				l.t.Errorf("volume %s on %s belongs to no VM", v, host)
			}
		}
		l.mustHoldNoIntent(host)
	}
	var guests []string
	for _, m := range l.members() {
		if m.Role != "server" {
			continue
		}
		guests = append(guests, m.Guest)
		if !m.Voter || m.Learner || !m.Healthy {
			l.t.Errorf("member %+v is not a healthy voter", m)
		}
	}
	slices.Sort(guests)
	slices.Sort(servers)
	if !slices.Equal(guests, servers) {
		l.t.Errorf("etcd's members belong to %q, they should to %q", guests, servers)
	}
}

// mustHoldNoIntent wants no unfinished create to be remembered on a host.
func (l *lab) mustHoldNoIntent(host string) {
	l.t.Helper()
	entries, err := os.ReadDir(l.path("hosts", host, "agent/state/intents"))
	if err != nil {
		l.t.Fatal(err)
	}
	for _, e := range entries {
		l.t.Errorf("the intent %s on %s is left open", e.Name(), host)
	}
}

// guestFiles is where a guest's files lie.
func (l *lab) guestFiles(name string) string {
	l.t.Helper()
	c := l.confOf(name)
	for _, v := range l.volumes(c.host) {
		file := l.volumeFile(c.host, v)
		if _, err := os.Stat(file + ".fs"); err == nil && strings.Contains(c.text, v) {
			return file + ".fs"
		}
	}
	l.t.Fatalf("%s has no files:\n%s", name, c.text)
	return ""
}

// written is what was written of a file: disks are large and sparse.
func written(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []byte
	for end := int64(0); ; {
		begin, err := f.Seek(end, unix.SEEK_DATA)
		if err != nil {
			return all, nil // there is no more data
		}
		if end, err = f.Seek(begin, unix.SEEK_HOLE); err != nil {
			return nil, err
		}
		part := make([]byte, end-begin)
		n, err := f.ReadAt(part, begin)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		all = append(all, part[:n]...)
	}
}

// walk calls do with every regular file below the lab's folder.
func (l *lab) walk(do func(path string, info fs.FileInfo)) {
	l.t.Helper()
	err := filepath.WalkDir(l.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil // gone meanwhile
			}
			return err
		}
		info, err := d.Info()
		if err != nil || !info.Mode().IsRegular() {
			return nil //nolint:nilerr // gone meanwhile
		}
		do(path, info)
		return nil
	})
	if err != nil {
		l.t.Fatal(fmt.Errorf("look through %s: %w", l.dir, err))
	}
}
