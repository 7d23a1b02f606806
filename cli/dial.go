package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
)

// reads are the calls that change nothing and may be repeated.
var reads = []string{
	controllerv1.ControllerService_Plan_FullMethodName,
	controllerv1.ControllerService_Status_FullMethodName,
	controllerv1.ControllerService_ListRuns_FullMethodName,
	controllerv1.ControllerService_Version_FullMethodName,
	controllerv1.ControllerService_Why_FullMethodName,
	controllerv1.ControllerService_Orphans_FullMethodName,
	controllerv1.ControllerService_ListSnapshots_FullMethodName,
	controllerv1.ControllerService_ListAudit_FullMethodName,
	controllerv1.ControllerService_ListTokens_FullMethodName,
	controllerv1.ControllerService_Trust_FullMethodName,
}

const (
	// probeTimeout is how long a controller may take to say that it is there.
	probeTimeout = 3 * time.Second
	// probeHead is the lead that a controller has over the next one in the
	// configuration: one that is off does not delay every command by probeTimeout.
	probeHead = 300 * time.Millisecond
	// callTimeout bounds a call with one answer. A controller bounds its own
	// looks at hosts with seconds; this is for one that hangs.
	callTimeout = 2 * time.Minute
)

// controller is an open connection to a controller that answers.
type controller struct {
	controllerv1.ControllerServiceClient
	close   func()
	version *controllerv1.VersionResponse
	// unkept is why the list of revoked certificates that it told is not kept.
	unkept error
}

// connect finds a controller that answers, the first in the configuration if it
// can be. When none does, the error tells why for each.
func (a *app) connect(ctx context.Context) (*controller, error) {
	c, creds, err := a.credentials()
	if err != nil {
		return nil, err
	}
	found, err := first(ctx, c, func(ctx context.Context, address string) (*controller, error) { return probe(ctx, creds, address) })
	if err == nil && found.unkept != nil {
		fmt.Fprintf(a.errw, "warning: the list of revoked certificates is not kept, and asked for each time: %v\n", found.unkept)
	}
	return found, err
}

// credentials are the context and what we show of ourselves in it.
func (a *app) credentials() (clientContext, *rpc.Credentials, error) {
	c, err := a.loadContext()
	if err != nil {
		return c, nil, err
	}
	creds, err := rpc.LoadTLS(c.CA, c.Cert, c.Key)
	if err != nil {
		return c, nil, fmt.Errorf("%w\n  correct ca, cert and key in %s, or make them anew: %s", err, c.where, renewHint)
	}
	creds.Log = slog.New(slog.DiscardHandler)
	creds.Renew = renewHint
	if err := c.keepRevocations(creds); err != nil {
		return c, nil, err
	}
	a.warnOfEnd(creds)
	return c, creds, nil
}

// keepRevocations has the credentials go by the list of revoked certificates that is kept
// beside the configuration.
func (c clientContext) keepRevocations(creds *rpc.Credentials) error {
	return creds.KeepRevocations(c.beside("revocations-" + creds.Identity().Fleet + ".pem"))
}

// warnOfEnd says that our own certificate ends soon, while it is easy to renew.
func (a *app) warnOfEnd(creds *rpc.Credentials) {
	leaf := creds.Leaf()
	left := leaf.NotAfter.Sub(creds.Now())
	if left > 0 && left < soon && left < leaf.NotAfter.Sub(leaf.NotBefore)/3 && !a.warned {
		a.warned = true
		fmt.Fprintf(a.errw, "warning: the certificate of %s ends on %s; get a new one with: %s\n", creds.Identity(), day(leaf.NotAfter, true), renewHint)
	}
}

