package driver

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// client is a Driver in another process, through the driver service.
type client struct {
	service driverv1.DriverServiceClient
	gone    context.Context // ends when the process is gone
}

var _ Full = (*client)(nil)

// kindly gives the error its kind back. A call that was cut off by the end of
// the process, and not by its own context, is Unavailable: it may have been done.
func kindly(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() == nil && status.Code(err) == codes.Canceled {
		return rpc.Errorf(rpc.ErrUnavailable, "the driver ended during the call: %s", status.Convert(err).Message())
	}
	return rpc.FromStatus(err)
}

func (c *client) Observe(ctx context.Context, fresh bool) (*driverv1.ObserveResponse, error) {
	seen, err := c.service.Observe(ctx, &driverv1.ObserveRequest{Fresh: fresh})
	return seen, kindly(ctx, err)
}

func (c *client) Inspect(ctx context.Context, vmid int32) (*driverv1.InspectResponse, error) {
	seen, err := c.service.Inspect(ctx, &driverv1.InspectRequest{Vmid: vmid})
	return seen, kindly(ctx, err)
}

func (c *client) Exec(ctx context.Context, req *driverv1.ExecRequest) (*driverv1.ExecResponse, error) {
	out, err := c.service.Exec(ctx, req)
	return out, kindly(ctx, err)
}

func (c *client) Create(ctx context.Context, req *driverv1.CreateRequest, report Report) (*homelabv1.VirtualMachine, error) {
	return follow(ctx, req, c.service.Create, report)
}

func (c *client) Update(ctx context.Context, req *driverv1.UpdateRequest, report Report) (*homelabv1.VirtualMachine, error) {
	return follow(ctx, req, c.service.Update, report)
}

func (c *client) Start(ctx context.Context, req *driverv1.StartRequest, report Report) (*homelabv1.VirtualMachine, error) {
	return follow(ctx, req, c.service.Start, report)
}

func (c *client) Stop(ctx context.Context, req *driverv1.StopRequest, report Report) (*homelabv1.VirtualMachine, error) {
	return follow(ctx, req, c.service.Stop, report)
}

func (c *client) Destroy(ctx context.Context, req *driverv1.DestroyRequest, report Report) (*homelabv1.VirtualMachine, error) {
	return follow(ctx, req, c.service.Destroy, report)
}

func (c *client) Reset(ctx context.Context, req *driverv1.ResetRequest, report Report) (*homelabv1.VirtualMachine, error) {
	return follow(ctx, req, c.service.Reset, report)
}

func (c *client) Adopt(ctx context.Context, req *driverv1.AdoptRequest, report Report) (*homelabv1.VirtualMachine, error) {
	return follow(ctx, req, c.service.Adopt, report)
}

func (c *client) CreateHolder(ctx context.Context, req *driverv1.CreateHolderRequest, report Report) (*homelabv1.VirtualMachine, error) {
	return follow(ctx, req, c.service.CreateHolder, report)
}

func (c *client) MoveDisk(ctx context.Context, req *driverv1.MoveDiskRequest, report Report) (*homelabv1.VirtualMachine, error) {
	return follow(ctx, req, c.service.MoveDisk, report)
}

func (c *client) Orphans(ctx context.Context) (*driverv1.OrphansResponse, error) {
	seen, err := c.service.Orphans(ctx, &driverv1.OrphansRequest{})
	return seen, kindly(ctx, err)
}

func (c *client) Config(ctx context.Context, identity *homelabv1.Identity) ([]byte, error) {
	seen, err := c.service.Config(ctx, &driverv1.ConfigRequest{Identity: identity})
	return seen.GetText(), kindly(ctx, err)
}

func (c *client) CreateTemplate(ctx context.Context, req *driverv1.CreateTemplateRequest, report Report) (*homelabv1.VirtualMachine, error) {
	return follow(ctx, req, c.service.CreateTemplate, report)
}

func (c *client) Storages(ctx context.Context) ([]*homelabv1.Storage, error) {
	seen, err := c.service.Storages(ctx, &driverv1.StoragesRequest{})
	return seen.GetStorages(), kindly(ctx, err)
}

// part is one message of a changing call's answer: an event, or last the VM.
type part[M any] interface {
	*M
	GetEvent() *homelabv1.Event
	GetVm() *homelabv1.VirtualMachine
}

// follow begins a changing call and reports its events until the VM comes.
func follow[Req, M any, P part[M]](
	ctx context.Context, req *Req,
	begin func(context.Context, *Req, ...grpc.CallOption) (grpc.ServerStreamingClient[M], error),
	report Report,
) (*homelabv1.VirtualMachine, error) {
	// Without the cancel a stream that is left early would never end.
	call, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := begin(call, req)
	if err != nil {
		return nil, kindly(ctx, err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, rpc.Errorf(rpc.ErrUnavailable, "the driver's answer ended without the VM")
		}
		if err != nil {
			return nil, kindly(ctx, err)
		}
		if e := P(m).GetEvent(); e != nil {
			report(e)
			continue
		}
		if vm := P(m).GetVm(); vm != nil {
			return vm, nil
		}
	}
}
