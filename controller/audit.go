package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/homeiac/homelab/controller/store"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

const (
	// auditTimeout bounds the writing of one entry. It does not end with the call:
	// that is when the last one is written.
	auditTimeout = 5 * time.Second
	// auditText and auditWord bound what one entry holds, in bytes.
	auditText = 500
	auditWord = 64
)

// auditor writes who asked what of this controller, and what came of it, into the
// store and the log.
func (c *Controller) auditor() *rpc.Auditor {
	return &rpc.Auditor{
		Begin: func(ctx context.Context, call rpc.Call) (func(rpc.Outcome), error) {
			what, on := askedFor(call.Request)
			return c.act(ctx, call.Who.String(), methodName(call.Method), what, on)
		},
		Denied: func(call rpc.Call, err error, n int) {
			now := c.now().UTC()
			a := store.Act{
				Time: now, Ended: now, Who: call.Who.String(), Method: methodName(call.Method),
				Result: rpc.KindName(err), Text: cut(err.Error(), auditText), Count: n,
			}
			c.appendAct(a)
		},
	}
}

// act writes down that something begins; what cannot be written down must not begin.
// The function that it returns writes down the end.
func (c *Controller) act(ctx context.Context, who, method, what string, on []string) (func(rpc.Outcome), error) {
	a := store.Act{
		Time: c.now().UTC(), Who: who, Method: method, What: what, On: on, Result: store.ResultRunning, Count: 1,
	}
	n, err := c.store.AppendAct(ctx, a)
	if err != nil {
		return nil, fmt.Errorf("nothing was done, since it cannot be written down who asked for it: %w", err)
	}
	c.logAct(a)
	return func(o rpc.Outcome) {
		a.Ended, a.Result, a.Text = c.now().UTC(), rpc.KindName(o.Err), cut(o.Sum, auditText)
		switch {
		case o.Err != nil:
			a.Text = cut(faultText(o.Err), auditText)
		case o.Result != "":
			a.Result = o.Result
		}
		for _, thing := range o.About {
			if !slices.Contains(a.On, thing) {
				a.On = append(a.On, thing)
			}
		}
		c.logAct(a)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
		defer cancel()
		if err := c.store.EndAct(ctx, n, a); err != nil {
			c.log.Error("audit not written", "error", err)
		}
	}, nil
}

func (c *Controller) logAct(a store.Act) {
	level := slog.LevelInfo
	if a.Result != store.ResultOK && a.Result != store.ResultRunning {
		level = slog.LevelWarn
	}
	c.log.Log(context.Background(), level, "audit", "who", a.Who, "method", a.Method, "what", a.What,
		"on", strings.Join(a.On, ", "), "result", a.Result, "text", a.Text, "count", a.Count)
}

// faultText is an error for the audit. Faults of a Spec quote it, and it can hold
// secrets: they are only counted.
func faultText(err error) string {
	var f *faultsError
	if errors.As(err, &f) {
		return fmt.Sprintf("%d faults in the Spec", len(f.faults))
	}
	return err.Error()
}

// methodName is a call as the audit names it: apply.
func methodName(method string) string { return strings.ToLower(path.Base(method)) }

// askedFor is what a request asks for in words, and what about as far as it says.
// Of a Spec only its file's name is told, and of a command only the program.
func askedFor(request any) (what string, on []string) {
	switch req := request.(type) {
	case *controllerv1.ApplyRequest:
		what, on = operationText(req)
		if len(req.GetDestroy()) > 0 {
			what += ", destroying " + words(req.GetDestroy())
		}
		return cut(what, auditText), on
	case *controllerv1.ExecRequest:
		return word(rpc.Program(req.GetArgv())), things("guest", req.GetGuest())
	case *controllerv1.PauseRequest:
		return cut(req.GetReason(), auditText), nil
	case *controllerv1.ResumeRequest:
		if req.GetGuest() == "" {
			return "all changes", nil
		}
		return "guest " + word(req.GetGuest()), things("guest", req.GetGuest())
	case *controllerv1.RevokeCertificateRequest:
		return "certificates " + word(cmp.Or(req.GetHolder(), req.GetSerial())), holders(req.GetHolder())
	case *controllerv1.CreateTokenRequest:
		who := cmp.Or(req.GetRole(), rpc.RoleAgent) + "@" + req.GetName()
		what = "token for " + word(who)
		if req.GetReplace() {
			what += ", in the place of its certificate"
		}
		return what, holders(who)
	case *controllerv1.RevokeTokenRequest:
		return "token " + word(req.GetId()), nil
	case *controllerv1.OfferRootRequest:
		return "a new root", nil
	case *controllerv1.AddRootRequest:
		return "root " + word(req.GetSha256()), nil
	case *controllerv1.DropRootsRequest:
		what = "no root but " + word(req.GetSha256())
		if req.GetForce() {
			what += ", whoever needs another"
		}
		return what, nil
	case *controllerv1.RotateGossipRequest:
		return "the gossip's key", nil
	}
	return "", nil
}

