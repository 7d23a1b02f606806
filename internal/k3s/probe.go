package k3s

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// files are what the probe looks for. One ls for all: each that exists is a
// line by itself, each that does not a line of complaint.
var files = []string{BinaryPath, EtcdMember, SQLite, AgentData, NodePass, Server.Uninstall(), Agent.Uninstall()}

var lookForFiles = "section files 2 ls -d " + strings.Join(files, " ") + "\n"

// ProbeScript looks into a guest and changes nothing: see ParseProbe. Every
// command has its own limit and none stops the others; together they end
// within ProbeLimit.
var ProbeScript = prologue + `section hostname 1 hostname
section machine-id 1 cat /etc/machine-id
section cloud-init 4 cloud-init status --format json
if [ "$code" != 0 ]; then
	section cloud-init-long 4 cloud-init status --long
fi
section addresses 2 ip -j addr
section version 3 k3s --version
section unit-agent 2 systemctl is-active k3s-agent
` + lookForFiles + configSection + `section unit-server 2 systemctl is-active k3s
if [ "$code" = 0 ]; then
	section nodes 5 k3s kubectl get nodes -o json --request-timeout=4s
else
	printf '@@hl skip nodes k3s is not active here\n'
fi
exit 0
`

// ProbeLimit is when a ProbeScript has ended at the latest: the sum of its
// limits, and a second for each that must be killed. It usually takes one.
const ProbeLimit = 40 * time.Second

// A Reading is one thing that was looked for: its value, or why it is unknown.
type Reading[T any] struct {
	Known  bool
	Value  T
	Reason string // "" when Known
}

func known[T any](v T) Reading[T] { return Reading[T]{Known: true, Value: v} }

func unknown[T any](reason string) Reading[T] { return Reading[T]{Reason: reason} }

// Probe is what ProbeScript saw in a guest.
type Probe struct {
	Hostname  Reading[string]
	MachineID Reading[string]
	CloudInit Reading[CloudInit]
	Addresses Reading[[]Address] // loopback and k3s's own interfaces left out
	Version   Reading[string]    // of the k3s binary, "" when k3s is not installed
	// Units as systemctl is-active says: active, activating, deactivating,
	// failed, inactive, or unknown when there is no such unit (older systemd:
	// inactive).
	ServerUnit Reading[string]
	AgentUnit  Reading[string]
	// ServerData: an etcd member or a sqlite database lies there. A first
	// cluster-init needs this known and false on every server.
	ServerData      Reading[bool]
	AgentData       Reading[bool]
	NodePassword    Reading[bool]
	ServerUninstall Reading[bool]
	AgentUninstall  Reading[bool]
	// Config is config.yaml without anything secret; "" when nothing else is in it.
	Config Reading[string]
	// Nodes as the API on this guest lists them; unknown where no server runs.
	Nodes Reading[[]Node]
}

// CloudInit is the state of cloud-init.
type CloudInit struct {
	Status string   // done, running, error, disabled, not started
	Detail string   // "" when there is none
	Errors []string // also of a status done, which is then called degraded
}

// Done says whether cloud-init has ended well; degraded counts as well.
func (c CloudInit) Done() bool { return c.Status == "done" || c.Status == "disabled" }

// Failed says whether cloud-init has ended with an error.
func (c CloudInit) Failed() bool { return c.Status == "error" }

// An Address is one address of an interface of the guest.
type Address struct {
	Interface string
	MAC       string // upper case, "" when there is none
	Prefix    netip.Prefix
}

// ParseProbe reads what ProbeScript printed. Whatever is missing is unknown
// with the reason; the error is only for an output without any section, which
// is not the output of a probe.
func ParseProbe(out []byte) (Probe, error) {
	sections := ParseSections(out)
	if len(sections) == 0 {
		return Probe{}, errors.New("probe: nothing of it was printed" + lastLine(string(out)))
	}
	var p Probe
	p.Hostname = oneWord(sections, "hostname")
	p.MachineID = oneWord(sections, "machine-id")
	p.CloudInit = readCloudInit(sections)
	p.Addresses = readAddresses(sections)
	found := readFiles(sections)
	p.Version = readVersion(sections, found[BinaryPath])
	p.ServerUnit = readUnit(sections, "unit-server")
	p.AgentUnit = readUnit(sections, "unit-agent")
	p.ServerData = either(found[EtcdMember], found[SQLite])
	p.AgentData = found[AgentData]
	p.NodePassword = found[NodePass]
	p.ServerUninstall = found[Server.Uninstall()]
	p.AgentUninstall = found[Agent.Uninstall()]
	p.Config = readConfig(sections)
	p.Nodes = readNodes(sections)
	return p, nil
}

func oneWord(sections map[string]Section, name string) Reading[string] {
	text, reason := read(sections, name, 0)
	switch {
	case reason != "":
		return unknown[string](reason)
	case len(strings.Fields(text)) != 1:
		return unknown[string](name + ": is not one word")
	}
	return known(text)
}

func readVersion(sections map[string]Section, binary Reading[bool]) Reading[string] {
	if s, ok := sections["version"]; ok && s.Reason == "" && s.Exit == 127 && binary.Known && !binary.Value {
		return known("")
	}
	text, reason := read(sections, "version", 0)
	if reason != "" {
		return unknown[string](reason)
	}
	v, err := ParseVersionOutput(text)
	if err != nil {
		return unknown[string]("version: " + err.Error())
	}
	return known(v.String())
}

var unitStates = []string{"active", "reloading", "inactive", "failed", "activating", "deactivating", "maintenance", "refreshing", "unknown"}

