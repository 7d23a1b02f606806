package cli

import (
	"context"
	"net/netip"
	"sync"
)

// answering is a controller of the context that answers.
type answering struct {
	name, address, version string
}

// ip is where it listens.
func (c *answering) ip() netip.Addr {
	at, err := netip.ParseAddrPort(c.address)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr()
}

// everyController asks all controllers of the context who they are, and gives those
// that answer, in its order.
func (a *app) everyController(ctx context.Context) ([]*answering, error) {
	c, creds, err := a.credentials()
	if err != nil {
		return nil, err
	}
	found := make([]*answering, len(c.Controllers))
	var all sync.WaitGroup
	for i, address := range c.Controllers {
		all.Go(func() {
			if got, err := probe(ctx, creds, address); err == nil {
				found[i] = &answering{got.version.GetName(), address, got.version.GetVersion()}
				got.close()
			}
		})
	}
	all.Wait()
	var answered []*answering
	for _, f := range found {
		if f != nil {
			answered = append(answered, f)
		}
	}
	return answered, ctx.Err()
}

// controllerAt opens a connection to one controller.
func (a *app) controllerAt(ctx context.Context, address string) (*controller, error) {
	_, creds, err := a.credentials()
	if err != nil {
		return nil, err
	}
	return probe(ctx, creds, address)
}
