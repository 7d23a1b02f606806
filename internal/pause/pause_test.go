package pause_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/homeiac/homelab/internal/pause"
)

func TestAPausePassesOrIsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if !pause.For(t.Context(), time.Minute) || time.Since(began) != time.Minute {
			t.Errorf("a pause of a minute took %s", time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		if pause.For(ctx, time.Minute) || time.Since(began) != time.Second {
			t.Errorf("a pause in a context of a second took %s", time.Since(began))
		}
	})
}
