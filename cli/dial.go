package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// reads are the calls that change nothing and may be repeated.
var reads = []string{
	controllerv1.ControllerService_Plan_FullMethodName,
	controllerv1.ControllerService_Status_FullMethodName,
	controllerv1.ControllerService_ListRuns_FullMethodName,
	controllerv1.ControllerService_Version_FullMethodName,
}

// probeTimeout is how long a controller may take to answer before the next is tried.
const probeTimeout = 3 * time.Second

// controller is an open connection to the first controller that answers.
type controller struct {
	controllerv1.ControllerServiceClient
	close   func()
	address string
	version *controllerv1.VersionResponse
}

// connect finds a controller that answers. When none does, the error tells why
// for each.
func (a *app) connect(ctx context.Context) (*controller, error) {
	c, err := a.loadContext()
	if err != nil {
		return nil, err
	}
	creds, err := rpc.LoadTLS(c.CA, c.Cert, c.Key)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, address := range c.Controllers {
		conn, err := rpc.Dial(rpc.Target{
			Address: address, Role: rpc.RoleController, Credentials: creds, Reads: reads,
			Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		})
		if err != nil {
			return nil, err
		}
		client := controllerv1.NewControllerServiceClient(conn)
		probe, cancel := context.WithTimeout(ctx, probeTimeout)
		version, err := client.Version(probe, &controllerv1.VersionRequest{})
		cancel()
		if err == nil {
			return &controller{ControllerServiceClient: client, close: func() { _ = conn.Close() }, address: address, version: version}, nil
		}
		_ = conn.Close()
		// A certificate that is refused here is refused everywhere.
		if errors.Is(err, rpc.ErrDenied) {
			return nil, err
		}
		errs = append(errs, fmt.Errorf("%s: %w", address, err))
	}
	var lines []string
	for _, err := range errs {
		lines = append(lines, "  "+err.Error())
	}
	return nil, fmt.Errorf("no controller answers\n%s\nis it running? on its host: systemctl status hl-controller", strings.Join(lines, "\n"))
}
