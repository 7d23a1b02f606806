package k3s

import (
	"fmt"
	"strings"
)

// FailureKind names what went wrong with an install or a join.
type FailureKind string

// The kinds. FailureOther is what no rule knows.
const (
	FailureCA            FailureKind = "ca"             // the token is another cluster's
	FailureToken         FailureKind = "token"          // the token was refused
	FailureNodePassword  FailureKind = "node-password"  // a Node of that name is remembered
	FailureDuplicateName FailureKind = "duplicate-name" // an etcd member of that name is there
	FailureLearners      FailureKind = "learners"       // another server is joining
	FailureUnhealthy     FailureKind = "unhealthy"      // the cluster's etcd has no quorum
	FailureRemoved       FailureKind = "removed"        // its own member was removed
	FailureUnreachable   FailureKind = "unreachable"    // the server does not answer
	FailureClock         FailureKind = "clock"          // a certificate that is not yet valid
	FailureDownload      FailureKind = "download"       // the binary was not had
	FailureChecksum      FailureKind = "checksum"       // the binary is another one
	FailureSystem        FailureKind = "system"         // the guest is not fit for k3s
	FailureSetup         FailureKind = "setup"          // the script was called wrongly: our fault
	FailureOther         FailureKind = "other"
)

// Where says whom a Failure is about, for its text; Server may be "".
type Where struct {
	Guest  string // the guest that joins, as the Spec calls it
	Node   string // its node name
	Server string // a guest that is a healthy server
}

// A Failure is why an install or join did not succeed, for people.
type Failure struct {
	Kind   FailureKind
	Reason string // plain words
	Line   string // the line that says so, as it was printed; "" when there is none
	Next   string // what to type next
}

// rule finds one failure by a text of k3s or its install script.
type rule struct {
	texts  []string // any of them, without case
	kind   FailureKind
	reason string
	next   string // {guest}, {node} and {server} are put in
}

const (
	nextNode   = "hlctl exec {server} -- sudo k3s kubectl get node {node}"
	nextLogs   = "hlctl exec {guest} -- sudo journalctl -u k3s -u k3s-agent -n 100 --no-pager"
	nextStatus = "hlctl k3s status"
	nextMember = "hlctl k3s members"
)

// rules are in the order of how much they say: an agent's journal repeats
// "server is not ready" around the real reason.
var rules = []rule{
	{[]string{"token ca hash does not match the cluster ca certificate hash"}, FailureCA,
		"the token belongs to another cluster than the one that answered", nextStatus},
	{[]string{"node password rejected"}, FailureNodePassword,
		"the cluster remembers another guest of the name {node}: its Node (and the password kept with it) must go first", nextNode},
	{[]string{"duplicate node name found"}, FailureDuplicateName,
		"etcd still has a member of the name {node}: it must be removed first", nextMember},
	{[]string{"too many learner members"}, FailureLearners,
		"another server is joining: servers join one at a time", nextMember},
	{[]string{"etcdserver: unhealthy cluster", "etcdserver: no leader", "etcdserver: rpc not supported for learner"}, FailureUnhealthy,
		"the cluster's etcd is not healthy: a stale member or a lost quorum", nextMember},
	{[]string{"this member has been permanently removed from the cluster", "this node has been removed from the cluster", "the member has been permanently removed"}, FailureRemoved,
		"its etcd member was removed while it was running", nextMember},
	{[]string{"certificate has expired or is not yet valid", "x509: certificate is not yet valid"}, FailureClock,
		"a certificate is not valid at this time: the clocks differ", "hlctl exec {guest} -- date"},
	{[]string{"401 unauthorized", "403 forbidden", "not authorized", "invalid token format", "failed to validate token"}, FailureToken,
		"the token was refused", nextStatus},
	{[]string{"download sha256 does not match"}, FailureChecksum,
		"the downloaded k3s is not the one that its checksum names", "hlctl apply -f homelab.yaml"},
	{[]string{"can not find curl or wget for downloading files"}, FailureSystem,
		"the guest has neither curl nor wget: put one into its image, or give k3s.source a binary", "hlctl validate -f homelab.yaml"},
	{[]string{"[error]  download failed", "could not resolve host", "failed to download"}, FailureDownload,
		"k3s could not be downloaded: the guest has no way out, or the version does not exist", "hlctl exec {guest} -- curl -sSI https://github.com/k3s-io/k3s/releases"},
	{[]string{"can not find systemd or openrc"}, FailureSystem, "the guest has neither systemd nor openrc", nextLogs},
	{[]string{"unsupported architecture"}, FailureSystem, "k3s does not exist for the guest's architecture", nextLogs},
	{[]string{"no default routes found", "unable to select an ip from default routes"}, FailureSystem,
		"the guest has no default route", "hlctl exec {guest} -- ip route"},
	{[]string{"executable k3s binary not found at"}, FailureSetup,
		"the k3s binary was to be there already and is not", "hlctl exec {guest} -- ls -l /usr/local/bin"},
	{[]string{"only https:// urls are supported for k3s_url", "defaulted k3s exec command to 'agent'", "invalid characters for system name"}, FailureSetup,
		"the install script was called in a way it refuses", nextLogs},
	// Every etcd that ends says so, not only one that was removed.
	{[]string{"etcdserver: server stopped"}, FailureUnhealthy,
		"its etcd ended", nextLogs},
	{[]string{"server is not ready", "connection refused", "no route to host", "i/o timeout", "context deadline exceeded", "failed to get ca certs"}, FailureUnreachable,
		"the server it joins through does not answer", nextStatus},
}

