package system

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/homeiac/homelab/lab/guest/shell"
)

const kernelRelease = "6.8.0-88-generic"

// sbin are the tools that live in /usr/sbin.
var sbin = map[string]bool{
	"modprobe": true, "sysctl": true, "swapoff": true, "reboot": true, "poweroff": true, "shutdown": true, "halt": true,
	"sshd": true, "useradd": true, "ip": true,
}

// packaged are tools that an image does not hold until their package is
// installed.
var packaged = map[string]bool{"qemu-ga": true}

// firstBoot fills an empty tree with what the image holds. A tree that was
// filled before is left alone.
func (o *OS) firstBoot() error {
	v := o.FS()
	if _, err := v.Stat("/etc/os-release"); err == nil {
		return nil
	}
	for _, d := range []string{
		"/etc/ssh", "/etc/systemd/system", "/etc/sudoers.d", "/etc/default", "/etc/sysctl.d", "/etc/modules-load.d",
		"/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/usr/lib/systemd/system", "/opt", "/home", "/run",
		"/var/lib/cloud", "/var/log", "/var/cache", "/var/lib/dpkg", "/proc/sys/kernel", "/sys/fs/cgroup", "/dev", "/mnt", "/srv",
	} {
		if err := v.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	for d, mode := range map[string]fs.FileMode{"/tmp": 0o777 | fs.ModeSticky, "/var/tmp": 0o777 | fs.ModeSticky, "/root": 0o700} {
		// Power may have gone in the middle of an earlier first boot.
		if err := v.Mkdir(d, mode); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	for link, to := range map[string]string{
		"/bin": "usr/bin", "/sbin": "usr/sbin", "/lib": "usr/lib", "/var/run": "/run", "/var/lock": "/run",
		"/etc/mtab": "/proc/mounts",
	} {
		if err := v.Symlink(to, link); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	for name, text := range imageFiles {
		if err := v.Put(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, t := range o.Shell.Tools() {
		dir := "/usr/bin"
		if sbin[t] {
			dir = "/usr/sbin"
		}
		if packaged[t] {
			continue
		}
		if err := v.Put(path.Join(dir, t), shell.StandIn(t), 0o755); err != nil {
			return err
		}
	}
	// Last: its presence says that the image is whole.
	return v.Put("/etc/os-release", []byte(osRelease), 0o644)
}

const osRelease = `PRETTY_NAME="Ubuntu 24.04.3 LTS (hl-lab)"
NAME="Ubuntu"
VERSION_ID="24.04"
VERSION="24.04.3 LTS (Noble Numbat)"
VERSION_CODENAME=noble
ID=ubuntu
ID_LIKE=debian
`

var imageFiles = map[string]string{
	"/etc/hostname":        "ubuntu\n",
	"/etc/hosts":           "127.0.0.1 localhost\n",
	"/etc/passwd":          "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
	"/etc/group":           "root:x:0:\nadm:x:4:\nsudo:x:27:\nnogroup:x:65534:\n",
	"/etc/fstab":           "LABEL=cloudimg-rootfs / ext4 discard,commit=30,errors=remount-ro 0 1\n",
	"/etc/ssh/sshd_config": "Include /etc/ssh/sshd_config.d/*.conf\nPasswordAuthentication no\n",
	"/etc/machine-id":      "",
	"/usr/lib/systemd/system/ssh.service": `[Unit]
Description=OpenBSD Secure Shell server
After=network.target auditd.service

[Service]
Type=notify
ExecStart=/usr/sbin/sshd -D
Restart=on-failure
RestartSec=1

[Install]
WantedBy=multi-user.target
`,
}

// writeProc writes what the kernel would show at this boot, and empties /run.
func (o *OS) writeProc() error {
	v := o.FS()
	es, err := v.ReadDir("/run")
	if err != nil {
		return err
	}
	for _, e := range es {
		if err := v.RemoveAll("/run/" + e.Name()); err != nil {
			return err
		}
	}
	if b, err := v.ReadFile("/etc/machine-id"); err == nil && strings.TrimSpace(string(b)) == "" {
		id := make([]byte, 16)
		if _, err := rand.Read(id); err != nil {
			return err
		}
		if err := v.Put("/etc/machine-id", []byte(hex.EncodeToString(id)+"\n"), 0o444); err != nil {
			return err
		}
	}
	mem := o.m.Memory / 1024
	var cpu strings.Builder
	for n := range max(o.m.CPUs, 1) {
		fmt.Fprintf(&cpu, "processor\t: %d\nmodel name\t: hl-lab virtual CPU\n\n", n)
	}
	for name, text := range map[string]string{
		"/proc/meminfo": fmt.Sprintf("MemTotal:       %8d kB\nMemFree:        %8d kB\nMemAvailable:   %8d kB\nSwapTotal:             0 kB\nSwapFree:              0 kB\n",
			mem, mem*6/10, mem*8/10),
		"/proc/cpuinfo":                     cpu.String(),
		"/proc/loadavg":                     "0.00 0.01 0.00 1/120 900\n",
		"/proc/version":                     "Linux version " + kernelRelease + " (hl-lab)\n",
		"/proc/mounts":                      "/dev/sda1 / ext4 rw,relatime 0 0\n",
		"/proc/swaps":                       "Filename\tType\tSize\tUsed\tPriority\n",
		"/proc/modules":                     "",
		"/proc/sys/kernel/random/boot_id":   o.bootID() + "\n",
		"/proc/stat":                        fmt.Sprintf("cpu  100 0 100 1000 0 0 0 0 0 0\nbtime %d\n", o.booted.Unix()),
		"/sys/class/dmi/id/product_uuid":    strings.ToLower(o.m.UUID) + "\n",
		"/sys/class/dmi/id/sys_vendor":      "QEMU\n",
		"/proc/cmdline":                     "BOOT_IMAGE=/vmlinuz root=LABEL=cloudimg-rootfs ro console=tty1 console=ttyS0\n",
		"/run/systemd/system/.keep":         "",
		"/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma misc\n",
	} {
		if err := v.Put(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	// sysctl.d and modules-load.d are read at every boot.
	o.applySysctlFiles()
	o.loadModuleFiles()
	return nil
}

func (o *OS) bootID() string {
	b := o.journal.boot
	return b[:8] + "-" + b[8:12] + "-" + b[12:16] + "-" + b[16:20] + "-" + b[20:]
}

// Uptime is how long the OS has been up.
func (o *OS) Uptime() time.Duration { return time.Since(o.booted) }
