package agent

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestTheHostsClockIsOffByWhatItsFileSays(t *testing.T) {
	file := filepath.Join(t.TempDir(), "clock")
	now := clock(file)
	ahead := func() time.Duration { return time.Until(now()).Round(time.Minute) }
	if d := ahead(); d != 0 {
		t.Errorf("without a file it is %v ahead", d)
	}
	for text, want := range map[string]time.Duration{"1h\n": time.Hour, "-90m": -90 * time.Minute, "0s": 0, "soon": 0} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if d := ahead(); d != want {
			t.Errorf("%q: it is %v ahead, want %v", text, d, want)
		}
	}
	if d := time.Until(clock("")()).Round(time.Minute); d != 0 {
		t.Errorf("without the key it is %v ahead", d)
	}
}
