// Package version tells which build of the product runs.
package version

import (
	"runtime/debug"
	"strings"
)

// version is set at build time with -ldflags -X.
var version string

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
