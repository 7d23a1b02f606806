package pve

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
)

// kvmArgs is the command line of a VM's kvm, as the real config_to_command
// makes it for the hardware that the lab knows. Paths are the host's.
func (h *Host) kvmArgs(vmid string, s section) ([]string, error) {
	name := s["name"]
	if name == "" {
		name = "vm" + vmid
	}
	run := "/var/run/qemu-server/" + vmid
	args := []string{
		"/usr/bin/kvm", "-id", vmid, "-name", name + ",debug-threads=on", "-no-shutdown",
		"-chardev", "socket,id=qmp,path=" + run + ".qmp,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
		"-chardev", "socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect-ms=5000", "-mon", "chardev=qmp-event,mode=control",
		"-pidfile", pidFileArg(vmid), "-daemonize",
	}
	if s["smbios1"] != "" {
		args = append(args, "-smbios", "type=1,"+s["smbios1"])
	}
	if s["bios"] == "ovmf" {
		args = append(args, "-drive", "if=pflash,unit=0,format=raw,readonly=on,file=/usr/share/pve-edk2-firmware//OVMF_CODE.fd")
	}
	cores := intOr(s["cores"], 1) * intOr(s["sockets"], 1)
	args = append(args,
		"-smp", fmt.Sprintf("%d,sockets=%d,cores=%d,maxcpus=%d", cores, intOr(s["sockets"], 1), intOr(s["cores"], 1), cores),
		"-nodefaults", "-boot", "menu=on,strict=on,reboot-timeout=1000,splash=/usr/share/qemu-server/bootsplash.jpg",
		"-vnc", "unix:"+run+".vnc,password=on", "-cpu", cpuArg(s), "-m", strconv.FormatInt(memoryMiB(s), 10))
	drives, throttles, err := h.driveArgs(s)
	if err != nil {
		return nil, err
	}
	q35 := strings.Contains(s["machine"], "q35")
	args = append(args, throttles...)
	if q35 {
		args = append(args, "-global", "ICH9-LPC.disable_s3=1", "-global", "ICH9-LPC.disable_s4=1",
			"-readconfig", "/usr/share/qemu-server/pve-q35-4.0.cfg")
	} else {
		args = append(args, "-global", "PIIX4_PM.disable_s3=1", "-global", "PIIX4_PM.disable_s4=1",
			"-device", "pci-bridge,id=pci.1,chassis_nr=1,bus=pci.0,addr=0x1e", "-device", "pci-bridge,id=pci.2,chassis_nr=2,bus=pci.0,addr=0x1f")
	}
	if s["vmgenid"] != "" {
		args = append(args, "-device", "vmgenid,guid="+s["vmgenid"])
	}
	if !q35 {
		args = append(args, "-device", "piix3-usb-uhci,id=uhci,bus=pci.0,addr=0x1.0x2", "-device", "usb-tablet,id=tablet,bus=uhci.0,port=1")
	}
	args = append(args, h.deviceArgs(vmid, s)...)
	args = append(args, drives...)
	args = append(args, h.netArgs(vmid, s)...)
	machine := "pc+pve1"
	if m := s["machine"]; m != "" {
		machine = m + "+pve1"
	}
	args = append(args, "-machine", "type="+machine)
	return append(args, strings.Fields(s["args"])...), nil
}

func intOr(v string, otherwise int64) int64 {
	if n, err := strconv.ParseInt(v, 10, 64); err == nil {
		return n
	}
	return otherwise
}

// memoryMiB is a VM's memory; 512 when it names none.
func memoryMiB(s section) int64 {
	got, _ := memoryProps.parse("memory", s["memory"])
	return intOr(got["current"], 512)
}

func cpuArg(s section) string {
	model, _, _ := strings.Cut(s["cpu"], ",")
	model = strings.TrimPrefix(model, "cputype=")
	switch model {
	case "host":
		return "host,+kvm_pv_eoi,+kvm_pv_unhalt"
	case "":
		return "kvm64,enforce,+kvm_pv_eoi,+kvm_pv_unhalt,+lahf_lm,+sep"
	}
	return model + ",enforce,+kvm_pv_eoi,+kvm_pv_unhalt"
}

func (h *Host) deviceArgs(vmid string, s section) (args []string) {
	run := "/var/run/qemu-server/" + vmid
	for i := range 4 {
		if s[fmt.Sprintf("serial%d", i)] == "socket" {
			args = append(args, "-chardev", fmt.Sprintf("socket,id=serial%d,path=%s.serial%d,server=on,wait=off", i, run, i),
				"-device", fmt.Sprintf("isa-serial,chardev=serial%d", i))
		}
	}
	for i := range 16 {
		if v := s[fmt.Sprintf("hostpci%d", i)]; v != "" {
			dev, _, _ := strings.Cut(v, ",")
			args = append(args, "-device", fmt.Sprintf("vfio-pci,host=%s,id=hostpci%d", strings.TrimPrefix(dev, "host="), i))
		}
	}
	for i := range 14 {
		if v := s[fmt.Sprintf("usb%d", i)]; v != "" {
			dev, _, _ := strings.Cut(strings.TrimPrefix(v, "host="), ",")
			vendor, product, _ := strings.Cut(dev, ":")
			args = append(args, "-device", fmt.Sprintf("usb-host,vendorid=0x%s,productid=0x%s,id=usb%d", vendor, product, i))
		}
	}
	if !strings.HasPrefix(s["vga"], "serial") {
		args = append(args, "-device", "VGA,id=vga,bus=pci.0,addr=0x2")
	}
	if agentEnabled(s) {
		args = append(args, "-chardev", "socket,path="+run+".qga,server=on,wait=off,id=qga0",
			"-device", "virtio-serial,id=qga0,bus=pci.0,addr=0x8", "-device", "virtserialport,chardev=qga0,name=org.qemu.guest_agent.0")
	}
	if s["balloon"] != "0" {
		args = append(args, "-device", "virtio-balloon-pci,id=balloon0,bus=pci.0,addr=0x3,free-page-reporting=on")
	}
	return args
}

