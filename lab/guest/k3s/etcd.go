package k3s

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"

	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/lab/guest/tree"
)

const (
	etcdDir   = dataDir + "/server/db/etcd"
	nameFile  = etcdDir + "/name"
	tombstone = etcdDir + "/tombstone"
	etcdTLS   = tlsDir + "/etcd"
)

// smallLogs keeps etcd from reserving 64 MB per log file for a cluster of a few
// hundred keys.
var smallLogs = sync.OnceFunc(func() { wal.SegmentSizeBytes = 1 << 20 })

// hasMember tells whether this server is a member already: then k3s ignores
// cluster-init and server.
func hasMember(v *tree.View) bool {
	return exists(v, etcdDir+"/member/wal")
}

func exists(v *tree.View, name string) bool {
	_, err := v.Stat(name)
	return err == nil
}

func peerURL(addr string) string   { return fmt.Sprintf("https://%s:%d", addr, portEtcdPeer) }
func clientURL(addr string) string { return fmt.Sprintf("https://%s:%d", addr, portEtcd) }

// etcdCerts signs this server's certificates for etcd.
func (p *process) etcdCerts() error {
	names := []string{"localhost", "127.0.0.1", p.addr, p.name}
	return errors.Join(
		leaf(p.v, "ETCDServerCA", etcdTLS+"/server-client", "etcd-server", nil, names),
		leaf(p.v, "ETCDServerCA", etcdTLS+"/client", "etcd-client", nil, nil),
		leaf(p.v, "ETCDPeerCA", etcdTLS+"/peer-server-client", "etcd-peer", nil, names),
	)
}

// etcdTLSConfig is that of a client of the cluster's etcd.
func etcdTLSConfig(v *tree.View) (*tls.Config, error) {
	ca, err := v.ReadFile(etcdTLS + "/server-ca.crt")
	if err != nil {
		return nil, err
	}
	cert, err := v.ReadFile(etcdTLS + "/client.crt")
	if err != nil {
		return nil, err
	}
	key, err := v.ReadFile(etcdTLS + "/client.key")
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{RootCAs: pool(ca), Certificates: []tls.Certificate{pair}}, nil
}

func etcdClient(v *tree.View, endpoints ...string) (*clientv3.Client, error) {
	cfg, err := etcdTLSConfig(v)
	if err != nil {
		return nil, err
	}
	return clientv3.New(clientv3.Config{
		Endpoints: endpoints, TLS: cfg, DialTimeout: 5 * time.Second, Logger: zap.NewNop(),
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 5 * time.Second,
	})
}

// memberName reads or makes db/etcd/name.
func (p *process) memberName() (string, error) {
	if b, err := p.v.ReadFile(nameFile); err == nil && len(b) > 0 {
		return strings.TrimSpace(string(b)), nil
	}
	id, err := randomHex(4)
	if err != nil {
		return "", err
	}
	name := p.name + "-" + id
	return name, p.v.Put(nameFile, []byte(name), 0o600)
}