// Classify finds in what the install script and the unit's journal printed why
// a join failed. Of several lines by the same rule the last counts. What no
// rule knows is FailureOther with the last line that looks like an error.
func Classify(text string, w Where) Failure {
	lines := strings.Split(text, "\n")
	lower := make([]string, len(lines))
	for i, line := range lines {
		lower[i] = strings.ToLower(line)
	}
	for _, r := range rules {
		for i := len(lines) - 1; i >= 0; i-- {
			for _, t := range r.texts {
				if strings.Contains(lower[i], t) {
					return Failure{Kind: r.kind, Reason: w.fill(r.reason), Line: clip(lines[i]), Next: w.fill(r.next)}
				}
			}
		}
	}
	f := Failure{Kind: FailureOther, Reason: "k3s did not come up, for a reason that is not known here", Next: w.fill(nextLogs)}
	last := ""
	for i := len(lines) - 1; i >= 0 && f.Line == ""; i-- {
		if last == "" {
			last = clip(lines[i])
		}
		for _, sign := range []string{"[error]", "level=fatal", "level=error", "fatal", "error"} {
			if strings.Contains(lower[i], sign) {
				f.Line = clip(lines[i])
				break
			}
		}
	}
	if f.Line == "" {
		f.Line = last
	}
	return f
}

// Error is the failure as a sentence with what to type next.
func (f Failure) Error() string {
	text := f.Reason
	if f.Line != "" {
		text += "\n  " + f.Line
	}
	return fmt.Sprintf("%s\n  next: %s", text, f.Next)
}

func (w Where) fill(s string) string {
	server := w.Server
	if server == "" {
		server = "SERVER"
	}
	return strings.NewReplacer("{guest}", w.Guest, "{node}", w.Node, "{server}", server).Replace(s)
}

// clip keeps a line printable: at most 300 characters, and no token in it.
func clip(line string) string {
	line = maskTokens(strings.TrimSpace(line))
	if runes := []rune(line); len(runes) > 300 {
		return string(runes[:300]) + "…"
	}
	return line
}

// maskTokens hides full tokens; k3s itself does not print them, a proxy's or
// a curious user's script may.
func maskTokens(s string) string {
	for at := 0; ; {
		i := strings.Index(s[at:], "K10")
		if i < 0 {
			return s
		}
		at += i
		end := at
		for end < len(s) && !strings.ContainsRune(" \t\"'`,;", rune(s[end])) {
			end++
		}
		if strings.Contains(s[at:end], "::") {
			s = s[:at] + hidden + s[end:]
		}
		at += len(hidden)
		if at > len(s) {
			return s
		}
	}
}
