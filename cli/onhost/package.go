// Package onhost is what of ours is on a Proxmox VE host, and how it gets there: by
// root's shell over SSH, dpkg and systemd. It asks nobody and shows nothing; the commands
// of hlctl do.
package onhost

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/version"
)

const (
	// SharedPackages is where a package of packages may put them.
	SharedPackages = "/usr/share/homelab"
	// largestPackage bounds what is read as a package, in bytes.
	largestPackage = 512 << 20
)

// PackageName is the file name of agent and controller for the one architecture that
// Proxmox VE runs on, with its version.
var PackageName = regexp.MustCompile(`^homelab_([0-9][A-Za-z0-9.+~]*)_amd64\.deb$`)

// Package is the package with agent and controller that belongs to this hlctl.
type Package struct {
	Version string
	Data    []byte
}

// Wanted is which package it is, before its file is read: nobody needs the file
// for hosts that have it installed.
type Wanted struct {
	name, Version, sum, dir string
	file                    *Package // nil before it is read
}

// Want is the package that was built with this hlctl, or the one that the
// person names by its checksum. dir is where it lies, empty for the usual places.
func Want(dir, checksum string) (Wanted, error) {
	return wantedOf(version.Packages(), dir, checksum)
}

func wantedOf(built map[string]string, dir, checksum string) (Wanted, error) {
	if checksum != "" {
		sum := strings.ToLower(checksum)
		if raw, err := hex.DecodeString(sum); err != nil || len(raw) != sha256.Size {
			return Wanted{}, rpc.Errorf(rpc.ErrInvalid, "--checksum %q is no SHA-256 as sha256sum prints it: 64 characters", checksum)
		}
		if dir == "" {
			return Wanted{}, rpc.Errorf(rpc.ErrInvalid, "--checksum needs --from DIR too: the folder with that package")
		}
		w := Wanted{sum: sum, dir: dir}
		return w, w.findBySum()
	}
	for name, sum := range built {
		if m := PackageName.FindStringSubmatch(name); m != nil {
			return Wanted{name: name, Version: m[1], sum: sum, dir: dir}, nil
		}
	}
	return Wanted{}, rpc.Errorf(rpc.ErrUnsupported, `this hlctl (%s) was built without packages, and knows no checksum to check one against
  take hlctl from a release, or from dist/ after make dist
  or say which package you trust: --from DIR --checksum SHA256`, version.String())
}

// Read gives the package. What is not the file that is wanted is refused.
func (w *Wanted) Read() (Package, error) {
	if w.file != nil {
		return *w.file, nil
	}
	dirs := []string{w.dir}
	if w.dir == "" {
		dirs = usualPlaces()
	}
	for _, dir := range dirs {
		data, err := readPackage(filepath.Join(dir, w.name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Package{}, err
		}
		if sum := SHA256(data); sum != w.sum {
			return Package{}, rpc.Errorf(rpc.ErrRefused, "%s is not the package that was built with this hlctl: its SHA-256 is %s and should be %s; fetch it again",
				filepath.Join(dir, w.name), sum, w.sum)
		}
		w.file = &Package{w.Version, data}
		return *w.file, nil
	}
	return Package{}, rpc.Errorf(rpc.ErrNotFound, "the package %s is not in %s: put it there, or say where it is with --from DIR", w.name, strings.Join(dirs, " or "))
}

// findBySum finds the package with the checksum among those of the folder.
func (w *Wanted) findBySum() error {
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		return err
	}
	var others []string
	for _, e := range entries {
		m := PackageName.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		data, err := readPackage(filepath.Join(w.dir, e.Name()))
		if err != nil {
			return err
		}
		sum := SHA256(data)
		if sum == w.sum {
			w.name, w.Version, w.file = e.Name(), m[1], &Package{m[1], data}
			return nil
		}
		others = append(others, e.Name()+" has "+sum)
	}
	if len(others) == 0 {
		return rpc.Errorf(rpc.ErrNotFound, "%s holds no homelab_VERSION_amd64.deb", w.dir)
	}
	return rpc.Errorf(rpc.ErrRefused, "no package in %s has the checksum %s: %s", w.dir, w.sum, strings.Join(others, ", "))
}

// usualPlaces are beside hlctl, and where a package may put them.
func usualPlaces() []string {
	program, err := os.Executable()
	if err == nil {
		program, err = filepath.EvalSymlinks(program)
	}
	if err != nil {
		return []string{SharedPackages}
	}
	return []string{filepath.Dir(program), SharedPackages}
}

func readPackage(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, largestPackage+1))
	if err == nil && len(data) > largestPackage {
		err = fmt.Errorf("%s: it is larger than any package of ours", file)
	}
	return data, err
}

// SHA256 is the checksum of a package, as sha256sum prints it.
func SHA256(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
