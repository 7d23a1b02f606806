package driver

import (
	"context"

	"google.golang.org/grpc"

	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// server is a Driver behind the driver service, in the plugin process. A report
// that cannot be sent is dropped: the caller has gone, and the context says so.
type server struct {
	driverv1.UnimplementedDriverServiceServer
	driver Driver
}

func (s *server) Observe(ctx context.Context, req *driverv1.ObserveRequest) (*driverv1.ObserveResponse, error) {
	seen, err := s.driver.Observe(ctx, req.GetFresh())
	return seen, rpc.ToStatus(err)
}

func (s *server) Inspect(ctx context.Context, req *driverv1.InspectRequest) (*driverv1.InspectResponse, error) {
	seen, err := s.driver.Inspect(ctx, req.GetVmid())
	return seen, rpc.ToStatus(err)
}

func (s *server) Exec(ctx context.Context, req *driverv1.ExecRequest) (*driverv1.ExecResponse, error) {
	out, err := s.driver.Exec(ctx, req)
	return out, rpc.ToStatus(err)
}

func (s *server) Create(req *driverv1.CreateRequest, stream grpc.ServerStreamingServer[driverv1.CreateResponse]) error {
	vm, err := s.driver.Create(stream.Context(), req, func(e *homelabv1.Event) {
		_ = stream.Send(&driverv1.CreateResponse{Part: &driverv1.CreateResponse_Event{Event: e}})
	})
	if err != nil {
		return rpc.ToStatus(err)
	}
	return stream.Send(&driverv1.CreateResponse{Part: &driverv1.CreateResponse_Vm{Vm: vm}})
}

func (s *server) Update(req *driverv1.UpdateRequest, stream grpc.ServerStreamingServer[driverv1.UpdateResponse]) error {
	vm, err := s.driver.Update(stream.Context(), req, func(e *homelabv1.Event) {
		_ = stream.Send(&driverv1.UpdateResponse{Part: &driverv1.UpdateResponse_Event{Event: e}})
	})
	if err != nil {
		return rpc.ToStatus(err)
	}
	return stream.Send(&driverv1.UpdateResponse{Part: &driverv1.UpdateResponse_Vm{Vm: vm}})
}

func (s *server) Start(req *driverv1.StartRequest, stream grpc.ServerStreamingServer[driverv1.StartResponse]) error {
	vm, err := s.driver.Start(stream.Context(), req, func(e *homelabv1.Event) {
		_ = stream.Send(&driverv1.StartResponse{Part: &driverv1.StartResponse_Event{Event: e}})
	})
	if err != nil {
		return rpc.ToStatus(err)
	}
	return stream.Send(&driverv1.StartResponse{Part: &driverv1.StartResponse_Vm{Vm: vm}})
}

func (s *server) Stop(req *driverv1.StopRequest, stream grpc.ServerStreamingServer[driverv1.StopResponse]) error {
	vm, err := s.driver.Stop(stream.Context(), req, func(e *homelabv1.Event) {
		_ = stream.Send(&driverv1.StopResponse{Part: &driverv1.StopResponse_Event{Event: e}})
	})
	if err != nil {
		return rpc.ToStatus(err)
	}
	return stream.Send(&driverv1.StopResponse{Part: &driverv1.StopResponse_Vm{Vm: vm}})
}

func (s *server) Destroy(req *driverv1.DestroyRequest, stream grpc.ServerStreamingServer[driverv1.DestroyResponse]) error {
	vm, err := s.driver.Destroy(stream.Context(), req, func(e *homelabv1.Event) {
		_ = stream.Send(&driverv1.DestroyResponse{Part: &driverv1.DestroyResponse_Event{Event: e}})
	})
	if err != nil {
		return rpc.ToStatus(err)
	}
	return stream.Send(&driverv1.DestroyResponse{Part: &driverv1.DestroyResponse_Vm{Vm: vm}})
}

func (s *server) Reset(req *driverv1.ResetRequest, stream grpc.ServerStreamingServer[driverv1.ResetResponse]) error {
	vm, err := powersOf(s.driver).Reset(stream.Context(), req, func(e *homelabv1.Event) {
		_ = stream.Send(&driverv1.ResetResponse{Part: &driverv1.ResetResponse_Event{Event: e}})
	})
	if err != nil {
		return rpc.ToStatus(err)
	}
	return stream.Send(&driverv1.ResetResponse{Part: &driverv1.ResetResponse_Vm{Vm: vm}})
}

func (s *server) Adopt(req *driverv1.AdoptRequest, stream grpc.ServerStreamingServer[driverv1.AdoptResponse]) error {
	vm, err := powersOf(s.driver).Adopt(stream.Context(), req, func(e *homelabv1.Event) {
		_ = stream.Send(&driverv1.AdoptResponse{Part: &driverv1.AdoptResponse_Event{Event: e}})
	})
	if err != nil {
		return rpc.ToStatus(err)
	}
	return stream.Send(&driverv1.AdoptResponse{Part: &driverv1.AdoptResponse_Vm{Vm: vm}})
}

func (s *server) CreateHolder(req *driverv1.CreateHolderRequest, stream grpc.ServerStreamingServer[driverv1.CreateHolderResponse]) error {
	vm, err := powersOf(s.driver).CreateHolder(stream.Context(), req, func(e *homelabv1.Event) {
		_ = stream.Send(&driverv1.CreateHolderResponse{Part: &driverv1.CreateHolderResponse_Event{Event: e}})
	})
	if err != nil {
		return rpc.ToStatus(err)
	}
	return stream.Send(&driverv1.CreateHolderResponse{Part: &driverv1.CreateHolderResponse_Vm{Vm: vm}})
}

func (s *server) MoveDisk(req *driverv1.MoveDiskRequest, stream grpc.ServerStreamingServer[driverv1.MoveDiskResponse]) error {
	vm, err := powersOf(s.driver).MoveDisk(stream.Context(), req, func(e *homelabv1.Event) {
		_ = stream.Send(&driverv1.MoveDiskResponse{Part: &driverv1.MoveDiskResponse_Event{Event: e}})
	})
	if err != nil {
		return rpc.ToStatus(err)
	}
	return stream.Send(&driverv1.MoveDiskResponse{Part: &driverv1.MoveDiskResponse_Vm{Vm: vm}})
}

func (s *server) Orphans(ctx context.Context, _ *driverv1.OrphansRequest) (*driverv1.OrphansResponse, error) {
	seen, err := powersOf(s.driver).Orphans(ctx)
	return seen, rpc.ToStatus(err)
}

func (s *server) Config(ctx context.Context, req *driverv1.ConfigRequest) (*driverv1.ConfigResponse, error) {
	text, err := powersOf(s.driver).Config(ctx, req.GetIdentity())
	if err != nil {
		return nil, rpc.ToStatus(err)
	}
	return &driverv1.ConfigResponse{Text: text}, nil
}

func (s *server) CreateTemplate(req *driverv1.CreateTemplateRequest, stream grpc.ServerStreamingServer[driverv1.CreateTemplateResponse]) error {
	vm, err := powersOf(s.driver).CreateTemplate(stream.Context(), req, func(e *homelabv1.Event) {
		_ = stream.Send(&driverv1.CreateTemplateResponse{Part: &driverv1.CreateTemplateResponse_Event{Event: e}})
	})
	if err != nil {
		return rpc.ToStatus(err)
	}
	return stream.Send(&driverv1.CreateTemplateResponse{Part: &driverv1.CreateTemplateResponse_Vm{Vm: vm}})
}

func (s *server) Storages(ctx context.Context, _ *driverv1.StoragesRequest) (*driverv1.StoragesResponse, error) {
	storages, err := powersOf(s.driver).Storages(ctx)
	if err != nil {
		return nil, rpc.ToStatus(err)
	}
	return &driverv1.StoragesResponse{Storages: storages}, nil
}
