package image_test

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/homeiac/homelab/agent/image"
)

func TestAHostSendsNoFasterThanItMay(t *testing.T) {
	content := noise(megs, 1)
	pve2 := holder(t, "pve2", content)
	synctest.Test(t, func(t *testing.T) {
		// A transfer at work takes another rate up.
		pve2.g.s.SetRate(1 << 20)
		file, err := pve2.g.s.Pass(image.Digests{SHA256: sum(content)}, 0, []image.Folder{pve2.g.to})
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		began, sent := time.Now(), 0
		var half time.Duration
		buf := make([]byte, 64<<10)
		for {
			n, err := file.Next(t.Context(), buf)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if sent += n; sent == megs/2 {
				half = time.Since(began)
				pve2.g.s.SetRate(0)
			}
		}
		if sent != megs {
			t.Fatal(sent)
		}
		if took := time.Since(began); half < 1500*time.Millisecond || half > 2500*time.Millisecond || took-half > time.Second {
			t.Errorf("2 MiB took %s at 1 MiB/s, the rest %s without a bound", half, took-half)
		}
	})
}
