package pve

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// prepare brings the world to a record's precondition where no record before
// it did. The numbers are the records'.
func (w *replayer) prepare(r record) {
	w.Helper()
	n := r.number()
	switch {
	case n >= 37 && n <= 91, n == 137, n == 145, n == 147:
		w.forget("101")
	}
	if setup, ok := setups[n]; ok {
		setup(w, r)
	}
}

// forget removes a VM with everything of it.
func (w *replayer) forget(vmids ...string) {
	w.Helper()
	for _, id := range vmids {
		w.halt(id)
		_ = os.Remove(w.confPath(id))
		stores, _ := w.storages()
		for _, s := range stores {
			_ = os.RemoveAll(w.path(s.base(), "images", id))
		}
	}
	if err := Refresh(w.pmxcfs()); err != nil {
		w.Fatal(err)
	}
}

// halt kills a VM's kvm and cleans up after it.
func (w *replayer) halt(vmid string) {
	w.signal(vmid, syscall.SIGKILL)
	_ = w.removeRunFiles(vmid)
}

// signal kills a VM's kvm and waits until it is gone.
func (w *replayer) signal(vmid string, sig syscall.Signal) {
	pid := w.running(vmid)
	if pid == 0 {
		return
	}
	_ = w.terminate(pid, sig)
	if sig == syscall.SIGSTOP {
		return
	}
	for deadline := time.Now().Add(10 * time.Second); alive(pid) && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
}

// edit changes a configuration by hand.
func (w *replayer) edit(vmid string, change func(*conf)) {
	w.Helper()
	c := parseConf(vmid, []byte(w.conf(vmid)))
	change(c)
	w.put(vmid, c.format())
}

// hold takes the VM's flock until the record is over.
func (w *replayer) hold(path string) {
	w.Helper()
	unlock, err := lockFile(w.path(path))
	if err != nil {
		w.Fatal(err)
	}
	w.release = unlock
}

// canned gives the guest agent of the stand-in an answer to a command.
func (w *replayer) canned(command, answer string) {
	w.write("/tmp/agent/"+command+".json", answer)
}

func (w *replayer) setStorage(name string, change func(*StorageConfig)) {
	w.Helper()
	h, err := Open(w.Host.dir)
	if err != nil {
		w.Fatal(err)
	}
	err = h.Update(func(c *HostConfig) {
		for i := range c.Storages {
			if c.Storages[i].Name == name {
				change(&c.Storages[i])
				return
			}
		}
		c.Storages = append(c.Storages, StorageConfig{Name: name, Type: "dir"})
		change(&c.Storages[len(c.Storages)-1])
	})
	if err != nil {
		w.Fatal(err)
	}
	w.cfg = h.cfg
}

func (w *replayer) config(change func(*HostConfig)) {
	w.Helper()
	h, err := Open(w.Host.dir)
	if err == nil {
		err = h.Update(change)
	}
	if err != nil {
		w.Fatal(err)
	}
	w.cfg = h.cfg
}

type setup = func(w *replayer, r record)

// do is a setup of commands.
func do(lines ...string) setup {
	return func(w *replayer, _ record) {
		w.Helper()
		for _, line := range lines {
			w.must(strings.Fields(line)...)
		}
	}
}

func all(list ...setup) setup {
	return func(w *replayer, r record) {
		w.Helper()
		for _, s := range list {
			s(w, r)
		}
	}
}

// itself places the configuration that the record shows: it changes nothing.
func itself(w *replayer, r record) { w.put(r.vmid(), *r.After.Conf) }

// shown places the configuration that the record prints.
func shown(w *replayer, r record) {
	var b strings.Builder
	for line := range strings.Lines(r.Stdout) {
		if d, ok := strings.CutPrefix(line, "description: "); ok {
			line = "#" + strings.ReplaceAll(d, "%0A", "\n#")
		}
		b.WriteString(line)
	}
	w.put(r.vmid(), b.String())
}

