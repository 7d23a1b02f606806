package mark

import "strings"

// A VM of ours that is no guest has a name that no guest can have where the
// guest's would stand in its mark.
const (
	templatePrefix = "template@"
	templateDigits = 12
)

// TemplateName stands in the mark of a template where the guest's name would. It
// holds the first 12 hex digits of the SHA-256 of the image that the template is
// made of. A digest that is shorter gives "".
func TemplateName(sha256 string) string {
	if len(sha256) < templateDigits {
		return ""
	}
	return templatePrefix + strings.ToLower(sha256[:templateDigits])
}

// TemplateOf is the beginning of the image's digest when a mark's guest names a
// template; ok is false when it does not.
func TemplateOf(guest string) (digits string, ok bool) {
	digits, ok = strings.CutPrefix(guest, templatePrefix)
	return digits, ok && len(digits) == templateDigits
}
