package gossip

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhatOurKeysDoNotOpenIsLoggedOnceAMinuteForEachSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := new(lines)
		log := newLogBridge(slogTo(out))
		for range 10 {
			log.Printf("[ERR] memberlist: Decrypt packet failed: no installed keys could decrypt the message from=192.0.2.1:7946")
			log.Printf("[ERR] memberlist: Decrypt failed: %s from %s", errStranger, "192.0.2.2:40001")
			log.Printf("[ERR] memberlist: Push/Pull with pve3 failed: timeout") // a host that is off
		}
		for _, from := range []string{"address=192.0.2.1 ", "address=192.0.2.2 "} {
			if n := strings.Count(out.String(), from); n != 1 {
				t.Errorf("%s: %d lines", from, n)
			}
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if got := out.String(); strings.Count(got, "level=WARN") != 4 || strings.Count(got, "count=9") != 2 {
			t.Errorf("after a minute:\n%s", got)
		}
	})
}

func TestTheSourceOfAStranger(t *testing.T) {
	for text, want := range map[string]string{
		"Decrypt packet failed: x from=10.0.0.9:7946": "10.0.0.9", "Decrypt failed: x from [fd00::9]:1": "fd00::9",
		"Decrypt failed: x from=<unknown address>": "", "Decrypt failed": "",
	} {
		if got := source(text); got != want {
			t.Errorf("%s: %q", text, got)
		}
	}
}