func forget(vmids ...string) setup { return func(w *replayer, _ record) { w.forget(vmids...) } }
func halt(vmid string) setup       { return func(w *replayer, _ record) { w.halt(vmid) } }

func flock(vmid string) setup {
	return func(w *replayer, _ record) { w.hold("var/lock/qemu-server/lock-" + vmid + ".conf") }
}

// busyQMP is another client at a VM's QMP socket.
func busyQMP(w *replayer, _ record) {
	c, err := dialSocket(w.runFile("120", "qmp"), time.Second)
	if err != nil {
		w.Fatal(err)
	}
	w.release = func() { c.Close() }
	_, _ = c.Read(make([]byte, 10)) // the greeting: it is our turn
}

func locked(vmid, lock string) setup {
	return func(w *replayer, _ record) {
		w.edit(vmid, func(c *conf) {
			if c.main["lock"] = lock; lock == "" {
				delete(c.main, "lock")
			}
		})
	}
}

// answers has the agent give what the record shows.
func answers(command string) setup {
	return func(w *replayer, r record) { w.canned(command, r.Stdout) }
}

const (
	make110 = "qm create 110 --name tpl --memory 256 --agent 1 --scsihw virtio-scsi-pci --serial0 socket --boot order=scsi0 --net0 virtio,bridge=vmbr0 --ide2 local:cloudinit --scsi0 local:0,import-from=/root/src/src.raw,format=qcow2"
	make120 = "qm create 120 --name alive --memory 256 --agent 1 --scsihw virtio-scsi-pci --serial0 socket --boot order=scsi0 --net0 virtio,bridge=vmbr0 --ide2 local:cloudinit --scsi0 local:0,import-from=/root/src/src.raw,format=qcow2"
	make121 = "qm create 121 --name deaf --memory 256 --scsihw virtio-scsi-pci --serial0 socket --boot order=scsi0 --net0 virtio,bridge=vmbr0 --scsi0 local:0,import-from=/root/src/src.raw"
	make122 = "qm create 122 --name plain --memory 64 --net0 virtio,bridge=vmbr0"
)

func fails123(options string) setup {
	return all(forget("123"), do("qm create 123 --name f --memory 64 "+options))
}

// vm100 is VM 100 as record 013 left it, without disks.
func vm100(w *replayer, _ record) {
	w.edit("100", func(c *conf) {
		for k := range c.main {
			if unusedKey.MatchString(k) || isDrive(k) {
				delete(c.main, k)
			}
		}
	})
	_ = os.RemoveAll(w.path("var/lib/vz/images/100"))
}

// mount makes a storage that stands on a mount point, mounted or not.
func mount(on bool) setup {
	return func(w *replayer, _ record) {
		w.config(func(c *HostConfig) {
			if c.Mounts = nil; on {
				c.Mounts = []string{"/mnt/offline"}
			}
		})
	}
}

func members(quorate bool) setup {
	return func(w *replayer, _ record) {
		if err := SetMembers(w.pmxcfs(), nil, quorate); err != nil {
			w.Fatal(err)
		}
	}
}

