package pve

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// plugged are settings that a running VM takes at once.
var plugged = strings.Fields("lock name onboot shares startup description protection vmstatestorage hookscript tags")

// hotplug puts in force what a running VM can take; the rest stays pending.
// What should have worked and failed is an error, and stays pending too.
func (r *run) hotplug(vmid string, c *conf, p params) error {
	faults := map[string]string{}
	// Only what this call is about: what an earlier one left stays.
	chosen := strings.FieldsFunc(p["delete"], listSeparator)
	for _, opt := range slices.Clone(c.deleting) {
		if !slices.Contains(chosen, opt) {
			continue
		}
		done, err := r.hotUnplug(vmid, c, opt)
		if err != nil {
			faults[opt] = fmt.Sprintf("hotplug problem - %v\n", err)
			continue
		}
		if done {
			old := c.main[opt]
			c.deleting = without(c.deleting, opt)
			r.applyDelete(vmid, c, opt, p.on("force"))
			c.noteCloudInit(opt, old, "")
		}
	}
	for _, opt := range slices.Sorted(maps.Keys(c.pending)) {
		if _, named := p[opt]; !named {
			continue
		}
		value := c.pending[opt]
		done, err := r.hotPlug(vmid, c, opt, value)
		if err != nil {
			faults[opt] = fmt.Sprintf("hotplug problem - %v\n", err)
			continue
		}
		if done {
			old := c.main[opt]
			delete(c.pending, opt)
			r.applyValue(vmid, c, opt, value)
			c.noteCloudInit(opt, old, value)
		}
	}
	if err := r.store(vmid, c); err != nil {
		return err
	}
	if len(faults) > 0 {
		return &badParams{code: 255, faults: faults}
	}
	return nil
}

// hotFeature says whether a VM takes changes of a kind (network, disk) while
// it runs.
func (c *conf) hotFeature(kind string) bool {
	v, ok := c.main["hotplug"]
	if on, isBool := parseBool(v); !ok || isBool {
		return !ok || on
	}
	return slices.Contains(strings.FieldsFunc(v, listSeparator), kind)
}

// busOf is the name of a numbered setting without its number.
func busOf(key string) string {
	if m := numbering.FindStringSubmatch(key); m != nil {
		return m[1]
	}
	return key
}

func atOnce(opt string) bool {
	return slices.Contains(plugged, opt) || slices.Contains(ciKeys, opt) || busOf(opt) == "ipconfig"
}

func (r *run) hotUnplug(vmid string, c *conf, opt string) (bool, error) {
	switch bus := busOf(opt); {
	case atOnce(opt):
		return true, nil
	case bus == "net" && c.hotFeature("network"):
		if err := r.device(vmid, "device_del", map[string]any{"id": opt}); err != nil {
			return false, err
		}
		if err := r.device(vmid, "netdev_del", map[string]any{"id": opt}); err != nil {
			return false, err
		}
		return true, r.unplug(fmt.Sprintf("tap%si%s", vmid, strings.TrimPrefix(opt, "net")))
	case (bus == "scsi" || bus == "virtio") && isDrive(opt) && c.hotFeature("disk"):
		if _, boots := bootIndexes(c.main)[opt]; boots {
			return false, fmt.Errorf("can't unplug bootdisk '%s'", opt)
		}
		return true, r.device(vmid, "device_del", map[string]any{"id": opt})
	}
	return false, nil
}

func (r *run) hotPlug(vmid string, c *conf, opt, value string) (bool, error) {
	switch bus := busOf(opt); {
	case atOnce(opt):
		return true, nil
	case bus == "net" && c.hotFeature("network"):
		nets := nics(section{opt: value})
		if len(nets) == 0 {
			return false, nil
		}
		if b := nets[0].opts["bridge"]; b != "" && !r.hasLink(b) {
			return false, fmt.Errorf("VM %s qmp command 'netdev_add' failed - network script /usr/libexec/qemu-server/pve-bridge-hotplug failed with status 512", vmid)
		}
		if err := r.device(vmid, "netdev_add", map[string]any{"type": "tap", "id": opt}); err != nil {
			return false, err
		}
		return true, r.plugNIC(vmid, nets[0])
	case (bus == "scsi" || bus == "virtio") && isDrive(opt) && c.hotFeature("disk"):
		if _, there := c.main[opt]; there && parseDrive(opt, c.main[opt]).file != parseDrive(opt, value).file {
			return false, nil
		}
		return true, r.device(vmid, "device_add", map[string]any{"driver": "scsi-hd", "id": opt, "drive": "drive-" + opt})
	case isDrive(opt) && parseDrive(opt, value).cdrom() && c.main[opt] != "":
		// Another medium in a CD-ROM drive that is there.
		return true, r.device(vmid, "blockdev-change-medium", map[string]any{"id": opt})
	}
	return false, nil
}
