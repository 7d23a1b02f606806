package driver

import (
	"context"

	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

var _ Full = (*Process)(nil)

// Observe implements Driver.
func (p *Process) Observe(ctx context.Context, fresh bool) (*driverv1.ObserveResponse, error) {
	c, err := p.up()
	if err != nil {
		return nil, err
	}
	return c.Observe(ctx, fresh)
}

// Inspect implements Driver.
func (p *Process) Inspect(ctx context.Context, vmid int32) (*driverv1.InspectResponse, error) {
	c, err := p.up()
	if err != nil {
		return nil, err
	}
	return c.Inspect(ctx, vmid)
}

// Create implements Driver.
func (p *Process) Create(ctx context.Context, req *driverv1.CreateRequest, report Report) (*homelabv1.VirtualMachine, error) {
	c, err := p.up()
	if err != nil {
		return nil, err
	}
	return c.Create(ctx, req, report)
}

// Update implements Driver.
func (p *Process) Update(ctx context.Context, req *driverv1.UpdateRequest, report Report) (*homelabv1.VirtualMachine, error) {
	c, err := p.up()
	if err != nil {
		return nil, err
	}
	return c.Update(ctx, req, report)
}

// Start implements Driver.
func (p *Process) Start(ctx context.Context, req *driverv1.StartRequest, report Report) (*homelabv1.VirtualMachine, error) {
	c, err := p.up()
	if err != nil {
		return nil, err
	}
	return c.Start(ctx, req, report)
}

// Stop implements Driver.
func (p *Process) Stop(ctx context.Context, req *driverv1.StopRequest, report Report) (*homelabv1.VirtualMachine, error) {
	c, err := p.up()
	if err != nil {
		return nil, err
	}
	return c.Stop(ctx, req, report)
}

// Destroy implements Driver.
func (p *Process) Destroy(ctx context.Context, req *driverv1.DestroyRequest, report Report) (*homelabv1.VirtualMachine, error) {
	c, err := p.up()
	if err != nil {
		return nil, err
	}
	return c.Destroy(ctx, req, report)
}

// Exec implements Driver.
func (p *Process) Exec(ctx context.Context, req *driverv1.ExecRequest) (*driverv1.ExecResponse, error) {
	c, err := p.up()
	if err != nil {
		return nil, err
	}
	return c.Exec(ctx, req)
}

// Reset implements Powers.
func (p *Process) Reset(ctx context.Context, req *driverv1.ResetRequest, report Report) (*homelabv1.VirtualMachine, error) {
	c, err := p.up()
	if err != nil {
		return nil, err
	}
	return c.Reset(ctx, req, report)
}

// Adopt implements Powers.
func (p *Process) Adopt(ctx context.Context, req *driverv1.AdoptRequest, report Report) (*homelabv1.VirtualMachine, error) {
	c, err := p.up()
	if err != nil {
		return nil, err
	}
	return c.Adopt(ctx, req, report)
}

// CreateHolder implements Powers.
func (p *Process) CreateHolder(ctx context.Context, req *driverv1.CreateHolderRequest, report Report) (*homelabv1.VirtualMachine, error) {
	c, err := p.up()
	if err != nil {
		return nil, err
	}
	return c.CreateHolder(ctx, req, report)
}

// MoveDisk implements Powers.
func (p *Process) MoveDisk(ctx context.Context, req *driverv1.MoveDiskRequest, report Report) (*homelabv1.VirtualMachine, error) {
	c, err := p.up()
	if err != nil {
		return nil, err
	}
	return c.MoveDisk(ctx, req, report)
}

// Orphans implements Powers.
func (p *Process) Orphans(ctx context.Context) (*driverv1.OrphansResponse, error) {
	c, err := p.up()
	if err != nil {
		return nil, err
	}
	return c.Orphans(ctx)
}

// Config implements Powers.
func (p *Process) Config(ctx context.Context, identity *homelabv1.Identity) ([]byte, error) {
	c, err := p.up()
	if err != nil {
		return nil, err
	}
	return c.Config(ctx, identity)
}

// CreateTemplate implements Powers.
func (p *Process) CreateTemplate(ctx context.Context, req *driverv1.CreateTemplateRequest, report Report) (*homelabv1.VirtualMachine, error) {
	c, err := p.up()
	if err != nil {
		return nil, err
	}
	return c.CreateTemplate(ctx, req, report)
}

// Storages implements Powers.
func (p *Process) Storages(ctx context.Context) ([]*homelabv1.Storage, error) {
	c, err := p.up()
	if err != nil {
		return nil, err
	}
	return c.Storages(ctx)
}
