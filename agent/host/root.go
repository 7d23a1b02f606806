package host

import "golang.org/x/sys/unix"

// RootSpace is how many bytes of the root file system are used, and how many there
// are, as df counts them; ok is whether it could be asked.
func (h *Host) RootSpace() (used, all int64, ok bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(h.root, &st); err != nil {
		return 0, 0, false
	}
	u := int64(st.Blocks-st.Bfree) * st.Bsize     //nolint:gosec // a file system has less than 2^63 bytes
	return u, u + int64(st.Bavail)*st.Bsize, true //nolint:gosec // the same
}

// OnRoot says whether a folder of the host lies on its root file system; one that
// cannot be looked at is taken to.
func (h *Host) OnRoot(path string) bool {
	var root, at unix.Stat_t
	if unix.Stat(h.root, &root) != nil || unix.Stat(h.Path(path), &at) != nil {
		return true
	}
	return root.Dev == at.Dev
}