// holders is whom a certificate is for, as a thing.
func holders(who string) []string {
	role, name, _ := strings.Cut(who, "@")
	if role == rpc.RoleAgent {
		return things("host", name)
	}
	return things(word(role), name)
}

// enrolled writes down that somebody got a certificate, with a token or the one they
// had: those calls come without one that says who they are.
func (c *Controller) enrolled(who, method, what string) {
	now := c.now().UTC()
	c.appendAct(store.Act{Time: now, Ended: now, Who: who, Method: method, What: what, On: holders(who), Result: store.ResultOK, Count: 1})
}

func (c *Controller) appendAct(a store.Act) {
	c.logAct(a)
	ctx, cancel := context.WithTimeout(c.life, auditTimeout)
	defer cancel()
	if _, err := c.store.AppendAct(ctx, a); err != nil {
		c.log.Error("audit not written", "error", err)
	}
}

func operationText(req *controllerv1.ApplyRequest) (what string, on []string) {
	op := req.GetOperation()
	if op.GetKind() == controllerv1.OperationKind_OPERATION_KIND_UNSPECIFIED {
		if req.GetSpecName() == "" {
			return "apply", nil
		}
		return "apply " + word(path.Base(req.GetSpecName())), nil
	}
	what = strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(op.GetKind().String(), "OPERATION_KIND_")), "_", " ")
	if op.GetGuest() != "" {
		what += " guest " + word(op.GetGuest())
		on = append(on, things("guest", op.GetGuest())...)
	}
	if op.GetVmid() != 0 {
		what += fmt.Sprintf(" VMID %d", op.GetVmid())
	}
	if op.GetHost() != "" {
		what += " on host " + word(op.GetHost())
		on = append(on, things("host", op.GetHost())...)
	}
	if len(op.GetImages()) > 0 {
		what += " " + words(op.GetImages())
		on = append(on, things("image", op.GetImages()...)...)
	}
	if op.GetNewest() {
		what += ", the newest"
	}
	return what, on
}

// things are names with what they are of.
func things(of string, names ...string) []string {
	var list []string
	for _, name := range names[:min(len(names), auditWord)] {
		if name != "" {
			list = append(list, of+" "+word(name))
		}
	}
	return list
}

// word is what a caller chose, cut where it is longer than any name of ours.
func word(s string) string { return cut(s, auditWord) }

func words(list []string) string {
	var short []string
	for _, s := range list[:min(len(list), auditWord)] {
		short = append(short, word(s))
	}
	return strings.Join(short, ", ")
}

// cut shortens a text to n bytes, at the end of a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}

// aboutPlan are the guests, hosts and images that a plan changes.
func aboutPlan(p *homelabv1.Plan) []string {
	var guests, hosts, images []string
	for _, s := range p.GetSteps() {
		guests = append(guests, things("guest", s.GetGuest())...)
		hosts = append(hosts, things("host", s.GetHost())...)
		images = append(images, things("image", s.GetImage())...)
	}
	return slices.Concat(unique(guests), unique(hosts), unique(images))
}

func unique(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}

// sumOf is what came of a run.
func sumOf(run int64, sum *homelabv1.Summary) string {
	text := fmt.Sprintf("run %d: %d done", run, sum.GetDone())
	for _, n := range []struct {
		n    int32
		what string
	}{{sum.GetFailed(), "failed"}, {sum.GetRefused(), "refused"}, {sum.GetSkipped(), "skipped"}} {
		if n.n > 0 {
			text += fmt.Sprintf(", %d %s", n.n, n.what)
		}
	}
	return text
}

// ListAudit tells the latest entries.
func (s *service) ListAudit(ctx context.Context, req *controllerv1.ListAuditRequest) (*controllerv1.ListAuditResponse, error) {
	limit := int(req.GetLimit())
	if limit <= 0 {
		limit = 100
	}
	var since time.Time
	if req.GetSince() != nil {
		since = req.GetSince().AsTime()
	}
	acts, err := s.c.store.Acts(ctx, limit, since, req.GetBy())
	if err != nil {
		return nil, err
	}
	resp := new(controllerv1.ListAuditResponse)
	for _, a := range acts {
		e := &controllerv1.AuditEntry{
			Time: timestamppb.New(a.Time), Who: a.Who, Method: a.Method, What: a.What, On: a.On,
			Result: a.Result, Text: a.Text, Count: int32(a.Count), Controller: a.Controller,
		}
		if !a.Ended.IsZero() {
			e.Ended = timestamppb.New(a.Ended)
		}
		resp.Entries = append(resp.Entries, e)
	}
	return resp, nil
}
