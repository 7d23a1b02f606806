package human_test

import (
	"testing"
	"time"

	"github.com/homeiac/homelab/internal/human"
)

func TestSize(t *testing.T) {
	for bytes, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 64 << 20: "64 MiB", 3 << 29: "1.5 GiB", 4 << 30: "4 GiB",
		33_600_000_000: "31.3 GiB", 2 << 40: "2 TiB", -1 << 30: "-1 GiB",
	} {
		if got := human.Size(bytes); got != want {
			t.Errorf("%d bytes: %q, want %q", bytes, got, want)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 59*time.Second + 900*time.Millisecond: "59 s", 4 * time.Minute: "4 min", 90 * time.Minute: "1 h",
		5 * time.Hour: "5 h", 72 * time.Hour: "3 days",
	} {
		if got := human.Span(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}

func TestAClockShowsMinutesAndHoursWhenThereAreAny(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0:00", 5500 * time.Millisecond: "0:06", 12*time.Minute + 30*time.Second: "12:30",
		time.Hour + 2*time.Minute + 3*time.Second: "1:02:03",
	} {
		if got := human.Clock(d); got != want {
			t.Errorf("%s: %s, want %s", d, got, want)
		}
	}
}
