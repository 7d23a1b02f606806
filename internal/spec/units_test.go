package spec

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"4GiB": 4 * GiB, "1.5GiB": GiB + GiB/2, "512 MiB": 512 * MiB, "2TiB": 2 * TiB, "1KiB": KiB, "0GiB": 0, "0.001953125KiB": -1,
		"": -1, "4": -1, "4GB": -1, "GiB": -1, "4gib": -1, "-4GiB": -1, "+4GiB": -1, "4e3GiB": -1, "1.GiB": -1, ".5GiB": -1,
		"1_000MiB": -1, "999999999999TiB": -1, "1048576GiB": maxSize, "1048577GiB": -1, "4GiB ": -1, "٤GiB": -1,
	} {
		got, err := ParseSize(text)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %d (%v), want %d", text, got, err, want)
		}
	}
	for bytes, want := range map[int64]string{0: "0B", 1: "1B", 1024: "1KiB", 4 * GiB: "4GiB", GiB + GiB/2: "1536MiB", math.MaxInt64: "9223372036854775807B"} {
		if got := FormatSize(bytes); got != want {
			t.Errorf("%d: %s, want %s", bytes, got, want)
		}
	}
}

func TestRates(t *testing.T) {
	for text, want := range map[string]int64{"50MiB/s": 50 * MiB, "1.5GiB/s": GiB + GiB/2, "512 KiB/s": 512 * KiB, "50MiB /s": 50 * MiB} {
		if got, err := parseRate(text); got != want || err != nil {
			t.Errorf("%q: %d %v, want %d", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"50MiB":        `"50MiB" is not a rate (try 50MiB/s)`,
		"50":           `"50" is not a rate (try 50MiB/s)`,
		"50MB/s":       `"50MB/s" is not a rate (try 50MiB/s)`,
		"400 kbit/s":   `"400 kbit/s" is not a rate (try 400KiB/s)`,
		"fast":         `"fast" is not a rate (try 50MiB/s)`,
		"":             `"" is not a rate (try 50MiB/s)`,
		"-1MiB/s":      `"-1MiB/s" is not a rate (try 50MiB/s)`,
		"0MiB/s":       `"0MiB/s" lets nothing through (leave it out for no limit)`,
		"9999999TiB/s": `"9999999TiB/s" is not a rate: "9999999TiB" is too large`,
	} {
		if got, err := parseRate(text); got != 0 || err == nil || err.Error() != want {
			t.Errorf("%q: %d %v, want %s", text, got, err, want)
		}
	}
}

func TestASizeThatWasWrittenIsReadAgain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bytes := rapid.Int64Range(1, maxSize/KiB).Draw(t, "KiB") * KiB
		got, err := ParseSize(FormatSize(bytes))
		if err != nil || got != bytes {
			t.Fatalf("%d: %s: %d %v", bytes, FormatSize(bytes), got, err)
		}
	})
}

func TestNearestIsWhatWasMeant(t *testing.T) {
	known := []string{"memory", "disk", "dataDisks", "k3s", "pci", "usb", "onUnhealthy"}
	for word, want := range map[string]string{
		"memmory": "memory", "Memory": "memory", "mermoy": "memory", "memroy": "memory", "datadisk": "dataDisks", "usd": "usb",
		"k8s": "k3s", "xyz": "", "onunhealthy": "onUnhealthy", "": "", "ab": "", "dsik": "disk",
	} {
		if got := nearest(word, known); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}
