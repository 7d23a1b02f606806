package proxmox

import (
	"context"

	"github.com/homeiac/homelab/agent/driver"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// CreateTemplate implements driver.Powers.
func (d *Driver) CreateTemplate(context.Context, *driverv1.CreateTemplateRequest, driver.Report) (*homelabv1.VirtualMachine, error) {
	return nil, rpc.Errorf(rpc.ErrUnsupported, "templates")
}

// Storages implements driver.Powers.
func (d *Driver) Storages(context.Context) ([]*homelabv1.Storage, error) {
	return nil, rpc.Errorf(rpc.ErrUnsupported, "storages")
}
