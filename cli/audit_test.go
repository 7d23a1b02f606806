package cli

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// ListAudit tells one refused call, and what was asked for in a second one.
func (f *fake) ListAudit(_ context.Context, req *controllerv1.ListAuditRequest) (*controllerv1.ListAuditResponse, error) {
	return &controllerv1.ListAuditResponse{Entries: []*controllerv1.AuditEntry{
		{
			Time: timestamppb.New(noon), Who: "admin@laptop", Method: "apply", What: "delete guest k3s-1, destroying k3s-1 and more", On: []string{"guest k3s-1", "host pve1", "host pve2", "image noble"},
			Result: "refused", Text: "it is the only server", Count: 1, Ended: timestamppb.New(noon.Add(time.Second)), Controller: "controller-1",
		},
		{Time: req.GetSince(), Who: "viewer@" + req.GetBy(), Method: "createtoken", What: "token for agent@pve9", Result: "denied", Count: req.GetLimit(), Controller: "controller-1"},
	}}, nil
}

func TestTheAuditIsShownWithEveryField(t *testing.T) {
	r := newRig(t)
	got := r.run("audit", "--limit", "7", "--since", "2h", "--by", "tv", "-o", "json")
	wants(t, got, 0)
	var docs []map[string]any
	if err := json.Unmarshal([]byte(got.out), &docs); err != nil || len(docs) != 2 {
		t.Fatalf("%v: %s", err, got.out)
	}
	for _, doc := range docs {
		for _, field := range []string{"time", "who", "method", "what", "on", "result", "text", "count", "ended", "controller"} {
			if _, ok := doc[field]; !ok {
				t.Errorf("%s is missing: %v", field, doc)
			}
		}
	}
	if d := docs[1]; d["time"] != "2026-03-01T12:02:00Z" || d["who"] != "viewer@tv" || d["count"] != 7.0 || d["ended"] != nil {
		t.Errorf("%v", d)
	}
	wants(t, r.run("audit", "--by", "tv", "--since", "2026-02-01"), 0, "delete guest k3s-1, destroying", "refused", "it is the only server", "100 times", "create token for agent@pve9")
	// All in 80 columns, with as much as there may be.
	for line := range strings.Lines(r.run("audit", "--limit", "1").out) {
		if utf8.RuneCountInString(strings.TrimSuffix(line, "\n")) > 80 {
			t.Errorf("%d columns: %s", utf8.RuneCountInString(line), line)
		}
	}
	wants(t, r.run("audit", "--since", "yesterday"), 1, "--since yesterday is none of 2h")
}
