package args

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"

	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// SystemSlot is where the only disk of a template is attached.
const SystemSlot = "scsi0"

// CreateTemplate makes the VM that becomes a template: the image imported into its
// only disk. Its clones get all else by Configure.
func CreateTemplate(req *driverv1.CreateTemplateRequest) (Call, error) {
	id := req.GetIdentity()
	faults := identityFaults(id)
	if !guestName.MatchString(req.GetName()) {
		faults = append(faults, fmt.Sprintf("name %q", req.GetName()))
	}
	if !imagePath(req.GetImagePath()) {
		faults = append(faults, fmt.Sprintf("image path %q", req.GetImagePath()))
	}
	if !storageID.MatchString(req.GetStorage()) {
		faults = append(faults, fmt.Sprintf("storage %q", req.GetStorage()))
	}
	if len(faults) > 0 {
		return Call{}, rpc.Errorf(rpc.ErrInvalid, "cannot create a template with %s", strings.Join(faults, ", "))
	}
	return qm(id.GetVmid(), "create",
		"--name", req.GetName(),
		"--description", id.GetMark(),
		"--smbios1", "uuid="+id.GetUuid(),
		"--ostype", "l26",
		"--cores", "1",
		"--memory", "512",
		"--scsihw", controller,
		"--"+SystemSlot, fmt.Sprintf("%s:0,import-from=%s,discard=on", req.GetStorage(), req.GetImagePath()),
		"--boot", "order="+SystemSlot,
		"--serial0", "socket",
		"--agent", "enabled=1",
		"--onboot", "0",
	), nil
}

// Template turns a stopped VM into a template. Its volumes get other names.
func Template(vmid int32) Call { return qm(vmid, "template") }

// TemplateDisk finishes a template whose conversion was broken off before the volume
// of that slot had its new name.
func TemplateDisk(vmid int32, slot string) Call { return qm(vmid, "template", "--disk", slot) }

// Clone makes a VM of a template, with the new VM's mark for its description and
// whatever else the template has; Configure gives it the rest. Storage is where a full
// clone's disk goes; a linked one cannot leave its template's.
func Clone(req *driverv1.CreateRequest, storage string) (Call, error) {
	if err := checkCreate(req); err != nil {
		return Call{}, err
	}
	id, from := req.GetIdentity(), req.GetTemplate()
	argv := []string{
		"clone", strconv.Itoa(int(from.GetVmid())), strconv.Itoa(int(id.GetVmid())),
		"--name", req.GetHardware().GetName(), "--description", id.GetMark(),
	}
	if req.GetLinked() {
		argv = append(argv, "--full", "0")
	} else {
		argv = append(argv, "--full", "1")
		if storage != "" {
			argv = append(argv, "--storage", storage)
		}
	}
	return Call{Program: "qm", Args: argv, VMID: id.GetVmid(), Other: from.GetVmid()}, nil
}

// Configure gives a clone its identity and all that Create gives a VM, in one change,
// if the configuration still has the digest. system is the volume of its system disk,
// which stays.
func Configure(req *driverv1.CreateRequest, system, digest string) Call {
	return qm(req.GetIdentity().GetVmid(), "set", append(settings(req, system), "--digest", digest)...)
}

// templateFaults says what of a template cannot be cloned.
func templateFaults(id, template *homelabv1.Identity) []string {
	faults := identityFaults(template)
	if template.GetVmid() == id.GetVmid() {
		faults = append(faults, "itself for its template")
	}
	return faults
}

func imagePath(path string) bool {
	return strings.HasPrefix(path, "/") && !strings.Contains(path, "/../") && strings.IndexFunc(path, func(r rune) bool { return r == ',' || unicode.IsControl(r) }) < 0
}
