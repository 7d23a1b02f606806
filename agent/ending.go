package agent

import (
	"context"
	"errors"
	"time"

	"github.com/homeiac/homelab/agent/driver"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
)

// stopGrace is how long an agent that is to end waits for a program that works on a
// VM. The unit's TimeoutStopSec is longer.
const stopGrace = 90 * time.Second

// answerAgain is the pause between two questions to a driver that does not answer.
const answerAgain = 200 * time.Millisecond

var errEnding = errors.New("the agent is ending")

// observer is what of a driver tells that it works.
type observer interface {
	WaitUp(ctx context.Context) error
	Observe(ctx context.Context, fresh bool) (*driverv1.ObserveResponse, error)
}

// answers waits until the driver has answered once, and says whether it did before
// ctx ended. What it answers does not matter: without pve-cluster it sees nothing,
// and that must be told too.
func answers(ctx context.Context, d observer) bool {
	for d.WaitUp(ctx) == nil {
		if _, err := d.Observe(ctx, false); err == nil {
			return true
		}
		if !pause.For(ctx, answerAgain) {
			return false
		}
	}
	return false
}

// unlessEnding gives a context that ends with the agent too.
func (f *flights) unlessEnding(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-f.ending:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// ends says whether the agent ends.
func (f *flights) ends() bool {
	select {
	case <-f.ending:
		return true
	default:
		return false
	}
}

// outlasting is a driver whose changing calls go on for a while after their context
// was cancelled, which it is when the agent ends: a qm that is let finish leaves
// nothing to be found out. What such a call waits for otherwise ends by itself then
// (driver.Process.End). A context that is over already begins nothing.
type outlasting struct {
	driver.Full
	grace time.Duration
}

// lasting carries out one changing call.
func lasting[Req any](ctx context.Context, grace time.Duration, req Req, report driver.Report,
	call func(context.Context, Req, driver.Report) (*homelabv1.VirtualMachine, error),
) (*homelabv1.VirtualMachine, error) {
	if ctx.Err() != nil {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "nothing was begun on the VM: %w", ctx.Err())
	}
	long, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	if deadline, ok := ctx.Deadline(); ok {
		// It stays: the step's own limit.
		long, cancel = context.WithDeadline(long, deadline)
		defer cancel()
	}
	stop := context.AfterFunc(ctx, func() {
		pause.For(long, grace)
		cancel()
	})
	defer stop()
	return call(long, req, report)
}

// Create implements driver.Driver; all below are its changing calls.
func (o outlasting) Create(ctx context.Context, req *driverv1.CreateRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	return lasting(ctx, o.grace, req, report, o.Full.Create)
}

func (o outlasting) Update(ctx context.Context, req *driverv1.UpdateRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	return lasting(ctx, o.grace, req, report, o.Full.Update)
}

func (o outlasting) Start(ctx context.Context, req *driverv1.StartRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	return lasting(ctx, o.grace, req, report, o.Full.Start)
}

func (o outlasting) Stop(ctx context.Context, req *driverv1.StopRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	return lasting(ctx, o.grace, req, report, o.Full.Stop)
}

func (o outlasting) Destroy(ctx context.Context, req *driverv1.DestroyRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	return lasting(ctx, o.grace, req, report, o.Full.Destroy)
}

func (o outlasting) Reset(ctx context.Context, req *driverv1.ResetRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	return lasting(ctx, o.grace, req, report, o.Full.Reset)
}

func (o outlasting) Adopt(ctx context.Context, req *driverv1.AdoptRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	return lasting(ctx, o.grace, req, report, o.Full.Adopt)
}

func (o outlasting) CreateHolder(ctx context.Context, req *driverv1.CreateHolderRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	return lasting(ctx, o.grace, req, report, o.Full.CreateHolder)
}

func (o outlasting) MoveDisk(ctx context.Context, req *driverv1.MoveDiskRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	return lasting(ctx, o.grace, req, report, o.Full.MoveDisk)
}

func (o outlasting) CreateTemplate(ctx context.Context, req *driverv1.CreateTemplateRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	return lasting(ctx, o.grace, req, report, o.Full.CreateTemplate)
}
