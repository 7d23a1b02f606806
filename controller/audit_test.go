package controller

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// audit is what the audit says, oldest first, without what is random in it. The end
// of a call is written before its answer, but a stream's end is not waited for.
func (r *running) audit(t *testing.T, n int) []*controllerv1.AuditEntry {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		resp, err := r.client.ListAudit(t.Context(), &controllerv1.ListAuditRequest{})
		if err != nil {
			t.Fatal(err)
		}
		entries := resp.GetEntries()
		slices.Reverse(entries)
		going := slices.ContainsFunc(entries, func(e *controllerv1.AuditEntry) bool { return e.GetResult() == "running" })
		if len(entries) >= n && !going || time.Now().After(deadline) {
			if len(entries) != n {
				t.Fatalf("%d entries: %v", len(entries), entries)
			}
			return entries
		}
	}
}

func TestWhoChangedWhatAndWhatCameOfItIsInTheAudit(t *testing.T) {
	f := newFleet(t, hostNames(1)...)
	c := f.up()
	ctx := t.Context()
	if o := c.apply(ctx, specOf(1), "", true); o.err != nil {
		t.Fatal(o.err)
	}
	if o := c.apply(ctx, append(specOf(1), "secretKey: hunter2\n"...), "", true); !errors.Is(o.err, rpc.ErrInvalid) {
		t.Fatal(o.err)
	}
	if o := c.ask(ctx, &controllerv1.ApplyRequest{Yes: true, Destroy: []string{"k3s-1"}, Operation: &controllerv1.Operation{
		Kind: controllerv1.OperationKind_OPERATION_KIND_DELETE, Guest: "k3s-1",
	}}); o.err == nil && o.summary.GetRefused() == 0 {
		t.Fatalf("the only server was deleted: %v", o.summary)
	}
	if _, err := c.client.Kubeconfig(ctx, &controllerv1.KubeconfigRequest{}); err != nil {
		t.Fatal(err)
	}
	run := &controllerv1.ExecRequest{Guest: "k3s-1", Argv: []string{"/usr/bin/psql", "--password=hunter2"}, Stdin: []byte("hunter2")}
	if s, err := c.client.Exec(ctx, run); err == nil {
		_, _ = s.Recv()
	}
	run.Argv = []string{"PASSWORD=hunter2 psql"}
	if s, err := c.client.Exec(ctx, run); err == nil {
		_, _ = s.Recv()
	}
	if _, err := c.client.Pause(ctx, &controllerv1.PauseRequest{Reason: "moving house"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.client.Resume(ctx, &controllerv1.ResumeRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.viewer.Resume(ctx, &controllerv1.ResumeRequest{}); !errors.Is(err, rpc.ErrDenied) {
		t.Fatal(err)
	}
	entries := c.audit(t, 9)
	for i, want := range []struct{ who, method, what, on, result, text string }{
		{"admin@admin-1", "apply", "apply homelab.yaml", "guest k3s-1, host pve1, image noble", "ok", "run 1: "},
		{"admin@admin-1", "apply", "apply homelab.yaml", "", "invalid", "1 faults in the Spec"},
		{"admin@admin-1", "apply", "delete guest k3s-1, destroying k3s-1", "guest k3s-1", "", ""},
		{"admin@admin-1", "kubeconfig", "", "", "ok", ""},
		{"admin@admin-1", "exec", "psql", "guest k3s-1", "", ""},
		{"admin@admin-1", "exec", "PASSWORD=…", "guest k3s-1", "", ""},
		{"admin@admin-1", "pause", "moving house", "", "ok", ""},
		{"admin@admin-1", "resume", "all changes", "", "ok", ""},
		{"viewer@viewer-1", "resume", "", "", "denied", "viewer@viewer-1 may not call Resume"},
	} {
		e := entries[i]
		if e.GetWho() != want.who || e.GetMethod() != want.method || e.GetWhat() != want.what || strings.Join(e.GetOn(), ", ") != want.on ||
			want.result != "" && e.GetResult() != want.result || !strings.Contains(e.GetText(), want.text) ||
			e.GetController() != "controller-1" || e.GetCount() != 1 || e.GetTime() == nil || e.GetEnded() == nil {
			t.Errorf("%v\nwant %v", e, want)
		}
		if strings.Contains(e.String(), "hunter2") || strings.Contains(e.String(), k3sToken) {
			t.Errorf("a secret: %v", e)
		}
	}
	if _, err := c.viewer.ListAudit(ctx, &controllerv1.ListAuditRequest{}); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("a viewer reads the audit: %v", err)
	}
}

func TestARunThatAKilledControllerLeftIsInterruptedInTheAudit(t *testing.T) {
	f := newFleet(t, "pve1")
	c := f.up()
	end, err := c.act(context.Background(), "admin@admin-1", "apply", "apply homelab.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}
	c.kill()
	end(rpc.Outcome{}) // the store is closed: it cannot be written any more
	c = f.up()
	if e := c.audit(t, 1)[0]; e.GetResult() != "interrupted" || e.GetWho() != "admin@admin-1" {
		t.Errorf("%v", e)
	}
}

func TestWhatAStrangerChoosesIsCutInTheAudit(t *testing.T) {
	long := strings.Repeat("ä", 1<<16)
	many := slices.Repeat([]string{long}, 1000)
	for _, req := range []any{
		&controllerv1.ApplyRequest{SpecName: long, Destroy: many},
		&controllerv1.ApplyRequest{Operation: &controllerv1.Operation{Kind: controllerv1.OperationKind_OPERATION_KIND_FETCH_IMAGES, Guest: long, Host: long, Images: many}},
		&controllerv1.ExecRequest{Guest: long, Argv: []string{long}},
		&controllerv1.ExecRequest{},
		&controllerv1.PauseRequest{Reason: long},
		&controllerv1.ResumeRequest{Guest: long},
	} {
		what, on := askedFor(req)
		if len(what) > 600 || len(strings.Join(on, "")) > 200*auditWord {
			t.Errorf("%T: %d and %d bytes", req, len(what), len(strings.Join(on, "")))
		}
	}
}
