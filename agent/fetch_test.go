package agent

import (
	"testing"
	"time"

	"github.com/homeiac/homelab/agent/image"
)

func TestHowFarAFetchIsIsToldWithItsRateOverTheLastSeconds(t *testing.T) {
	const mib = 1 << 20
	var m meter
	began := time.Unix(0, 0)
	if got, want := m.text(image.Told{From: "its source"}), "0 B of ?, from its source"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for s := range 10 {
		m.add(began.Add(time.Duration(s)*time.Second), int64(s)*mib) // slow at first
	}
	for s := range 6 {
		m.add(began.Add(time.Duration(10+s)*time.Second), int64(20+s*48)*mib)
	}
	if got, want := m.text(image.Told{Done: 260 * mib, Total: 512 * mib, From: "pve2"}), "260 MiB of 512 MiB, 48 MiB/s, 0:06 left, from pve2"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	m.add(began.Add(20*time.Second), mib) // it began anew
	if r := m.rate(); r != 0 {
		t.Errorf("rate %f of what was dropped", r)
	}
}
