package k3s

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// A Version is a k3s release, v1.35.0+k3s1.
type Version struct {
	Major, Minor, Patch int
	Pre                 string // rc1, "" for a release
	K3s                 int    // the number after +k3s
}

var versionPattern = regexp.MustCompile(`^v(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})(?:-([0-9A-Za-z.]{1,32}))?\+k3s([1-9]\d{0,5})$`)

// ParseVersion reads a full k3s version; a bare Kubernetes version or a channel
// name (stable, v1.35) is an error, because they are not pinned.
func ParseVersion(s string) (Version, error) {
	m := versionPattern.FindStringSubmatch(s)
	if m == nil {
		return Version{}, fmt.Errorf("%q is not a k3s version (as v1.35.0+k3s1)", s)
	}
	var v Version
	// Atoi cannot fail: the pattern allows six digits at most.
	v.Major, _ = strconv.Atoi(m[1])
	v.Minor, _ = strconv.Atoi(m[2])
	v.Patch, _ = strconv.Atoi(m[3])
	v.Pre = m[4]
	v.K3s, _ = strconv.Atoi(m[5])
	return v, nil
}

// ParseVersionOutput reads what `k3s --version` prints: the third word of the
// first line.
func ParseVersionOutput(out string) (Version, error) {
	first, _, _ := strings.Cut(out, "\n")
	words := strings.Fields(first)
	if len(words) < 3 || words[0] != "k3s" || words[1] != "version" {
		return Version{}, fmt.Errorf("%q is not the output of k3s --version", first)
	}
	return ParseVersion(words[2])
}

// String is the version as k3s writes it.
func (v Version) String() string {
	pre := ""
	if v.Pre != "" {
		pre = "-" + v.Pre
	}
	return fmt.Sprintf("v%d.%d.%d%s+k3s%d", v.Major, v.Minor, v.Patch, pre, v.K3s)
}

// Compare orders versions by age: -1 when v is older than o, 0, or 1. A
// pre-release is older than its release.
func (v Version) Compare(o Version) int {
	return cmp.Or(
		cmp.Compare(v.Major, o.Major),
		cmp.Compare(v.Minor, o.Minor),
		cmp.Compare(v.Patch, o.Patch),
		comparePre(v.Pre, o.Pre),
		cmp.Compare(v.K3s, o.K3s),
	)
}

// comparePre orders rc2 before rc10, and any pre-release before none.
func comparePre(a, b string) int {
	switch {
	case a == b:
		return 0
	case a == "":
		return 1
	case b == "":
		return -1
	}
	aWord, aNumber := splitPre(a)
	bWord, bNumber := splitPre(b)
	return cmp.Or(cmp.Compare(aWord, bWord), cmp.Compare(aNumber, bNumber), cmp.Compare(a, b))
}

func splitPre(s string) (word string, number int) {
	word = strings.TrimRight(s, "0123456789")
	number, _ = strconv.Atoi(s[len(word):]) // out of range: the largest int, which orders well enough
	return word, number
}

// CanJoin says whether a guest that wants version want may join a cluster whose
// oldest server runs cluster, and if not why. A server joins with the very
// same version; an agent may lag by one minor and never leads (k3s #12819: an
// agent two minors behind could not start pods, whatever the policy says).
func CanJoin(cluster, want Version, role Role) (ok bool, reason string) {
	switch {
	case want == cluster:
		return true, ""
	case role != Agent:
		return false, fmt.Sprintf("the cluster runs %s, a server joins with the same version and not with %s", cluster, want)
	case want.Compare(cluster) > 0:
		return false, fmt.Sprintf("an agent of %s is newer than the cluster's servers (%s)", want, cluster)
	case want.Major != cluster.Major || cluster.Minor-want.Minor > 1:
		return false, fmt.Sprintf("an agent of %s is more than one minor older than the cluster's servers (%s)", want, cluster)
	}
	return true, ""
}

// CanUpgrade says whether servers may go from one version to another, and if
// not why: never down, and never over a minor.
func CanUpgrade(from, to Version) (ok bool, reason string) {
	switch {
	case to.Compare(from) < 0:
		return false, fmt.Sprintf("%s is older than %s: etcd does not go back without a restore", to, from)
	case to.Major != from.Major:
		return false, fmt.Sprintf("%s to %s changes the major version", from, to)
	case to.Minor-from.Minor > 1:
		return false, fmt.Sprintf("%s to %s skips a minor: go to v%d.%d first", from, to, from.Major, from.Minor+1)
	}
	return true, ""
}
