package test

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// wait is one line of a lab's waits.jsonl: an interval in which something
// simulated only took the time that the real thing would.
type wait struct {
	Host  string    `json:"host"`
	What  string    `json:"what"`
	Guest string    `json:"guest"`
	Start time.Time `json:"start"`
	End   time.Time `json:"end"`
}

// beforeJoin says whether a wait of a first apply comes before its guest's join;
// all that k3s and etcd wait for is part of it.
func (w wait) beforeJoin() bool {
	return strings.HasPrefix(w.What, "cost of ") || w.What == "boot" || w.What == "cloud-init"
}

// longestChain is the longest chain of simulated waits of a first apply of which
// each could not begin before the one ahead of it had ended, by what the plan
// itself orders:
//
//   - on one host the programs, the boot and cloud-init follow each other, and
//     then comes the join of its guest;
//   - the first server starts the cluster before anyone joins;
//   - the other servers join one after the other, in the order given;
//   - agents join beside each other, after the first server.
//
// Waits of one host that overlap (a learner waits for its promotion while k3s
// starts) count once. What lies between the waits is no part of the chain: that
// is the overhead which it is compared with.
func longestChain(waits []wait, servers, agents []string) time.Duration {
	before, join := map[string][]wait{}, map[string][]wait{}
	for _, w := range waits {
		if w.beforeJoin() {
			before[w.Host] = append(before[w.Host], w)
		} else {
			join[w.Host] = append(join[w.Host], w)
		}
	}
	var last, first time.Duration
	for i, host := range servers {
		last = max(last, covered(before[host])) + covered(join[host])
		if i == 0 {
			first = last
		}
	}
	longest := last
	for _, host := range agents {
		longest = max(longest, max(first, covered(before[host]))+covered(join[host]))
	}
	return longest
}

// covered is how much time the waits cover together.
func covered(waits []wait) time.Duration {
	sorted := slices.SortedFunc(slices.Values(waits), func(a, b wait) int { return a.Start.Compare(b.Start) })
	var sum time.Duration
	var end time.Time
	for _, w := range sorted {
		if w.Start.Before(end) {
			w.Start = end
		}
		if w.End.After(w.Start) {
			sum += w.End.Sub(w.Start)
			end = w.End
		}
	}
	return sum
}

func TestLongestChain(t *testing.T) {
	at := func(s float64) time.Time { return time.Unix(1e9, 0).Add(time.Duration(s * float64(time.Second))) }
	w := func(host, what string, start, end float64) wait {
		return wait{Host: host, What: what, Start: at(start), End: at(end)}
	}
	waits := []wait{
		w("a", "cost of qm", 0, 1), w("a", "boot", 2, 3), // 2 before the join
		w("a", "k3s start", 4, 5),
		w("b", "cost of qm", 0, 6), // longer than all of a
		w("b", "k3s start", 7, 8), w("b", "learner promotion", 7.5, 10),
		w("c", "cost of qm", 0, 1), w("c", "learner promotion", 11, 12),
		w("d", "boot", 0, 20), w("d", "k3s start", 21, 21.5),
	}
	for _, c := range []struct {
		servers, agents []string
		want            float64
	}{
		{[]string{"a"}, nil, 3},
		{[]string{"a", "b"}, nil, 9}, // b's 6, and the 3 that its join covers
		{[]string{"a", "b", "c"}, nil, 10},
		{[]string{"a"}, []string{"c"}, 4},
		{[]string{"a", "b", "c"}, []string{"d"}, 20.5},
	} {
		if got := longestChain(waits, c.servers, c.agents); got != time.Duration(c.want*float64(time.Second)) {
			t.Errorf("servers %q, agents %q: %v, want %v s", c.servers, c.agents, got, c.want)
		}
	}
}
