package driver

import (
	"context"
	"errors"

	plugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
)

// pluginName is the only plugin that a driver process serves.
const pluginName = "driver"

// handshake keeps an agent from talking to a program that is no driver, and tells
// a person who starts a driver by hand what it is. It is no secret: AutoMTLS is
// what keeps others out. The version rises when the contract breaks.
var handshake = plugin.HandshakeConfig{
	ProtocolVersion:  1,
	MagicCookieKey:   "HOMELAB_DRIVER_PLUGIN",
	MagicCookieValue: "a9e7b1c2-driver",
}

// grpcPlugin joins the contract to go-plugin, on either side.
type grpcPlugin struct {
	plugin.NetRPCUnsupportedPlugin
	driver Driver // in the plugin process only
}

func (p *grpcPlugin) GRPCServer(_ *plugin.GRPCBroker, s *grpc.Server) error {
	if p.driver == nil {
		return errors.New("no driver to serve")
	}
	driverv1.RegisterDriverServiceServer(s, &server{driver: p.driver})
	return nil
}

// GRPCClient is given a context that go-plugin ends when the process is gone.
func (p *grpcPlugin) GRPCClient(gone context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return &client{service: driverv1.NewDriverServiceClient(conn), gone: gone}, nil
}
