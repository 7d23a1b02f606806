package cli

import (
	"bytes"
	"context"
	"errors"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/homeiac/homelab/cli/remote"
	"github.com/homeiac/homelab/internal/pause"
)

const (
	// packageFolder is where packages lie on a host: an upgrade can go back to them.
	packageFolder = "/var/cache/homelab"
	// dpkgLimit bounds dpkg with its scripts: a service that stops waits for a qm at work.
	dpkgLimit = 6 * time.Minute
	// putLimit bounds the sending of a package.
	putLimit = 10 * time.Minute
	// lockLimit is how long another dpkg may be waited for, and lockPoll how often is
	// tried.
	lockLimit = 2 * time.Minute
	lockPoll  = 3 * time.Second
)

// keptAt is where the package of a version lies on a host.
func keptAt(version string) string {
	return path.Join(packageFolder, "homelab_"+version+"_amd64.deb")
}

// putPackage puts a package beside those that are kept.
func (r rootOn) putPackage(ctx context.Context, p debPackage) error {
	if _, err := r.look(ctx, "mkdir", "-p", "-m", "755", packageFolder); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, putLimit)
	defer cancel()
	return r.Put(ctx, keptAt(p.version), 0o644, bytes.NewReader(p.data), int64(len(p.data)))
}

// keeps says whether the package of a version lies on the host, and is what its name
// says.
func (r rootOn) keeps(ctx context.Context, version string) (bool, error) {
	out, err := r.look(ctx, "dpkg-deb", "--field", keptAt(version), "Package", "Version")
	if failed(err) {
		return false, nil
	}
	return err == nil && out == "Package: homelab\nVersion: "+version, err
}

// dropPackages removes packages that are kept and that nobody would go back to.
func (r rootOn) dropPackages(ctx context.Context, but ...string) error {
	out, err := r.look(ctx, "ls", "-A", "--", packageFolder+"/")
	if err != nil {
		return err
	}
	var files []string
	for _, name := range strings.Fields(out) {
		m := packageName.FindStringSubmatch(name)
		if m != nil && !slices.Contains(but, m[1]) {
			files = append(files, keptAt(m[1]))
		}
	}
	if len(files) == 0 {
		return nil
	}
	_, err = r.look(ctx, append([]string{"rm", "-f", "--"}, files...)...)
	return err
}

// dpkgScript goes on when the connection is lost that it is told over: a dpkg that is
// ended in the middle leaves half a package. What people changed in configuration files
// stays.
const dpkgScript = `trap '' HUP PIPE
log=$(mktemp) || exit 1
DEBIAN_FRONTEND=noninteractive dpkg --force-confdef --force-confold "$@" >"$log" 2>&1 </dev/null
code=$?
cat "$log"
rm -f -- "$log"
exit $code`

// dpkg runs dpkg and gives what it says. Another one that is at work, as unattended
// upgrades are, is waited for.
func (r rootOn) dpkg(ctx context.Context, args ...string) (string, error) {
	patient, cancel := context.WithTimeout(ctx, lockLimit)
	defer cancel()
	for {
		out, err := r.do(ctx, dpkgLimit, nil, append([]string{"sh", "-c", dpkgScript, "dpkg"}, args...)...)
		var exit *remote.ExitError
		if errors.As(err, &exit) {
			exit.Program = "dpkg " + args[0]
		}
		if !failed(err) || !strings.Contains(err.Error(), "lock") || !strings.Contains(err.Error(), "another process") || !pause.For(patient, lockPoll) {
			return out, err
		}
	}
}
