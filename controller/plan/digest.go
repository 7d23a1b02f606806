package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// digest covers what a person confirms: what is done to what, after what, for
// which Spec. Reasons, times and measures change with every look and are left
// out. It is a SHA-256 in hex.
func digest(steps []*homelabv1.Step, specDigest string) string {
	lines := make([]string, 0, len(steps))
	for _, s := range steps {
		after := slices.Clone(s.GetAfter())
		slices.Sort(after)
		lines = append(lines, fmt.Sprintf("%s\x00%d\x00%s\x00%s\x00%d\x00%s\x00%s\x00%d\x00%s\x00%d\x00%s\x00%s\x00%s\x00%s\x00%d\x00%d\x00%s\x00%s\x00%t",
			s.GetId(), s.GetAction(), s.GetGuest(), s.GetHost(), s.GetVmid(), s.GetUuid(), s.GetImage(), s.GetGeneration(), strings.Join(after, "\x01"),
			s.GetHolderVmid(), s.GetHolderUuid(), s.GetMemberId(), strings.Join(s.GetSlots(), "\x01"),
			s.GetImageSha256(), s.GetClone(), s.GetTemplateVmid(), s.GetTemplateUuid(), s.GetStorage(), s.GetNewest()))
	}
	slices.Sort(lines)
	h := sha256.New()
	fmt.Fprintf(h, "plan 3\n%s\n", specDigest)
	for _, line := range lines {
		fmt.Fprintln(h, line)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// specDigest is what Want gives, else one of the Spec's content: two files that
// differ in comments or order only want the same.
func (m *model) specDigest() string {
	if m.want.SpecDigest != "" {
		return m.want.SpecDigest
	}
	s := *m.spec
	s.File, s.Warnings = "", nil
	h := sha256.New()
	if err := json.NewEncoder(h).Encode(&s); err != nil {
		// Only a Spec made by hand can hold what JSON cannot; its digest then
		// is of the error, and still the same for the same Spec.
		fmt.Fprint(h, err)
	}
	return hex.EncodeToString(h.Sum(nil))
}
