package controller

import (
	"testing"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// The words are those of runs; hlctl's exit codes agree with them.
func TestWhatBecameOfARun(t *testing.T) {
	for _, c := range []struct {
		want string
		sum  *homelabv1.Summary
	}{
		{"done", &homelabv1.Summary{}},
		{"done", &homelabv1.Summary{Done: 3, Unchanged: 2}},
		{"partial", &homelabv1.Summary{Done: 1, Failed: 1}},
		{"partial", &homelabv1.Summary{Skipped: 1, SomethingHealthy: true}},
		{"partial", &homelabv1.Summary{Done: 3, ApiSilent: true}},
		{"partial", &homelabv1.Summary{Failed: 1, ApiSilent: true}},
		{"failed", &homelabv1.Summary{Failed: 1}},
		{"failed", &homelabv1.Summary{Skipped: 1}},
		{"failed", &homelabv1.Summary{Refused: 1, Unchanged: 1}},
	} {
		if got := verdictOf(c.sum); got != c.want {
			t.Errorf("%v is %s, want %s", c.sum, got, c.want)
		}
	}
}
