package shell

import (
	"bufio"
	"bytes"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/homeiac/homelab/lab/guest/tree"
)

// device is the file information of /dev/null and its like.
type device string

func (d device) Name() string     { return string(d) }
func (device) Size() int64        { return 0 }
func (device) Mode() fs.FileMode  { return fs.ModeDevice | fs.ModeCharDevice | 0o666 }
func (device) ModTime() time.Time { return time.Time{} }
func (device) IsDir() bool        { return false }
func (device) Sys() any           { return nil }

// interruptRead ends a read in progress on a pipe.
func interruptRead(f *os.File) {
	// Not every file can: a regular file never blocks anyway.
	_ = f.SetReadDeadline(time.Unix(1, 0))
}

func resumeRead(f *os.File) { _ = f.SetReadDeadline(time.Time{}) }

// LookupUser finds a user by name, or by number, in the guest's /etc/passwd.
func LookupUser(t *tree.Tree, name string) (User, bool) {
	b, err := t.Super().ReadFile("/etc/passwd")
	if err != nil {
		return User{}, false
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		f := strings.Split(sc.Text(), ":")
		if len(f) < 7 || f[0] != name && f[2] != name {
			continue
		}
		uid, err1 := strconv.Atoi(f[2])
		gid, err2 := strconv.Atoi(f[3])
		if err1 != nil || err2 != nil {
			continue
		}
		return User{Name: f[0], UID: uid, GID: gid, Home: f[5]}, true
	}
	return User{}, false
}

// LookupGroup gives a group's number by name or number.
func LookupGroup(t *tree.Tree, name string) (int, bool) {
	b, err := t.Super().ReadFile("/etc/group")
	if err != nil {
		return 0, false
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		f := strings.Split(sc.Text(), ":")
		if len(f) < 3 || f[0] != name && f[2] != name {
			continue
		}
		gid, err := strconv.Atoi(f[2])
		return gid, err == nil
	}
	return 0, false
}
