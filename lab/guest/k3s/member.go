package k3s

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"

	"go.etcd.io/etcd/server/v3/embed"
)

// portEtcdInner is where etcd itself listens for clients. What everybody knows is
// portEtcd, which leads there: only a port that the guest opens itself can be made
// silent.
const portEtcdInner = 2378

// member is this server's etcd with the way to it.
type member struct {
	*embed.Etcd
	stop func()
}

// Close ends both.
func (m *member) Close() {
	m.stop()
	m.Etcd.Close()
}

func innerURL(addr string) []url.URL { return urls(fmt.Sprintf("https://%s:%d", addr, portEtcdInner)) }

// lead opens etcd's client port and leads connections to etcd until stop is called.
func (p *process) lead(ctx context.Context) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	l, err := p.o.Listen(ctx, portEtcd)
	if err != nil {
		cancel()
		return nil, err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // it was closed
			}
			wg.Go(func() { p.leadOne(ctx, c) })
		}
	})
	return func() {
		cancel()
		l.Close()
		wg.Wait()
	}, nil
}

func (p *process) leadOne(ctx context.Context, c net.Conn) {
	defer c.Close()
	var d net.Dialer
	inner, err := d.DialContext(ctx, "tcp", net.JoinHostPort(p.addr, fmt.Sprint(portEtcdInner)))
	if err != nil {
		return
	}
	defer inner.Close()
	stop := context.AfterFunc(ctx, func() { c.Close(); inner.Close() })
	defer stop()
	done := make(chan struct{}, 2)
	pass := func(to, from net.Conn) {
		_, _ = io.Copy(to, from) // either side's end is the other's
		done <- struct{}{}
	}
	go pass(inner, c)
	go pass(c, inner)
	<-done
	c.Close()
	inner.Close()
	<-done
}