// startEtcd starts this server's member and waits until it serves. Initial is
// the member list of a cluster to join, "" for a new cluster or one that this
// member knows already.
func (p *process) startEtcd(ctx context.Context, name, initial string) (*member, error) {
	smallLogs()
	if err := p.v.MkdirAll(etcdDir, 0o700); err != nil {
		return nil, err
	}
	if err := p.v.MkdirAll("/var/log", 0o755); err != nil {
		return nil, err
	}
	dir, err := p.v.Tree().HostPath(etcdDir)
	if err != nil {
		return nil, err
	}
	log, err := p.v.Tree().HostPath("/var/log/k3s-etcd.log")
	if err != nil {
		return nil, err
	}
	// The name file and the tombstone lie beside member/; the folder must be
	// etcd's alone.
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, err
	}
	tlsHost, err := p.v.Tree().HostPath(etcdTLS)
	if err != nil {
		return nil, err
	}
	file := func(s string) string { return filepath.Join(tlsHost, s) }
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = name, dir
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = urls(peerURL(p.addr)), urls(peerURL(p.addr))
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = innerURL(p.addr), urls(clientURL(p.addr))
	cfg.ClientTLSInfo = transport.TLSInfo{
		CertFile: file("server-client.crt"), KeyFile: file("server-client.key"), TrustedCAFile: file("server-ca.crt"), ClientCertAuth: true,
	}
	// All of the lab's connections leave from 127.0.0.1, whatever address they
	// belong to.
	cfg.PeerTLSInfo = transport.TLSInfo{
		CertFile: file("peer-server-client.crt"), KeyFile: file("peer-server-client.key"), TrustedCAFile: file("peer-ca.crt"),
		ClientCertAuth: true, SkipClientSANVerify: true,
	}
	cfg.InitialCluster, cfg.ClusterState = name+"="+peerURL(p.addr), embed.ClusterStateFlagNew
	if initial != "" {
		cfg.InitialCluster, cfg.ClusterState = initial, embed.ClusterStateFlagExisting
	}
	// Long enough that a loaded test machine holds no elections.
	cfg.ElectionMs = uint(max(p.o.Settings().ElectionMs, 500)) //nolint:gosec // a small setting
	cfg.TickMs = cfg.ElectionMs / 10
	cfg.UnsafeNoFsync = true
	cfg.EnableGRPCGateway = false
	cfg.LogLevel, cfg.LogOutputs = "error", []string{log}
	cfg.WarningApplyDuration = time.Minute
	cfg.WarningUnaryRequestDuration = time.Minute
	start := time.Now()
	etcd, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, err
	}
	stop, err := p.lead(ctx)
	if err != nil {
		etcd.Close()
		return nil, err
	}
	e := &member{Etcd: etcd, stop: stop}
	p.info("Managed etcd cluster member %s starting", name)
	select {
	case <-e.Server.ReadyNotify():
		// The lab's long election timeout, not the product's doing.
		p.o.LogWait("etcd start and election", start)
		return e, nil
	case err := <-e.Err():
		select {
		case <-e.Server.StopNotify():
			p.removed()
			err = errors.New("etcdserver: server stopped")
		default:
		}
		e.Close()
		return nil, err
	case <-e.Server.StopNotify():
		p.removed()
		e.Close()
		return nil, errors.New("etcdserver: server stopped")
	case <-ctx.Done():
		e.Close()
		return nil, ctx.Err()
	}
}

func urls(s string) []url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err) // made of an address and a port
	}
	return []url.URL{*u}
}

// removed notes that the cluster has put this member out: at the next start the
// data is set aside and the server joins anew.
func (p *process) removed() {
	if err := p.v.Put(tombstone, nil, 0o600); err != nil {
		p.logf("error", "tombstone: %v", err)
	}
	p.logf("warning", "this node has been removed from the cluster please restart k3s to rejoin the cluster")
}

// bury sets the data of a removed member aside.
func (p *process) bury() error {
	if !exists(p.v, tombstone) {
		return nil
	}
	old := fmt.Sprintf("%s-old-%d", etcdDir, time.Now().Unix())
	p.info("etcd tombstone file has been detected, moving data dir to %s", old)
	return p.v.Rename(etcdDir, old)
}

var errDuplicate = errors.New("duplicate node name found, please use a unique name for this node")

// join adds this server to the cluster as a learner and gives the member list
// to start with. It waits while another member is joining.
func (p *process) join(ctx context.Context, endpoints []string, name string) (string, error) {
	c, err := etcdClient(p.v, endpoints...)
	if err != nil {
		return "", err
	}
	defer c.Close()
	start, waited := time.Now(), false
	for {
		initial, err := p.addMember(ctx, c, name)
		switch {
		case err == nil:
			if waited {
				p.o.LogWait("etcd members to finish joining", start)
			}
			return initial, nil
		case errors.Is(err, rpctypes.ErrTooManyLearners), errors.Is(err, rpctypes.ErrUnhealthy):
			waited = true
			p.info("Waiting for other members to finish joining etcd cluster: %v", err)
		default:
			return "", err
		}
		if !pause.For(ctx, time.Second) {
			return "", ctx.Err()
		}
	}
}

