// Package version tells which build of the product runs.
package version

import (
	"runtime/debug"
	"strings"
)

// version and packages are set at build time with -ldflags -X.
var version, packages string

// String is the build's version, as git describes it, or what Go knows of the
// module when it was built without the Makefile.
func String() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return strings.Trim(info.Main.Version, "()")
	}
	return "devel"
}

// Packages are the SHA-256 sums, in hex, of the packages that were built together with
// this program, by file name; none in a build without the packages.
func Packages() map[string]string {
	sums := make(map[string]string)
	for one := range strings.SplitSeq(packages, ",") {
		if name, sum, ok := strings.Cut(one, "="); ok {
			sums[name] = sum
		}
	}
	return sums
}
