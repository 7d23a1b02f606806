package agent

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/homeiac/homelab/internal/rpc"
)

// shape is what the text of a field may look like.
type shape struct {
	ok   *regexp.Regexp // nil: any line
	what string         // for people
	text bool           // several lines are possible
}

// What a request says becomes file names, arguments of qm, properties between commas
// and words of scripts. Each of these is quoted or compared where it is used; this is
// the wall before that: what could be more than the name that it should be is not let
// in at all. A field that is not in the table is a word.
var (
	word    = shape{ok: regexp.MustCompile(`^[A-Za-z0-9_:.@*+=][A-Za-z0-9_:.@*+=-]*$`), what: "a name"}
	line    = shape{what: "one line"}
	text    = shape{what: "text", text: true}
	address = shape{ok: regexp.MustCompile(`^[^-\s][^\s]*$`), what: "an address"}
	prefix  = shape{ok: regexp.MustCompile(`^[0-9A-Fa-f:.]+/[0-9]{1,3}$`), what: "an address with its prefix length"}
	device  = shape{ok: regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_:.,;=+-]*$`), what: "a device"}
	snip    = shape{ok: regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*:snippets/[A-Za-z0-9_][A-Za-z0-9_.-]*$`), what: "a snippet's volume"}
	label   = shape{ok: regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_./-]*=[A-Za-z0-9_.-]*$`), what: "a label"}
)

var shapes = map[protoreflect.FullName]shape{
	// Told, and compared: never a path or an argument.
	"homelab.v1.Step.id":                line,
	"homelab.v1.Step.after":             line,
	"homelab.v1.Step.reason":            line,
	"homelab.agent.v1.StorageNeed.what": line,

	"homelab.v1.Nic.address":         prefix,
	"homelab.v1.Nic.subnet":          prefix,
	"homelab.v1.Hardware.machine":    device,
	"homelab.v1.Hardware.pci":        device,
	"homelab.v1.Hardware.usb":        device,
	"homelab.v1.Hardware.hookscript": snip,

	"homelab.v1.ImageSource.url":           address,
	"homelab.v1.ImageSource.mirrors":       address,
	"homelab.v1.ImageSource.checksums_url": address,
	"homelab.v1.K3sWant.server_url":        address,
	"homelab.v1.K3sWant.script":            address,
	"homelab.v1.K3sWant.binary":            address,
	"homelab.v1.K3sWant.images":            address,
	"homelab.agent.v1.ImagePeer.address":   address,

	"homelab.agent.v1.CredentialsRequest.external_server": address,
	"homelab.trust.v1.ControllerAddress.address":          address,
	"homelab.trust.v1.ControllerAddress.enrol":            address,

	// Lines of files that YAML quotes.
	"homelab.v1.GuestWant.authorized_keys": line,
	"homelab.v1.GuestWant.host_keys":       line,

	"homelab.agent.v1.CredentialsRequest.external_host_key": line,

	"homelab.v1.K3sWant.labels":      label,
	"homelab.v1.K3sWant.config_yaml": text,
	// The Spec's own commands: meant for a shell.
	"homelab.v1.GuestWant.verify": text,
}

// Longest text of a field in bytes.
const (
	longestLine = 16 << 10
	longestText = 1 << 20
)

// checkFields is ErrInvalid when any text in m, however deep, is not of its shape.
func checkFields(m proto.Message) error { return fieldsOf(m.ProtoReflect(), "") }

func fieldsOf(m protoreflect.Message, path string) error {
	var err error
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := path + string(f.Name())
		switch {
		case f.IsMap():
			err = rpc.Errorf(rpc.ErrInvalid, "%s: maps are not looked into", at) // there are none
		case f.IsList():
			for i := range v.List().Len() {
				if err = valueOf(f, v.List().Get(i), fmt.Sprintf("%s[%d]", at, i)); err != nil {
					break
				}
			}
		default:
			err = valueOf(f, v, at)
		}
		return err == nil
	})
	return err
}

func valueOf(f protoreflect.FieldDescriptor, v protoreflect.Value, at string) error {
	switch f.Kind() {
	case protoreflect.MessageKind:
		return fieldsOf(v.Message(), at+".")
	case protoreflect.StringKind:
		want, known := shapes[f.FullName()]
		if !known {
			want = word
		}
		if s := v.String(); s != "" && !want.fits(s) {
			return rpc.Errorf(rpc.ErrInvalid, "%s: %s is not %s", at, shown(s), want.what)
		}
	default:
	}
	return nil
}

func (w shape) fits(s string) bool {
	longest := longestLine
	if w.text {
		longest = longestText
	}
	switch {
	case len(s) > longest:
		return false
	case strings.IndexFunc(s, func(r rune) bool { return unicode.IsControl(r) && !(w.text && (r == '\n' || r == '\t')) }) >= 0:
		return false
	case w.ok == nil:
		return true
	}
	return w.ok.MatchString(s) && strings.Trim(s, ".") != "" // neither . nor ..
}

// shown is a text for people, which may be long and anything.
func shown(s string) string {
	const most = 80
	if len(s) > most {
		return fmt.Sprintf("%q…", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