func (p *process) addMember(ctx context.Context, c *clientv3.Client, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	list, err := c.MemberList(ctx)
	if err != nil {
		return "", err
	}
	add := true
	var cluster []string
	for _, m := range list.Members {
		for _, peer := range m.PeerURLs {
			mine := peer == peerURL(p.addr)
			memberName := m.Name
			if memberName == "" && mine {
				memberName = name // ours, from an attempt that did not come up
			}
			if memberName != name {
				nodeName := memberName
				if i := strings.LastIndex(memberName, "-"); i > 1 {
					nodeName = memberName[:i]
				}
				if nodeName == p.name {
					if err := p.v.Remove(nameFile); err != nil {
						p.logf("error", "%v", err)
					}
					return "", errDuplicate
				}
			} else {
				add = false
			}
			cluster = append(cluster, memberName+"="+peer)
		}
	}
	if add {
		p.info("Adding member %s=%s to etcd cluster [%s]", name, peerURL(p.addr), strings.Join(cluster, " "))
		if _, err := c.MemberAddAsLearner(ctx, []string{peerURL(p.addr)}); err != nil {
			return "", err
		}
		cluster = append(cluster, name+"="+peerURL(p.addr))
	}
	return strings.Join(cluster, ","), nil
}

// progress is what the leader remembers of a learner.
type progress struct {
	applied uint64
	at      time.Time
}

// manageLearners promotes learners that have caught up, on the leader's tick,
// and removes those that stand still for too long.
func (p *process) manageLearners(ctx context.Context, e *embed.Etcd, c *clientv3.Client) {
	seen := map[uint64]progress{}
	tick, stall := ms(p.o.Settings().LearnerTickMs), ms(p.o.Settings().LearnerStallMs)
	for pause.For(ctx, tick) {
		if !leads(e) {
			clear(seen)
			continue
		}
		rctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		if err := p.promote(rctx, c, seen, stall); err != nil && ctx.Err() == nil {
			p.logf("error", "Failed to manage etcd learners: %v", err)
		}
		cancel()
	}
}

func leads(e *embed.Etcd) bool { return e.Server.Leader() == e.Server.MemberID() }

func (p *process) promote(ctx context.Context, c *clientv3.Client, seen map[uint64]progress, stall time.Duration) error {
	list, err := c.MemberList(ctx)
	if err != nil {
		return err
	}
	for _, m := range list.Members {
		if !m.IsLearner {
			delete(seen, m.ID)
			continue
		}
		was, known := seen[m.ID]
		applied := p.applied(ctx, m)
		if !known || applied > was.applied {
			was = progress{applied: applied, at: time.Now()}
			seen[m.ID] = was
		}
		if applied > 0 {
			if _, err := c.MemberPromote(ctx, m.ID); err == nil {
				p.info("Promoted learner %s", m.Name)
				delete(seen, m.ID)
				continue
			} else if !errors.Is(err, rpctypes.ErrMemberLearnerNotReady) {
				return err
			}
		}
		if time.Since(was.at) > stall {
			p.logf("warning", "Removing learner %s from etcd cluster: stalled", m.Name)
			if _, err := c.MemberRemove(ctx, m.ID); err != nil {
				return err
			}
			delete(seen, m.ID)
		}
	}
	return nil
}

// applied asks a learner how far it has come; 0 when it does not answer.
func (p *process) applied(ctx context.Context, m *etcdserverpb.Member) uint64 {
	if len(m.ClientURLs) == 0 {
		return 0
	}
	c, err := etcdClient(p.v, m.ClientURLs[0])
	if err != nil {
		return 0
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	st, err := c.Status(ctx, m.ClientURLs[0])
	if err != nil {
		return 0
	}
	return st.RaftAppliedIndex
}
