package k3s

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// kubectl begins a script that asks the API of the server it runs on. k3s lies
// where sudo's own path often does not look.
const kubectl = "export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/bin\n"

// NodesScript lists all Nodes on a server; see ParseNodes.
const NodesScript = kubectl + "timeout -k 1 8 k3s kubectl get nodes -o json --request-timeout=6s\n"

// VersionScript prints the version of the k3s binary; see ParseVersionOutput.
const VersionScript = kubectl + "timeout -k 1 3 k3s --version\n"

// NodePasswordSecret is the Secret in kube-system in which the servers keep what a
// Node of that name must know to register again.
func NodePasswordSecret(node string) string { return node + ".node-password.k3s" }

// SecretScript prints the name of the Node's password Secret, and nothing when
// there is none.
func SecretScript(node string) string {
	return kubectl + "timeout -k 1 8 k3s kubectl -n kube-system get secret " + quote(NodePasswordSecret(node)) + " -o name --ignore-not-found --request-timeout=6s\n"
}

// DeleteSecretScript deletes it; one that is gone is no failure.
func DeleteSecretScript(node string) string {
	return kubectl + "timeout -k 1 12 k3s kubectl -n kube-system delete secret " + quote(NodePasswordSecret(node)) + " --ignore-not-found --timeout=10s\n"
}

// CordonScript keeps new pods from a Node.
func CordonScript(node string) string {
	return kubectl + "timeout -k 1 10 k3s kubectl cordon " + quote(node) + "\n"
}

// DrainScript moves a Node's pods away, as far as that goes within the deadline: a
// Node whose kubelet is dead never tells that its pods have ended.
func DrainScript(node string, deadline time.Duration) string {
	seconds := max(1, int(deadline/time.Second))
	return kubectl + fmt.Sprintf("timeout -k 1 %d k3s kubectl drain %s --ignore-daemonsets --delete-emptydir-data --force --timeout=%ds\n",
		seconds+5, quote(node), seconds)
}

// EtcdMemberOf says whether an etcd member's name is one that k3s gives to that
// Node's: the Node's name, a dash and eight hexadecimal digits.
func EtcdMemberOf(member, node string) bool {
	rest, ok := strings.CutPrefix(member, node+"-")
	return ok && node != "" && len(rest) == 8 && strings.Trim(rest, "0123456789abcdef") == ""
}

// QuietScript asks whatever k3s runs in a guest to stop, before the guest is shut
// down: a member that leaves in order costs the others less. Nothing is disabled.
const QuietScript = kubectl + `for unit in k3s k3s-agent; do
	if systemctl is-active -q "$unit"; then
		timeout -k 1 30 systemctl stop "$unit" || exit 1
	fi
done
exit 0
`

// UnitsScript tells the units of both roles; see ParseUnits.
const UnitsScript = prologue + `section active-server 3 systemctl is-active k3s
section enabled-server 3 systemctl is-enabled k3s
section active-agent 3 systemctl is-active k3s-agent
section enabled-agent 3 systemctl is-enabled k3s-agent
exit 0
`

// Unit is what systemctl says of a role's unit.
type Unit struct {
	Active  string // as is-active says
	Enabled bool   // whether it starts at the next boot
}

// Halted says whether the unit does not run and will not by itself.
func (u Unit) Halted() bool {
	return slices.Contains([]string{"inactive", "failed", "unknown"}, u.Active) && !u.Enabled
}

// ParseUnits reads what UnitsScript printed for a role.
func ParseUnits(out []byte, r Role) (Unit, error) {
	sections := ParseSections(out)
	active, reason := read(sections, "active-"+string(r))
	if reason == "" && !slices.Contains(unitStates, active) {
		reason = "systemctl said something else" + lastLine(active)
	}
	enabled, why := read(sections, "enabled-"+string(r))
	if reason == "" {
		reason = why
	}
	if reason != "" {
		return Unit{}, fmt.Errorf("unit %s: %s", r.Unit(), reason)
	}
	// A unit that is not there is told on the other stream, in a sentence.
	return Unit{Active: active, Enabled: strings.HasPrefix(enabled, "enabled")}, nil
}

// WipeScript is CleanScript, and the end of what k3s's uninstall script leaves: the
// Node's password, with which a guest would claim the Node that it was. Only for a
// guest whose Node and password Secret are gone from the cluster.
func WipeScript(r Role) string {
	script := strings.TrimSuffix(CleanScript(r), lookForFiles+"exit 0\n")
	return script + "section password 3 rm -f " + NodePass + "\n" + lookForFiles + "exit 0\n"
}

// ParseWiped reads what WipeScript printed.
func ParseWiped(out []byte) Stopped {
	s := ParseStopped(out, true)
	if !s.Cleaned {
		return s
	}
	switch f := readFiles(ParseSections(out))[NodePass]; {
	case !f.Known:
		s.Cleaned, s.Reason = false, f.Reason
	case f.Value:
		s.Cleaned, s.Reason = false, NodePass+" is still there"
	}
	return s
}

// StorageDir holds the volumes that k3s's local-path provisioner gives to pods:
// the uninstall script removes them too.
const StorageDir = "/var/lib/rancher/k3s/storage"

// LocalVolumesScript lists them, and nothing when there are none.
const LocalVolumesScript = kubectl + "if [ -d " + StorageDir + " ]; then ls -A " + StorageDir + "; fi\n"

// secretWords are parts of the names of config.yaml's keys that hold a secret or
// an address with one in it.
var secretWords = []string{"token", "-secret", "password", "access-key", "vpn-auth", "datastore-endpoint"}

func secretKey(key string) bool {
	key = strings.ToLower(key)
	return slices.ContainsFunc(secretWords, func(w string) bool { return strings.Contains(key, w) })
}

// configSection prints config.yaml without its secrets, which so never leave the
// guest. What does not look like a plain key at the left edge is left out with all
// that follows it: a mapping in braces could hold anything.
var configSection = `section config 2 sh -c 'drop=1
while IFS= read -r line || [ -n "$line" ]; do
	case $line in
	\#*) continue ;;
	[A-Za-z]*:*)
		drop=
		case ${line%%:*} in *[Tt]oken*|*-[Ss]ecret*|*[Pp]assword*|*access-key*|*vpn-auth*|*datastore-endpoint*) drop=1 ;; esac ;;
	" "*|-*) ;;
	*) drop=1 ;;
	esac
	[ -n "$drop" ] || printf "%s\n" "$line"
done <` + ConfigPath + `'
`

// readConfig gives the config as YAML with its keys in order, so that two servers'
// can be compared. It looks for secrets once more.
func readConfig(sections map[string]Section) Reading[string] {
	text, reason := read(sections, "config", 0)
	if reason != "" {
		return unknown[string](reason)
	}
	var m map[string]any
	if err := yaml.Unmarshal([]byte(text), &m); err != nil {
		return unknown[string]("config: it is not YAML") // the cause would quote it
	}
	for key := range m {
		if secretKey(key) {
			delete(m, key)
		}
	}
	if len(m) == 0 {
		return known("")
	}
	out, err := yaml.Marshal(m)
	if err != nil {
		return unknown[string]("config: it cannot be written again")
	}
	return known(string(out))
}