var setups = map[int]setup{
	35: forget("999999999"),
	92: func(w *replayer, _ record) {
		w.write("/var/lib/vz/template/iso/small.iso", strings.Repeat("\x00", 1<<20))
		w.write("/var/lib/vz/snippets/x.yaml", "#cloud-config\nhostname: fromsnippet\n")
	},
	145: do("pvesm add dir isoonly --path /mnt/isoonly --content iso"),
	146: func(w *replayer, r record) {
		w.must("pvesm", "remove", "isoonly")
		w.setStorage("small", func(s *StorageConfig) { s.TotalBytes = 24 << 20 })
		w.must("pvesm", "add", "dir", "small", "--path", "/mnt/small", "--content", "images")
	},
	149: all(forget("101"), do("qm create 101 --name x")),
	150: func(w *replayer, _ record) {
		w.setStorage("small", func(s *StorageConfig) { s.ForeignBytes = 24 << 20 })
	},
	153: all(forget("101"), do("pvesm remove small")),
	162: func(w *replayer, _ record) { w.Chdir(w.path("/root/src")) },
	163: func(w *replayer, _ record) { w.Chdir("/") },
	167: vm100,
	174: func(w *replayer, _ record) {
		data, _ := os.ReadFile(w.path("/root/src/src.qcow2"))
		w.write("/var/lib/vz/import/src.qcow2", string(data))
	},
	212: do("qm set 100 --delete cicustom"),
	230: do("qm set 100 --delete args"),
	237: do("qm set 100 --protection 0"),
	257: locked("100", "create"),
	260: locked("100", ""),
	261: all(forget("100"), do(make110)),
	286: do("qm create 113 --name rawvm --scsi0 local:1"),
	287: all(forget("112", "113"), do("qm delsnapshot 110 s2")),
	304: forget("111", "115", "116", "117"),
	306: do("qm create 118 --name unref --scsi0 local:1", "pvesm alloc local 118 vm-118-disk-9.qcow2 1G"),
	307: do("qm create 118 --name unref --scsi0 local:1"),
	309: func(w *replayer, r record) {
		w.must("qm", "create", "119", "--scsi0", "local:1")
		_ = os.Remove(w.path("var/lib/vz/images/119/vm-119-disk-0.raw"))
	},
	310: do(make120, make121, make122),
	324: func(w *replayer, _ record) { w.canned("mute", "") },
	325: func(w *replayer, _ record) { _ = os.Remove(w.path("/tmp/agent/mute.json")) },
	337: busyQMP, 338: busyQMP,
	341: answers("guest-info"), 342: answers("guest-get-osinfo"), 343: answers("guest-network-get-interfaces"),
	344: answers("guest-get-host-name"), 345: answers("guest-get-time"),
	356: func(w *replayer, r record) {
		var b strings.Builder
		for line := range strings.Lines(r.Stdout) {
			if cells := strings.Split(line, "│"); len(cells) == 4 && strings.TrimSpace(cells[1]) != "key" {
				b.WriteString(strings.TrimSpace(cells[2]) + "\n")
			}
		}
		w.write("/tmp/agent/file", b.String())
	},
	394: all(halt("120"), locked("120", "suspended")),
	395: all(forget("120"), do(make120, "qm start 120", "qm snapshot 120 live")),
	418: do("qm set 120 --agent 0", "qm start 120"),
	420: do("qm start 121"),
	426: do("qm set 121 --agent 1", "qm start 121"),
	431: flock("121"),
	432: func(w *replayer, r record) {
		w.must("qm", "start", "121")
		sleeper := exec.Command("sleep", "60")
		if err := sleeper.Start(); err != nil {
			w.Fatal(err)
		}
		go func() { _ = sleeper.Wait() }()
		upid := activeTask{upid: "UPID:pve1:" + hex8(int64(sleeper.Process.Pid)) + ":" + hex8(w.processStart(sleeper.Process.Pid)) + ":6B034171:qmshutdown:121:root@pam:"}
		data, _ := os.ReadFile(w.path("var/log/pve/tasks/active"))
		w.write("var/log/pve/tasks/active", upid.String()+string(data))
	},
	433: fails123("--net0 virtio,bridge=nosuch0"),
	436: func(w *replayer, r record) {
		fails123("--scsi0 local:1")(w, r)
		_ = os.RemoveAll(w.path("var/lib/vz/images/123"))
	},
	438: shown,
	440: fails123("--memory 9999999"), 441: fails123("--memory 64000"), 444: fails123("--machine pc-i440fx-99.0"), 445: fails123("--args -foo"),
	447: all(forget("123"), do("qm create 123 --name f --memory 64 --net0 virtio=AA:BB:CC:00:00:01,bridge=vmbr0", "qm start 123"), shown),
	451: func(w *replayer, r record) {
		w.forget("123", "124")
		w.put("125", "this is not a line\nbogus: 1\ncores: zero\nmemory: 64\nname: bad_name\n")
	},
	454: halt("125"),
	455: func(w *replayer, _ record) { w.put("126", "") },
	457: itself,
	459: func(w *replayer, r record) {
		w.forget("127")
		w.must("qm", "start", "122")
		w.signal("122", syscall.SIGKILL)
		_ = w.Cleanup()
	},
	464: func(w *replayer, r record) {
		w.halt("122")
		w.write("run/qemu-server/122.pid", "4194000\n")
	},
	466: func(w *replayer, r record) {
		w.halt("122")
		w.write("run/qemu-server/122.pid", "1\n")
	},
	468: func(w *replayer, r record) {
		_ = os.Remove(w.runFile("122", "pid"))
		w.must("qm", "start", "122")
		_ = os.Rename(w.runFile("122", "pid"), w.path("tmp/122.pid"))
	},
	471: func(w *replayer, r record) {
		_ = os.Rename(w.path("tmp/122.pid"), w.runFile("122", "pid"))
		w.signal("122", syscall.SIGTERM)
		_ = w.Cleanup()
	},
	472: func(w *replayer, r record) {
		w.must("qm", "start", "122")
		w.signal("122", syscall.SIGSTOP)
	},
	478: flock("122"), 479: all(shown, flock("122")), 480: flock("122"), 483: flock("122"), 484: flock("122"), 485: flock("122"), 486: flock("122"), 487: flock("122"), 488: flock("122"),
	495: func(w *replayer, r record) {
		w.forget("128")
		w.must("qm", "create", "137", "--name", "k")
		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(errInterrupted)
		w.ctx = ctx
	},
	499: func(w *replayer, r record) {
		w.forget("137")
		w.put("138", "lock: create\n")
		w.write("var/lib/vz/images/138/vm-138-disk-0.raw", "half")
	},
	500: do("qm unlock 138"),
	502: all(forget("138"), do("qm start 122"), func(w *replayer, _ record) {
		for _, r := range records(w.T) {
			if r.number() == 529 {
				w.put("120", jsonConf(r.Stdout))
			}
		}
	}),
	570: all(mount(true), do("pvesm add dir offline --path /mnt/offline --is_mountpoint 1 --content images,snippets", "qm create 141 --name off --memory 64 --scsi0 offline:0.01"), mount(false)),
	574: shown,
	581: all(do("pvesm remove offline", "qm create 143 --name ci --memory 64 --scsi0 local:0,import-from=/root/src/src.raw --ide2 local:cloudinit --net0 virtio,bridge=vmbr0"), func(w *replayer, r record) {
		w.write("/var/lib/vz/snippets/hook.sh", "#!/bin/sh\necho hook $1 $2\nexit 0\n")
	}),
	589: all(halt("143"), do("qm set 143 --cicustom user=local:snippets/none.yaml")),
	591: do("qm set 143 --delete cicustom --citype nocloud"),
	595: halt("143"),
	596: halt("143"),
	602: halt("143"),
	603: func(w *replayer, r record) {
		w.forget("143")
		if w.running("122") == 0 {
			w.must("qm", "start", "122")
		}
		host := w.Host
		pid := host.running("122")
		time.AfterFunc(30*time.Millisecond, func() { _ = host.terminate(pid, syscall.SIGTERM) })
	},
	604: func(w *replayer, r record) { w.halt("122"); itself(w, r) },
	605: func(w *replayer, r record) {},
	608: do("qm create 144 --name v --memory 64 --net0 virtio,bridge=vmbr0,tag=42"),
	609: func(w *replayer, r record) {
		w.forget("144")
		w.must("qm", "create", "144", "--name", "v", "--memory", "64", "--machine", "q35")
	},
	612: all(forget("144"), do("qm start 122")),
	617: func(w *replayer, r record) {},
	625: func(w *replayer, r record) {
		w.halt("122")
		w.edit("122", func(c *conf) { delete(c.main, "description") })
	},
	639: func(w *replayer, r record) {
		w.edit("122", func(c *conf) { c.main["memory"] = "77" })
		_ = os.MkdirAll(filepath.Join(w.pmxcfs(), "nodes/other/qemu-server"), 0o755)
		_ = os.WriteFile(filepath.Join(w.pmxcfs(), "nodes/other/qemu-server/150.conf"), []byte("memory: 64\n"), 0o640)
	},
	650: func(w *replayer, r record) {
		_ = os.RemoveAll(filepath.Join(w.pmxcfs(), "nodes/other"))
		if err := w.UnmountPmxcfs(); err != nil {
			w.Fatal(err)
		}
	},
	658: func(w *replayer, r record) {
		if err := w.MountPmxcfs(); err != nil {
			w.Fatal(err)
		}
	},
	661: members(false),
	668: all(members(true), do("qm start 122"), members(false)),
	674: func(w *replayer, r record) {
		members(true)(w, r)
		_ = os.RemoveAll(w.path("var/lib/vz/images/122"))
	},
	679: func(w *replayer, r record) {
		w.config(func(c *HostConfig) { c.NoQMEventd = true })
		w.must("qm", "start", "122")
	},
	681: func(w *replayer, r record) {
		w.signal("122", syscall.SIGKILL)
		_ = w.Cleanup()
	},
	687: func(w *replayer, r record) {
		w.halt("122")
		w.config(func(c *HostConfig) { c.NoQMEventd = false })
	},
	693: do("qm create 144 --name v --memory 64 --net0 virtio,bridge=vmbr0,firewall=1"),
	695: func(w *replayer, r record) {
		w.must("qm", "start", "144")
		w.signal("144", syscall.SIGKILL)
		_ = w.Cleanup()
	},
	697: func(w *replayer, r record) {
		w.forget("144", "120", "121")
		for _, r := range records(w.T) {
			if r.name == "712-locked-running-stop-skiplock" {
				w.put("122", *r.After.Conf)
			}
		}
		w.must("qm", "start", "122", "--skiplock")
	},
	710: func(w *replayer, r record) {
		if strings.Contains(r.name, "reassign") {
			w.must("qm", "create", "171", "--name", "a", "--memory", "64", "--scsi0", "local:1", "--scsi1", "local:1", "--boot", "order=scsi0")
			w.must("qm", "create", "172", "--name", "hold", "--memory", "64")
		}
	},
	715: do("qm create 171 --name a --memory 64 --scsi0 local:1"),
	716: locked("171", "backup"),
	717: locked("171", ""),
	719: func(w *replayer, r record) {
		before := strings.Replace(*r.After.Conf, "tags: claim\n", "", 1)
		w.put("174", strings.Replace(before, "boot:  \n", "boot: \n", 1))
	},
	721: do("pvesm add dir tdir --path /mnt/tdir --content images", "qm create 175 --name b --memory 64 --scsi0 tdir:1", "pvesm set tdir --disable 1"),
	722: do("pvesm set tdir --disable 0"),
	724: itself,
	726: func(w *replayer, r record) { w.must("qm", "template", "176") },
}

func hex8(n int64) string {
	const digits = "0123456789ABCDEF"
	b := make([]byte, 8)
	for i := 7; i >= 0; i-- {
		b[i], n = digits[n&15], n>>4
	}
	return string(b)
}

// jsonConf is the configuration file that an API answer was made from.
func jsonConf(answer string) string {
	var m map[string]string
	if err := json.Unmarshal([]byte(answer), &m); err != nil {
		panic(err)
	}
	delete(m, "digest")
	c := newConf()
	for k, v := range m {
		c.main[k] = v
	}
	return c.format()
}
