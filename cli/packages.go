package cli

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
	// sharedPackages is where a package of packages may put them.
	sharedPackages = "/usr/share/homelab"
	// largestPackage bounds what is read as a package, in bytes.
	largestPackage = 512 << 20
)

// packageName is the file name of agent and controller for the one architecture that
// Proxmox VE runs on, with its version.
var packageName = regexp.MustCompile(`^homelab_([0-9][A-Za-z0-9.+~]*)_amd64\.deb$`)

// debPackage is the package with agent and controller that belongs to this hlctl.
type debPackage struct {
	version string
	data    []byte
}

// packageWanted is which package it is, before its file is read: nobody needs the file
// for hosts that have it installed.
type packageWanted struct {
	name, version, sum, dir string
	file                    *debPackage // nil before it is read
}

// wantedPackage is the package that was built with this hlctl, or the one that the
// person names by its checksum. dir is where it lies, empty for the usual places.
func wantedPackage(dir, checksum string) (packageWanted, error) {
	return wantedOf(version.Packages(), dir, checksum)
}

func wantedOf(built map[string]string, dir, checksum string) (packageWanted, error) {
	if checksum != "" {
		sum := strings.ToLower(checksum)
		if raw, err := hex.DecodeString(sum); err != nil || len(raw) != sha256.Size {
			return packageWanted{}, rpc.Errorf(rpc.ErrInvalid, "--checksum %q is no SHA-256 as sha256sum prints it: 64 characters", checksum)
		}
		if dir == "" {
			return packageWanted{}, rpc.Errorf(rpc.ErrInvalid, "--checksum needs --from DIR too: the folder with that package")
		}
		w := packageWanted{sum: sum, dir: dir}
		return w, w.findBySum()
	}
	for name, sum := range built {
		if m := packageName.FindStringSubmatch(name); m != nil {
			return packageWanted{name: name, version: m[1], sum: sum, dir: dir}, nil
		}
	}
	return packageWanted{}, rpc.Errorf(rpc.ErrUnsupported, `this hlctl (%s) was built without packages, and knows no checksum to check one against
  take hlctl from a release, or from dist/ after make dist
  or say which package you trust: --from DIR --checksum SHA256`, version.String())
}

// read gives the package. What is not the file that is wanted is refused.
func (w *packageWanted) read() (debPackage, error) {
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
			return debPackage{}, err
		}
		if sum := sumOf(data); sum != w.sum {
			return debPackage{}, rpc.Errorf(rpc.ErrRefused, "%s is not the package that was built with this hlctl: its SHA-256 is %s and should be %s; fetch it again",
				filepath.Join(dir, w.name), sum, w.sum)
		}
		w.file = &debPackage{w.version, data}
		return *w.file, nil
	}
	return debPackage{}, rpc.Errorf(rpc.ErrNotFound, "the package %s is not in %s: put it there, or say where it is with --from DIR", w.name, strings.Join(dirs, " or "))
}

// findBySum finds the package with the checksum among those of the folder.
func (w *packageWanted) findBySum() error {
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		return err
	}
	var others []string
	for _, e := range entries {
		m := packageName.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		data, err := readPackage(filepath.Join(w.dir, e.Name()))
		if err != nil {
			return err
		}
		sum := sumOf(data)
		if sum == w.sum {
			w.name, w.version, w.file = e.Name(), m[1], &debPackage{m[1], data}
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
		return []string{sharedPackages}
	}
	return []string{filepath.Dir(program), sharedPackages}
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

func sumOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
