package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// cluster is the demo's own look at the etcd of the simulated k3s, past everything
// that is being shown.
type cluster struct {
	tls   *tls.Config
	all   []string // endpoints of the three servers, by address
	quiet *zap.Logger
	*clientv3.Client
}

// openCluster takes the certificates out of the first server's files. They are the
// cluster's, so they go on being good when that server is made anew.
func (d *demo) openCluster() (*cluster, error) {
	trees, err := d.trees()
	if err != nil {
		return nil, err
	}
	if len(trees) == 0 {
		return nil, errors.New("no guest has files")
	}
	dir := filepath.Join(trees[0], "var/lib/rancher/k3s/server/tls/etcd")
	ca, err := os.ReadFile(filepath.Join(dir, "server-ca.crt"))
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	c := &cluster{tls: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, quiet: zap.NewNop()}
	for i := range servers(d.Hosts) {
		c.all = append(c.all, fmt.Sprintf("https://%s:%d", d.guestAddress(i+1), etcdPort))
	}
	c.Client, err = c.dial(c.all...)
	return c, err
}

func (c *cluster) dial(endpoints ...string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: endpoints, TLS: c.tls, Logger: c.quiet, DialTimeout: time.Second})
}

// nodeObject is what is looked at of a Node.
type nodeObject struct {
	Meta struct {
		UID string `json:"uid"`
	} `json:"metadata"`
	Status struct {
		Info struct {
			Version string `json:"kubeletVersion"`
		} `json:"nodeInfo"`
	} `json:"status"`
}

const (
	nodesPrefix = "/registry/nodes/"
	lookLimit   = 20 * time.Second
)

func (c *cluster) nodes(ctx context.Context) (map[string]nodeObject, error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	r, err := c.Get(ctx, nodesPrefix, clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("read the Nodes: %w", err)
	}
	nodes := map[string]nodeObject{}
	for _, kv := range r.Kvs {
		var n nodeObject
		if err := json.Unmarshal(kv.Value, &n); err != nil {
			return nil, err
		}
		nodes[strings.TrimPrefix(string(kv.Key), nodesPrefix)] = n
	}
	return nodes, nil
}

func (c *cluster) members(ctx context.Context) ([]*etcdserverpb.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	r, err := c.MemberList(ctx)
	if err != nil {
		return nil, fmt.Errorf("list etcd's members: %w", err)
	}
	return r.Members, nil
}

const (
	// sampleEvery is how often the quorum is looked at.
	sampleEvery = 250 * time.Millisecond
	// sampleLimit bounds one look at one member.
	sampleLimit = 2 * time.Second
	// leaderless is how long an election may take: the lab's etcd has a long timeout.
	leaderless = 20 * time.Second
)

// watch samples the members that are not at the broken address until the function it
// returns is called, which tells whether they ever lost the quorum: fewer of the
// voters answered than it takes, or nothing could be read for longer than an election.
func (c *cluster) watch(ctx context.Context, broken string) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var lost error
	var samples int
	wg.Go(func() {
		var others []*clientv3.Client
		for _, e := range c.all {
			if strings.Contains(e, "//"+broken+":") {
				continue
			}
			one, err := c.dial(e)
			if err != nil {
				lost = err
				return
			}
			defer one.Close()
			others = append(others, one)
		}
		read := time.Now()
		for ; ctx.Err() == nil && lost == nil; samples++ {
			ok, err := sample(ctx, others)
			if ok {
				read = time.Now()
			}
			if err == nil && time.Since(read) > leaderless {
				err = fmt.Errorf("etcd could not be read for %s", leaderless)
			}
			if err != nil && ctx.Err() == nil {
				lost = fmt.Errorf("the other members lost their quorum: %w", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(sampleEvery):
			}
		}
	})
	return func() error {
		cancel()
		wg.Wait()
		if lost == nil && samples == 0 {
			return errors.New("the quorum was never looked at")
		}
		return lost
	}
}

// sample counts the voters that answer among the others. Whether etcd can be read is
// told apart: during an election it cannot, and has its quorum.
func sample(ctx context.Context, others []*clientv3.Client) (read bool, err error) {
	answered, voters := 0, 0
	for _, o := range others {
		octx, cancel := context.WithTimeout(ctx, sampleLimit)
		if _, err := o.Status(octx, o.Endpoints()[0]); err == nil {
			answered++
			if list, err := o.MemberList(octx, clientv3.WithSerializable()); err == nil {
				n := 0
				for _, m := range list.Members {
					if !m.IsLearner {
						n++
					}
				}
				voters = max(voters, n)
			}
		}
		if !read {
			_, err := o.Get(octx, nodesPrefix, clientv3.WithCountOnly(), clientv3.WithPrefix())
			read = err == nil
		}
		cancel()
	}
	if ctx.Err() == nil && (voters == 0 || answered < voters/2+1) {
		return read, fmt.Errorf("%d of %d voters answer", answered, voters)
	}
	return read, nil
}
