package plan

import homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"

// yes and no are what was seen; whatever is neither, a missing Fact too, is
// unknown and never a cause to change anything.
func yes(f *homelabv1.Fact) bool { return f.GetTruth() == homelabv1.Truth_TRUTH_YES }
func no(f *homelabv1.Fact) bool  { return f.GetTruth() == homelabv1.Truth_TRUTH_NO }

// because is a fact's reason as the end of a sentence.
func because(f *homelabv1.Fact) string {
	if r := f.GetReason(); r != "" {
		return ": " + r
	}
	return ""
}

// verdict is a reason not to do something; the zero verdict is none.
type verdict struct {
	kind homelabv1.NoteKind
	text string
}

func (v verdict) against() bool { return v.kind != homelabv1.NoteKind_NOTE_KIND_UNSPECIFIED }

func refused(text string) verdict {
	return verdict{homelabv1.NoteKind_NOTE_KIND_REFUSED, text}
}

func skipped(text string) verdict {
	return verdict{homelabv1.NoteKind_NOTE_KIND_SKIPPED, text}
}

func busy(text string) verdict {
	return verdict{homelabv1.NoteKind_NOTE_KIND_BUSY, text}
}