func agentEnabled(s section) bool {
	got, _ := agentProps.parse("agent", s["agent"])
	on, _ := parseBool(got["enabled"])
	return on
}

// driveArgs are the -blockdev and -device of each drive, and the throttle
// groups that come before.
func (h *Host) driveArgs(s section) (args, throttles []string, err error) {
	boot := bootIndexes(s)
	scsi := false
	for _, d := range s.drives() {
		if d.file == "none" || d.file == "cdrom" {
			args = append(args, "-device", fmt.Sprintf("ide-cd,id=%s", d.key))
			continue
		}
		v, err := h.parseVolume(d.file)
		if err != nil {
			return nil, nil, err
		}
		throttles = append(throttles, "-object",
			fmt.Sprintf(`{"id":"throttle-drive-%s","limits":{},"qom-type":"throttle-group"}`, d.key))
		args = append(args, "-blockdev", blockdev(d, v))
		var device string
		switch {
		case strings.HasPrefix(d.key, "scsi"):
			if !scsi {
				args = append(args, "-device", "virtio-scsi-pci,id=scsihw0,bus=pci.0,addr=0x5")
				scsi = true
			}
			device = fmt.Sprintf("scsi-hd,bus=scsihw0.0,channel=0,scsi-id=0,lun=%s,drive=drive-%s,id=%s,device_id=drive-%s", strings.TrimPrefix(d.key, "scsi"), d.key, d.key, d.key)
		case d.cdrom():
			device = fmt.Sprintf("ide-cd,bus=ide.1,unit=0,drive=drive-%s,id=%s", d.key, d.key)
		case strings.HasPrefix(d.key, "virtio"):
			device = fmt.Sprintf("virtio-blk-pci,drive=drive-%s,id=%s", d.key, d.key)
		case d.key == "efidisk0" || d.key == "tpmstate0":
			continue
		default:
			device = fmt.Sprintf("ide-hd,drive=drive-%s,id=%s", d.key, d.key)
		}
		if i, ok := boot[d.key]; ok {
			device += ",bootindex=" + strconv.Itoa(i)
		}
		if !d.cdrom() {
			device += ",write-cache=on"
		}
		args = append(args, "-device", device)
	}
	return args, throttles, nil
}

// blockdev is the JSON that PVE 9 gives QEMU for a drive.
func blockdev(d drive, v *volume) string {
	ro := d.cdrom()
	node := fmt.Sprintf("%08x%023x", crc32.ChecksumIEEE([]byte(d.file)), crc32.ChecksumIEEE([]byte(d.key)))
	cache := map[string]any{"direct": !ro, "no-flush": false}
	driver := "file"
	if v.store.typ != "dir" {
		driver = "host_device"
	}
	data, _ := json.Marshal(map[string]any{
		"driver": "throttle", "node-name": "drive-" + d.key, "read-only": ro, "throttle-group": "throttle-drive-" + d.key,
		"file": map[string]any{
			"driver": v.format, "cache": cache, "node-name": "f" + node, "read-only": ro,
			"file": map[string]any{
				"aio": "io_uring", "cache": cache, "driver": driver, "filename": v.path(), "node-name": "e" + node, "read-only": ro,
			},
		},
	})
	return string(data)
}

// bootIndexes are the places in the boot order, from 100 on.
func bootIndexes(s section) map[string]int {
	places := map[string]int{}
	order, _ := strings.CutPrefix(s["boot"], "order=")
	for i, dev := range strings.FieldsFunc(order, listSeparator) {
		places[dev] = 100 + i
	}
	return places
}

func (h *Host) netArgs(vmid string, s section) (args []string) {
	boot := bootIndexes(s)
	for i := range 32 {
		key := fmt.Sprintf("net%d", i)
		if s[key] == "" {
			continue
		}
		nic, _ := parseNet(key, s[key])
		model := nic["model"]
		if model == "virtio" {
			model = "virtio-net-pci"
		}
		device := fmt.Sprintf("%s,mac=%s,netdev=%s,bus=pci.0,addr=0x%x,id=%s", model, nic["macaddr"], key, 0x12+i, key)
		if nic["model"] == "virtio" {
			device += ",rx_queue_size=1024,tx_queue_size=256"
		}
		if n, ok := boot[key]; ok {
			device += ",bootindex=" + strconv.Itoa(n)
		}
		if mtu := h.nicMTU(nic); nic["model"] == "virtio" && mtu > 0 {
			device += ",host_mtu=" + strconv.Itoa(mtu)
		}
		netdev := fmt.Sprintf("type=tap,id=%s,ifname=tap%si%d,script=/usr/libexec/qemu-server/pve-bridge,downscript=/usr/libexec/qemu-server/pve-bridgedown", key, vmid, i)
		if nic["bridge"] == "" {
			netdev = "type=user,id=" + key + ",hostname=" + s["name"]
		}
		args = append(args, "-netdev", netdev, "-device", device)
	}
	return args
}

// nicMTU is the MTU a NIC gets: its own, or its bridge's.
func (h *Host) nicMTU(nic map[string]string) int {
	if m := intOr(nic["mtu"], 0); m > 1 {
		return int(m)
	}
	return h.bridgeMTU(nic["bridge"])
}
