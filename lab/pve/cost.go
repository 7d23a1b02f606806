package pve

import (
	"context"
	_ "embed"
	"encoding/json"
	"strings"
	"sync"
	"time"
)

// timing.json holds the measured times of the real programs.
//
//go:embed timing.json
var timingJSON []byte

var timing = sync.OnceValue(func() map[string]time.Duration {
	var raw map[string]struct {
		WallMsMedian float64 `json:"wallMsMedian"`
	}
	if err := json.Unmarshal(timingJSON, &raw); err != nil {
		panic("lab/pve: timing.json: " + err.Error())
	}
	times := map[string]time.Duration{}
	for name, t := range raw {
		name, _, _ = strings.Cut(name, " (")
		times[name] = time.Duration(t.WallMsMedian * float64(time.Millisecond))
	}
	return times
})

// cost is the time a program takes: starting Perl comes before anything else,
// the rest is its work.
type cost struct{ startup, work time.Duration }

// cost looks up what a call takes. What was not measured takes what starting
// the program was measured to take.
func (h *Host) cost(program string, args []string) cost {
	if h.cfg.QMCost != "real" {
		return cost{}
	}
	t := timing()
	startup := t["perl -MPVE::CLI::qm -e 1"]
	total := startup
	switch program {
	case "pvesh":
		startup = t["perl -MPVE::API2 -e 1"]
		total = t["pvesh get cluster/nextid"]
	case "pvesm":
		startup, total = t["pvesm status"], t["pvesm status"]
	case "pveversion":
		startup, total = t["pveversion"], t["pveversion"]
	}
	verb := program
	for _, a := range args {
		if strings.HasPrefix(a, "-") {
			break
		}
		verb += " " + a
		name := verb
		if verb == "qm set" {
			name = "qm set --memory"
		}
		if d, ok := t[name]; ok {
			total = d
			break
		}
	}
	if total < startup {
		startup = total
	}
	return cost{startup: startup, work: total - startup}
}

func (h *Host) pay(ctx context.Context, program string, d time.Duration) error {
	return h.wait(ctx, "cost of "+program, "", d)
}
