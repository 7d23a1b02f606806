package system

import (
	"bytes"
	"fmt"
	"io/fs"
	"strings"

	"github.com/homeiac/homelab/lab/guest/shell"
)

func modeOf(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	if m&0o1000 != 0 {
		mode |= fs.ModeSticky
	}
	return mode
}

// addUser makes a user with a home; one that is there already is given as it is.
func (o *OS) addUser(name, home string) (shell.User, error) {
	if u, ok := shell.LookupUser(o.tree, name); ok {
		return u, nil
	}
	if name == "" || strings.ContainsAny(name, ":/ \n") {
		return shell.User{}, fmt.Errorf("useradd: invalid user name '%s'", name)
	}
	v := o.FS()
	passwd, err := v.ReadFile("/etc/passwd")
	if err != nil {
		return shell.User{}, err
	}
	uid := 1000
	for bytes.Contains(passwd, fmt.Appendf(nil, ":x:%d:", uid)) {
		uid++
	}
	if home == "" {
		home = "/home/" + name
	}
	u := shell.User{Name: name, UID: uid, GID: uid, Home: home}
	passwd = fmt.Appendf(passwd, "%s:x:%d:%d::%s:/bin/bash\n", name, uid, uid, home)
	if err := v.WriteFile("/etc/passwd", passwd, 0o644); err != nil {
		return u, err
	}
	group, err := v.ReadFile("/etc/group")
	if err != nil {
		return u, err
	}
	if err := v.WriteFile("/etc/group", fmt.Appendf(group, "%s:x:%d:\n", name, uid), 0o644); err != nil {
		return u, err
	}
	if err := v.MkdirAll(home, 0o755); err != nil {
		return u, err
	}
	if err := v.Chmod(home, 0o750); err != nil {
		return u, err
	}
	return u, v.Chown(home, uid, uid)
}

// authorize adds public keys to a user's authorized_keys.
func (o *OS) authorize(u shell.User, keys []string) error {
	v := o.FS()
	dir := u.Home + "/.ssh"
	if err := v.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var b bytes.Buffer
	if old, err := v.ReadFile(dir + "/authorized_keys"); err == nil {
		b.Write(old)
	}
	for _, k := range keys {
		k = strings.TrimSpace(k)
		if k != "" && !bytes.Contains(b.Bytes(), []byte(k+"\n")) {
			b.WriteString(k + "\n")
		}
	}
	if err := v.Put(dir+"/authorized_keys", b.Bytes(), 0o600); err != nil {
		return err
	}
	if err := v.Chmod(dir, 0o700); err != nil {
		return err
	}
	for _, f := range []string{dir, dir + "/authorized_keys"} {
		if err := v.Chown(f, u.UID, u.GID); err != nil {
			return err
		}
	}
	return nil
}

// maySudo tells whether a user may become root without a password.
func (o *OS) maySudo(u shell.User) bool {
	if u.UID == 0 {
		return true
	}
	es, err := o.FS().ReadDir("/etc/sudoers.d")
	if err != nil {
		return false
	}
	for _, e := range es {
		b, err := o.FS().ReadFile("/etc/sudoers.d/" + e.Name())
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) > 1 && f[0] == u.Name && strings.Contains(line, "NOPASSWD:") && strings.HasSuffix(strings.TrimSpace(line), "ALL") {
				return true
			}
		}
	}
	return false
}

// packages are what apt knows in the lab.
var packages = map[string]map[string]string{
	"qemu-guest-agent": {
		"/usr/sbin/qemu-ga": string(shell.StandIn("qemu-ga")),
		"/usr/lib/systemd/system/qemu-guest-agent.service": `[Unit]
Description=QEMU Guest Agent
BindsTo=dev-virtio\x2dports-org.qemu.guest_agent.0.device

[Service]
ExecStart=-/usr/sbin/qemu-ga
Restart=always
RestartSec=0

[Install]
`,
	},
	"curl": nil, "ca-certificates": nil, "nfs-common": nil, "open-iscsi": nil, "cloud-init": nil, "openssh-server": nil,
	"iptables": nil, "jq": nil, "cryptsetup": nil, "apparmor": nil, "sudo": nil, "systemd": nil, "util-linux": nil,
	"linux-image-generic": nil, "unattended-upgrades": nil, "python3": nil, "socat": nil, "conntrack": nil, "vim": nil,
}

// installPackage is apt-get install of one package.
func (o *OS) installPackage(name string) error {
	files, ok := packages[name]
	if !ok {
		return fmt.Errorf("Unable to locate package %s", name) //nolint:staticcheck // the real text
	}
	for f, text := range files {
		mode := modeOf(0o644)
		if strings.Contains(f, "bin/") {
			mode = 0o755
		}
		if err := o.FS().Put(f, []byte(text), mode); err != nil {
			return err
		}
	}
	status, err := o.FS().ReadFile("/var/lib/dpkg/status")
	if err != nil {
		status = nil
	}
	if bytes.Contains(status, []byte("Package: "+name+"\n")) {
		return nil
	}
	status = fmt.Appendf(status, "Package: %s\nStatus: install ok installed\n\n", name)
	return o.FS().Put("/var/lib/dpkg/status", status, 0o644)
}
