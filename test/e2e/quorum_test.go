//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// etcd is the tests' own look at the cluster's etcd, past all that is tested.
type etcd struct {
	l   *lab
	tls *tls.Config
}

// openEtcd takes the cluster's certificates out of the files of a server; they
// stay good when that one is made anew.
func (l *lab) openEtcd(server string) *etcd {
	l.t.Helper()
	dir := l.etcdFiles(server)
	ca, err := os.ReadFile(filepath.Join(dir, "server-ca.crt"))
	if err != nil {
		l.t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key"))
	if err != nil {
		l.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &etcd{l, &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}}
}

// through is a client that asks only the server guest k3s-n.
func (e *etcd) through(n int) *clientv3.Client {
	e.l.t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{fmt.Sprintf("https://%s.%d:2379", e.l.net, 100+n)}, TLS: e.tls, Logger: zap.NewNop(), DialTimeout: 2 * time.Second,
	})
	if err != nil {
		e.l.t.Fatal(err)
	}
	e.l.t.Cleanup(func() { _ = c.Close() })
	return c
}

const nodesPrefix = "/registry/nodes/"

// nodeUIDs are the uids of all Node objects, read through k3s-n.
func (e *etcd) nodeUIDs(c *clientv3.Client) map[string]string {
	e.l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, err := c.Get(ctx, nodesPrefix, clientv3.WithPrefix())
	if err != nil {
		e.l.t.Fatal(err)
	}
	uids := map[string]string{}
	for _, kv := range r.Kvs {
		var node struct {
			Metadata struct {
				UID string `json:"uid"`
			} `json:"metadata"`
		}
		if err := json.Unmarshal(kv.Value, &node); err != nil {
			e.l.t.Fatal(err)
		}
		uids[strings.TrimPrefix(string(kv.Key), nodesPrefix)] = node.Metadata.UID
	}
	return uids
}

// electionTime is how long a cluster that lost its leader may not be read: twice
// the lab's election timeout, and what a busy machine adds.
const electionTime = 12 * time.Second

// watched is what sampling a cluster saw.
type watched struct {
	reads   int
	longest time.Duration // between two reads that were answered
	few     string        // when fewer members answered than a quorum takes
}

// watchQuorum reads linearizably every 100 ms through each of the clients, and
// counts which members answer, until the function that it gives is called.
func watchQuorum(members ...*clientv3.Client) (stop func() watched) {
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var saw watched
	last := time.Now()
	var wg sync.WaitGroup
	for _, c := range members {
		wg.Go(func() {
			for ctx.Err() == nil {
				one, done := context.WithTimeout(ctx, 2*time.Second)
				_, err := c.Get(one, nodesPrefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
				done()
				if err == nil {
					mu.Lock()
					saw.reads++
					saw.longest = max(saw.longest, time.Since(last))
					last = time.Now()
					mu.Unlock()
				}
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
			}
		})
	}
	wg.Go(func() {
		for misses := 0; ctx.Err() == nil; {
			answered, voters := countVoters(ctx, members)
			// One look may be late on a busy machine; three in a row are not.
			if misses++; answered > voters/2 {
				misses = 0
			}
			if misses == 3 && ctx.Err() == nil {
				mu.Lock()
				saw.few = fmt.Sprintf("%d of %d voters answered", answered, voters)
				mu.Unlock()
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	return func() watched {
		cancel()
		wg.Wait()
		saw.longest = max(saw.longest, time.Since(last))
		return saw
	}
}

// countVoters counts which of the members answer, and how many voters they know of.
func countVoters(ctx context.Context, members []*clientv3.Client) (answered, voters int) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for _, c := range members {
		if _, err := c.Status(ctx, c.Endpoints()[0]); err != nil {
			continue
		}
		answered++
		list, err := c.MemberList(ctx, clientv3.WithSerializable())
		if err != nil {
			continue
		}
		n := 0
		for _, m := range list.Members {
			if !m.IsLearner {
				n++
			}
		}
		voters = max(voters, n)
	}
	return answered, voters
}

// mustHaveKept wants the members that were watched to have kept their quorum.
func (l *lab) mustHaveKept(w watched) {
	l.t.Helper()
	if w.few != "" || w.reads == 0 || w.longest > electionTime {
		l.t.Errorf("the other members lost their quorum: %+v", w)
	}
}
