package onhost

import (
	"bytes"
	"cmp"
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
	// PackageFolder is where packages lie on a host: an upgrade can go back to them.
	PackageFolder = "/var/cache/homelab"
	// dpkgLimit bounds dpkg with its scripts: a service that stops waits for a qm at work.
	dpkgLimit = 6 * time.Minute
	// putLimit bounds the sending of a package.
	putLimit = 10 * time.Minute
	// lockLimit is how long another dpkg may be waited for, and lockPoll how often is
	// tried.
	lockLimit = 2 * time.Minute
	lockPoll  = 3 * time.Second
)

// KeptAt is where the package of a version lies on a host.
func KeptAt(version string) string {
	return path.Join(PackageFolder, "homelab_"+version+"_amd64.deb")
}

// PutPackage puts a package beside those that are kept.
func (r Root) PutPackage(ctx context.Context, p Package) error {
	if _, err := r.Look(ctx, "mkdir", "-p", "-m", "755", PackageFolder); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, putLimit)
	defer cancel()
	return r.Put(ctx, KeptAt(p.Version), 0o644, bytes.NewReader(p.Data), int64(len(p.Data)))
}

// Keeps says whether the package of a version lies on the host, and is what its name
// says.
func (r Root) Keeps(ctx context.Context, version string) (bool, error) {
	out, err := r.Look(ctx, "dpkg-deb", "--field", KeptAt(version), "Package", "Version")
	if Failed(err) {
		return false, nil
	}
	return err == nil && out == "Package: homelab\nVersion: "+version, err
}

// DropPackages removes packages that are kept and that nobody would go back to.
func (r Root) DropPackages(ctx context.Context, but ...string) error {
	out, err := r.Look(ctx, "ls", "-A", "--", PackageFolder+"/")
	if err != nil {
		return err
	}
	var files []string
	for _, name := range strings.Fields(out) {
		m := PackageName.FindStringSubmatch(name)
		if m != nil && !slices.Contains(but, m[1]) {
			files = append(files, KeptAt(m[1]))
		}
	}
	if len(files) == 0 {
		return nil
	}
	_, err = r.Look(ctx, append([]string{"rm", "-f", "--"}, files...)...)
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

// DpkgArgv is the command line with which a host is asked to run dpkg.
func DpkgArgv(args ...string) []string {
	return append([]string{"sh", "-c", dpkgScript, "dpkg"}, args...)
}

// Dpkg runs dpkg and gives what it says, as plain text. Another one that is at work, as unattended
// upgrades are, is waited for.
func (r Root) Dpkg(ctx context.Context, args ...string) (string, error) {
	patient, cancel := context.WithTimeout(ctx, lockLimit)
	defer cancel()
	for {
		out, err := r.Do(ctx, dpkgLimit, nil, DpkgArgv(args...)...)
		var exit *remote.ExitError
		if errors.As(err, &exit) {
			exit.Program = "dpkg " + args[0]
		}
		if !Failed(err) || !strings.Contains(err.Error(), "lock") || !strings.Contains(err.Error(), "another process") || !pause.For(patient, cmp.Or(r.poll, lockPoll)) {
			return clean(out), err
		}
	}
}