// first asks the controllers, each a little after the one before, and takes the
// first that answers.
func first(ctx context.Context, c clientContext, probe func(context.Context, string) (*controller, error)) (*controller, error) {
	type answer struct {
		i     int
		found *controller
		err   error
	}
	probing, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer, len(c.Controllers))
	for i, address := range c.Controllers {
		go func() {
			if !pause.For(probing, time.Duration(i)*probeHead) {
				answers <- answer{i: i, err: probing.Err()}
				return
			}
			found, err := probe(probing, address)
			answers <- answer{i, found, err}
		}()
	}
	errs := make([]error, len(c.Controllers))
	for n := range c.Controllers {
		got := <-answers
		if got.err != nil {
			errs[got.i] = got.err
			continue
		}
		go func() {
			for range len(c.Controllers) - n - 1 {
				if late := <-answers; late.found != nil {
					late.found.close()
				}
			}
		}()
		return got.found, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, noController(c, errs)
}

// noController says why none of the controllers can be used. What is wrong with
// our own certificate is the same everywhere, and is said once.
func noController(c clientContext, errs []error) error {
	same, denied := true, true
	var lines []string
	for i, err := range errs {
		same = same && err.Error() == errs[0].Error()
		denied = denied && errors.Is(err, rpc.ErrDenied)
		lines = append(lines, "  "+c.Controllers[i]+": "+cause(err))
	}
	if same && denied {
		return errs[0]
	}
	text := "no controller answers"
	next := "  is it running? on its host: systemctl status hl-controller\n  the addresses are from " + c.where
	if denied {
		text, next = "no controller can be spoken to", "  the addresses and certificates are from "+c.where
	}
	return fmt.Errorf("%s\n%s\n%s", text, strings.Join(lines, "\n"), next)
}

// cause is a connection's error without gRPC's words around it.
func cause(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("no answer within %.0f s", probeTimeout.Seconds())
	}
	text := err.Error()
	if _, inner, ok := strings.Cut(text, "Error while dialing: "); ok {
		text = strings.TrimSuffix(inner, `"`)
	}
	return text
}

func probe(ctx context.Context, creds *rpc.Credentials, address string) (*controller, error) {
	conn, err := rpc.Dial(rpc.Target{
		Address: address, Role: rpc.RoleController, Credentials: creds, Reads: reads, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	client := controllerv1.NewControllerServiceClient(conn)
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	found := &controller{ControllerServiceClient: client, close: func() { _ = conn.Close() }}
	found.version, err = client.Version(ctx, &controllerv1.VersionRequest{Revocations: creds.Revocations().Number()})
	if list := found.version.GetRevocations(); err == nil && len(list) > 0 {
		if found.unkept, err = learn(creds, list); err == nil {
			// Whoever is on it is spoken to no more, be it this one: so it is asked again.
			_, err = client.Version(ctx, &controllerv1.VersionRequest{Revocations: creds.Revocations().Number()})
		}
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return found, nil
}

// learn goes by the list of revoked certificates that a controller told from now on.
// That it cannot be kept is no reason to do nothing.
func learn(creds *rpc.Credentials, list []byte) (unkept, err error) {
	_, err = creds.Revoke(list)
	switch rpc.KindOf(err) {
	case rpc.ErrRefused:
		return nil, nil // another told a newer one meanwhile
	case "":
		return err, nil
	}
	return nil, err
}

// ask makes one call with one answer, in bounded time.
func ask[Q, R any](ctx context.Context, call func(context.Context, Q, ...grpc.CallOption) (R, error), req Q) (R, error) {
	bounded, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := call(bounded, req)
	if !errors.Is(err, context.DeadlineExceeded) {
		return resp, err
	}
	// gRPC counts a deadline by itself, and may be done before ctx is.
	if ends, _ := bounded.Deadline(); inherits(ctx, ends) {
		<-ctx.Done()
		return resp, ctx.Err()
	}
	if ctx.Err() == nil {
		err = fmt.Errorf("the controller gave no answer within %.0f min; on its host: journalctl -u hl-controller", callTimeout.Minutes())
	}
	return resp, err
}

// inherits says whether a deadline is that of ctx.
func inherits(ctx context.Context, ends time.Time) bool {
	own, ok := ctx.Deadline()
	return ok && own.Equal(ends)
}
