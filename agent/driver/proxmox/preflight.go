package proxmox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/proxmox/args"
	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/rpc"
)

// preflight refuses a create that would fail halfway, or only at the start, with
// all the reasons at once: qm checks neither space nor image nor snippet. It takes
// one pvesm status.
func (d *Driver) preflight(ctx context.Context, req *driverv1.CreateRequest, report driver.Report) error {
	node, faults, storages, err := d.storageCheck(ctx, needed(req.GetHardware()), report)
	if err != nil {
		return err
	}
	if req.GetTemplate() != nil {
		more, err := d.templateFaults(req, storages)
		if err != nil {
			return err
		}
		faults = append(faults, more...)
	} else if fault := d.imageFault(req); fault != "" {
		faults = append(faults, fault)
	}
	for _, fault := range []string{
		d.fileFault("the user-data", req.GetUserData(), "snippets", "snippets", storages),
		d.fileFault("the ISO file", req.GetCdrom(), "iso", "template/iso", storages),
		d.cloudInitFault(req, storages),
	} {
		if fault != "" {
			faults = append(faults, fault)
		}
	}
	if len(faults) > 0 {
		return rpc.Errorf(rpc.ErrRefused, "VM %d cannot be created on %s: %s", req.GetIdentity().GetVmid(), node, strings.Join(faults, "; "))
	}
	return nil
}

// storageCheck looks at this node's storages with one pvesm status and says what
// speaks against taking what is needed of them.
func (d *Driver) storageCheck(ctx context.Context, needed map[string]int64, report driver.Report) (
	node string, faults []string, storages []parse.StorageConfig, err error,
) {
	m, err := d.members()
	if err != nil {
		return "", nil, nil, err
	}
	if err := d.quorate(m); err != nil {
		return "", nil, nil, err
	}
	if storages, err = d.storages(m.NodeName); err != nil {
		return "", nil, nil, err
	}
	out, err := d.exec(ctx, args.Storages(), nil, report)
	if err != nil {
		return "", nil, nil, err
	}
	return m.NodeName, storageFaults(needed, storages, parse.PvesmStatus(out.stdout), out.stderr), storages, nil
}

// needed is how many bytes a new VM takes of each storage.
func needed(hw *homelabv1.Hardware) map[string]int64 {
	bytes := map[string]int64{}
	system := hw.GetSystemDisk()
	bytes[system.GetStorage()] += system.GetSizeBytes() + args.CloudInitBytes
	if hw.GetFirmware() == homelabv1.Firmware_FIRMWARE_OVMF {
		bytes[system.GetStorage()] += args.EFIBytes
	}
	for _, disk := range hw.GetDataDisks() {
		bytes[disk.GetStorage()] += (disk.GetSizeBytes() + 1<<30 - 1) >> 30 << 30
	}
	return bytes
}

// storageFaults says why storages cannot take what is needed of them.
func storageFaults(needed map[string]int64, storages []parse.StorageConfig, status []parse.StorageStatus, stderr string) []string {
	var faults []string
	for _, name := range sortedKeys(needed) {
		c := slices.IndexFunc(storages, func(s parse.StorageConfig) bool { return s.Name == name })
		st := slices.IndexFunc(status, func(s parse.StorageStatus) bool { return s.Name == name })
		switch {
		case c < 0 || st < 0:
			faults = append(faults, fmt.Sprintf("there is no storage %q for this host (there are %s)", name, names(storages)))
		case !storages[c].Holds("images"):
			faults = append(faults, fmt.Sprintf("storage %s may not hold disk images (its content is %s)", name, strings.Join(storages[c].Content, ", ")))
		case status[st].Status != "active":
			fault := fmt.Sprintf("storage %s is %s", name, status[st].Status)
			if why := parse.Reason("", stderr); why != "" {
				fault += ": " + why
			}
			faults = append(faults, fault)
		case status[st].AvailableBytes < needed[name]:
			faults = append(faults, fmt.Sprintf("storage %s: %s needed, %s available", name, human.Size(needed[name]), human.Size(status[st].AvailableBytes)))
		}
	}
	return faults
}

func names(storages []parse.StorageConfig) string {
	var all []string
	for _, s := range storages {
		all = append(all, s.Name)
	}
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, ", ")
}

// imageFault says what is wrong with the image. Proxmox cannot make a disk smaller
// than its image.
func (d *Driver) imageFault(req *driverv1.CreateRequest) string {
	size, fault := d.importable(req.GetImagePath())
	if want := req.GetHardware().GetSystemDisk().GetSizeBytes(); fault == "" && size > want {
		return fmt.Sprintf("the system disk is to have %s, but the image %s has %s", human.Size(want), req.GetImagePath(), human.Size(size))
	}
	return fault
}

// importable is the size of the disk in an image, or what is wrong with it: Proxmox
// takes any file for a disk, an empty one too.
func (d *Driver) importable(path string) (size int64, fault string) {
	size, err := imageSize(d.host(path))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return 0, fmt.Sprintf("the image %s is not there", path)
	case err != nil:
		return 0, fmt.Sprintf("the image %s cannot be read: %v", path, err)
	case size == 0:
		return 0, fmt.Sprintf("the image %s is empty", path)
	}
	return size, ""
}

// fileFault says what is wrong with a file that the VM is to have from a storage's
// folder, which Proxmox notices at the start only. what is what it is for people.
func (d *Driver) fileFault(what, volid, content, folder string, storages []parse.StorageConfig) string {
	if volid == "" {
		return ""
	}
	name := parse.Storage(volid)
	i := slices.IndexFunc(storages, func(s parse.StorageConfig) bool { return s.Name == name })
	if i < 0 {
		return fmt.Sprintf("there is no storage %q for this host, for %s %s", name, what, volid)
	}
	if !storages[i].Holds(content) {
		return fmt.Sprintf("storage %s may not hold %s (its content is %s)", name, content, strings.Join(storages[i].Content, ", "))
	}
	if storages[i].Path == "" {
		return fmt.Sprintf("storage %s has no folder for %s", name, content)
	}
	_, file, _ := strings.Cut(volid, "/")
	there, err := exists(d.host(storages[i].Path, folder, file))
	if err != nil || !there || file == "" {
		return fmt.Sprintf("%s %s is not there", what, volid)
	}
	return ""
}

// cloudInitFault says that a cloud-init volume of that VMID is there already, which
// makes the create fail each time until it is gone.
func (d *Driver) cloudInitFault(req *driverv1.CreateRequest, storages []parse.StorageConfig) string {
	for _, s := range storages {
		if path, _ := folder(s); path == "" || s.Name != req.GetHardware().GetSystemDisk().GetStorage() {
			continue
		}
		all, err := d.visible(s, req.GetIdentity().GetVmid())
		if err != nil {
			return fmt.Sprintf("storage %s cannot be looked at: %v", s.Name, err)
		}
		for _, v := range all {
			if strings.HasPrefix(baseName(v.Volid), fmt.Sprintf("vm-%d-cloudinit", v.VMID)) {
				return fmt.Sprintf("a cloud-init volume of an earlier VM %d is left over; remove it first: pvesm free %s", v.VMID, v.Volid)
			}
		}
	}
	return ""
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