// readUnit does not look at the exit code: inactive is exit 3, no such unit 4.
func readUnit(sections map[string]Section, name string) Reading[string] {
	text, reason := read(sections, name)
	switch {
	case reason != "":
		return unknown[string](reason)
	case !slices.Contains(unitStates, text):
		return unknown[string](name + ": systemctl said something else" + lastLine(text))
	}
	return known(text)
}

// readFiles takes a file for absent only when ls said so; that it could not be
// looked at (an I/O error, say) is unknown.
func readFiles(sections map[string]Section) map[string]Reading[bool] {
	found := map[string]Reading[bool]{}
	text, reason := read(sections, "files")
	lines := strings.Split(text, "\n")
	for _, file := range files {
		if reason != "" {
			found[file] = unknown[bool](reason)
			continue
		}
		found[file] = unknown[bool]("files: ls says nothing of " + file)
		for _, line := range lines {
			line = strings.TrimSpace(line)
			if line == file {
				found[file] = known(true)
				break
			}
			if !names(line, file) {
				continue
			}
			if strings.Contains(strings.ToLower(line), "no such file or directory") {
				found[file] = known(false)
			} else {
				found[file] = unknown[bool]("files: " + line)
			}
			break
		}
	}
	return found
}

// names says whether a line speaks of exactly this file: k3s-uninstall.sh is
// not the binary k3s.
func names(line, file string) bool {
	for rest := line; ; {
		at := strings.Index(rest, file)
		if at < 0 {
			return false
		}
		rest = rest[at+len(file):]
		if rest == "" || strings.ContainsRune("'\": ", rune(rest[0])) || strings.HasPrefix(rest, "’") {
			return true
		}
	}
}

// either is true when one of two is, and false only when both are known to be.
func either(a, b Reading[bool]) Reading[bool] {
	switch {
	case a.Known && a.Value, !a.Known && !(b.Known && b.Value):
		return a
	}
	return b
}

func readCloudInit(sections map[string]Section) Reading[CloudInit] {
	// Exit 1 is an error of cloud-init, 2 a recoverable one: both print JSON.
	text, reason := read(sections, "cloud-init", 0, 1, 2)
	if reason == "" {
		var v struct {
			Status         string              `json:"status"`
			ExtendedStatus string              `json:"extended_status"`
			Detail         string              `json:"detail"`
			Errors         []string            `json:"errors"`
			Recoverable    map[string][]string `json:"recoverable_errors"`
		}
		if err := decodeJSON(text, &v); err == nil && v.Status != "" {
			c := CloudInit{Status: v.Status, Detail: strings.TrimSpace(v.Detail), Errors: v.Errors}
			for _, level := range slices.Sorted(keysOf(v.Recoverable)) {
				c.Errors = append(c.Errors, v.Recoverable[level]...)
			}
			return known(c)
		}
		reason = "cloud-init: it did not print its status" + lastLine(text)
	}
	// Before 23.1 there was no --format.
	long, _ := read(sections, "cloud-init-long", 0, 1, 2)
	var c CloudInit
	for line := range strings.SplitSeq(long, "\n") {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "status":
			c.Status = strings.TrimSpace(value)
		case "detail":
			c.Detail = strings.TrimSpace(value)
		}
	}
	if c.Status == "" {
		return unknown[CloudInit](reason)
	}
	return known(c)
}

func keysOf[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// decodeJSON reads the first JSON value that begins a line: warnings on
// standard error may stand before and after it.
func decodeJSON(text string, into any) error {
	for at := 0; at < len(text); {
		if text[at] == '{' || text[at] == '[' {
			return json.NewDecoder(strings.NewReader(text[at:])).Decode(into)
		}
		next := strings.IndexByte(text[at:], '\n')
		if next < 0 {
			break
		}
		at += next + 1
	}
	return errors.New("no JSON in it")
}

// ownInterface is whether k3s or containers made it; the addresses of such are
// not the guest's.
func ownInterface(name string) bool {
	for _, prefix := range []string{"lo", "cni", "flannel", "veth", "docker", "kube-", "cali"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

func readAddresses(sections map[string]Section) Reading[[]Address] {
	text, reason := read(sections, "addresses", 0)
	if reason != "" {
		return unknown[[]Address](reason)
	}
	var links []struct {
		Name      string `json:"ifname"`
		Type      string `json:"link_type"`
		MAC       string `json:"address"`
		Addresses []struct {
			Local string `json:"local"`
			Bits  int    `json:"prefixlen"`
			Scope string `json:"scope"`
		} `json:"addr_info"`
	}
	if err := decodeJSON(text, &links); err != nil {
		return unknown[[]Address]("addresses: " + err.Error())
	}
	list := []Address{}
	for _, link := range links {
		if link.Type == "loopback" || ownInterface(link.Name) {
			continue
		}
		mac := strings.ToUpper(link.MAC)
		if link.Type != "ether" {
			mac = ""
		}
		for _, a := range link.Addresses {
			addr, err := netip.ParseAddr(a.Local)
			if err != nil || a.Scope == "link" {
				continue
			}
			if prefix, err := addr.Prefix(a.Bits); err == nil {
				list = append(list, Address{Interface: link.Name, MAC: mac, Prefix: netip.PrefixFrom(addr, prefix.Bits())})
			}
		}
	}
	return known(list)
}

func readNodes(sections map[string]Section) Reading[[]Node] {
	text, reason := read(sections, "nodes", 0)
	if reason != "" {
		return unknown[[]Node](reason)
	}
	nodes, err := ParseNodes([]byte(text))
	if err != nil {
		return unknown[[]Node]("nodes: " + err.Error())
	}
	return known(nodes)
}
