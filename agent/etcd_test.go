package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/homeiac/homelab/agent/guest"
	"github.com/homeiac/homelab/agent/guest/guesttest"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/sshexec/sshtest"
)

// pki is the certificates of an etcd, PEM by file name.
type pki map[string][]byte

func newPKI(t *testing.T) pki {
	t.Helper()
	p := pki{}
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	put := func(name string, der []byte, k *ecdsa.PrivateKey) {
		raw, err := x509.MarshalECPrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		p[name+".crt"] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		p[name+".key"] = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})
	}
	caKey := key()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "etcd-server-ca"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	put("ca", der, caKey)
	for i, name := range []string{"server", "client"} {
		k := key()
		leaf := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i) + 2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
			DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(127, 79, 0, 1), net.IPv4(127, 79, 0, 2), net.IPv4(127, 79, 0, 3)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if der, err = x509.CreateCertificate(rand.Reader, leaf, ca, k.Public(), caKey); err != nil {
			t.Fatal(err)
		}
		put(name, der, k)
	}
	return p
}

// put writes the certificates into a folder.
func (p pki) put(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, data := range p {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// etcdServer starts a real etcd member with TLS and gives its client address.
func etcdServer(t *testing.T, p pki) string {
	t.Helper()
	return etcdCluster(t, p, "127.0.0.1")[0].client
}

// etcdNode is one member of a real etcd.
type etcdNode struct {
	*embed.Etcd
	name   string
	client string // host:port
	stop   func() // may be called again
}

// etcdCluster starts a real etcd of members k3s-1, k3s-2... at those addresses.
func etcdCluster(t *testing.T, p pki, hosts ...string) []*etcdNode {
	t.Helper()
	dir := p.put(t)
	free := func(scheme, host string) url.URL {
		l, err := net.Listen("tcp", host+":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return url.URL{Scheme: scheme, Host: l.Addr().String()}
	}
	var nodes []*etcdNode
	var configs []*embed.Config
	var initial []string
	for i, host := range hosts {
		cfg := embed.NewConfig()
		cfg.Name = fmt.Sprintf("k3s-%d-%da1b2c3d", i+1, i)
		cfg.Dir, cfg.LogLevel, cfg.UnsafeNoFsync = filepath.Join(dir, cfg.Name), "fatal", true
		client, peer := free("https", host), free("http", host)
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
		cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
		cfg.ClientTLSInfo.CertFile, cfg.ClientTLSInfo.KeyFile = filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")
		cfg.ClientTLSInfo.TrustedCAFile, cfg.ClientTLSInfo.ClientCertAuth = filepath.Join(dir, "ca.crt"), true
		initial = append(initial, cfg.Name+"="+peer.String())
		configs = append(configs, cfg)
		nodes = append(nodes, &etcdNode{name: cfg.Name, client: client.Host})
	}
	for i, cfg := range configs {
		cfg.InitialCluster = strings.Join(initial, ",")
		e, err := embed.StartEtcd(cfg)
		if err != nil {
			t.Fatal(err)
		}
		nodes[i].Etcd, nodes[i].stop = e, sync.OnceFunc(e.Close)
		t.Cleanup(nodes[i].stop)
	}
	for _, n := range nodes {
		select {
		case <-n.Server.ReadyNotify():
		case <-time.After(20 * time.Second):
			t.Fatal("etcd is not ready")
		}
	}
	return nodes
}

// files prints what k3s.EtcdFilesScript prints.
func (p pki) files(w io.Writer) {
	var s guesttest.Sections
	s.Add("name", "k3s-1-0a1b2c3d", "0")
	s.Add("ca", string(p["ca.crt"]), "0")
	s.Add("cert", string(p["client.crt"]), "0")
	s.Add("key", string(p["client.key"]), "0")
	_, _ = w.Write(s.Bytes())
}

func TestEtcdIsSeenAndALearnerTakenBackThroughAServer(t *testing.T) {
	w := newWorld(t)
	w.hyp.vms[201] = running(w)
	p := newPKI(t)
	etcd := etcdServer(t, p)
	in := goodInside()
	srv := w.guestOS(func(c sshtest.Command) int {
		if script, _ := guesttest.Script(c); script == k3s.EtcdFilesScript {
			p.files(c.Stdout)
			return 0
		}
		return in.answer(c)
	})
	srv.Lock()
	srv.Forward = map[string]string{"127.0.0.1": etcd}
	srv.Unlock()

	v := w.observe(true).GetLooks()[0].GetK3S().GetEtcd()
	if !isYes(v.GetKnown()) || len(v.GetMembers()) != 1 || v.GetMembers()[0].GetName() != "k3s-1-0a1b2c3d" || !isYes(v.GetMembers()[0].GetHealthy()) {
		t.Fatalf("view %v", v)
	}
	if v.GetSelfId() != v.GetMembers()[0].GetId() || v.GetMembers()[0].GetLearner() {
		t.Errorf("view %v", v)
	}
	sh, err := w.svc.open(t.Context(), w.want())
	if err != nil {
		t.Fatal(err)
	}
	defer sh.Close()
	m, err := openEtcd(t.Context(), sh)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	if voter, err := m.self(t.Context()); err != nil || !voter {
		t.Errorf("self: %v %v", voter, err)
	}
	if _, err := m.client.MemberAddAsLearner(t.Context(), []string{"https://127.77.0.9:2380"}); err != nil {
		t.Fatal(err)
	}
	v = etcdView(t.Context(), sh)
	if len(v.GetMembers()) != 2 || !slices.ContainsFunc(v.GetMembers(), func(m *homelabv1.EtcdMember) bool {
		return m.GetLearner() && isNo(m.GetHealthy()) && m.GetName() == ""
	}) {
		t.Errorf("with a learner that never started: %v", v)
	}
	req := w.request(rollbackStep)
	req.Step.Id, req.Step.Guest = "takeback/pve1/k3s-2", "k3s-2"
	req.K3S = &homelabv1.K3SWant{Role: homelabv1.Role_ROLE_SERVER, ServerUrl: "https://127.77.0.8:6443"}
	s, err := w.do(req)
	if err != nil || s.result.GetChanged() {
		t.Errorf("another guest's learner was taken: %v %v", s.result, err)
	}
	req.K3S.ServerUrl = "https://127.77.0.9:6443"
	s, err = w.do(req)
	if err != nil || !s.result.GetChanged() || !slices.Equal(s.calls(), []string{"etcd remove-learner"}) {
		t.Errorf("%v %v %v", s.result, s.calls(), err)
	}
	if v = etcdView(t.Context(), sh); len(v.GetMembers()) != 1 {
		t.Errorf("afterwards: %v", v)
	}
	if s, err = w.do(req); err != nil || s.result.GetChanged() {
		t.Errorf("again: %v %v", s.result, err)
	}
}

func TestAVoterIsNeverTakenBack(t *testing.T) {
	peer := []string{"https://10.0.0.7:2380"}
	members := []*etcdserverpb.Member{
		{ID: 1, Name: "k3s-2-aa", PeerURLs: peer},
		{ID: 2, Name: "k3s-2-bb", PeerURLs: peer, IsLearner: true},
		{ID: 3, PeerURLs: peer, IsLearner: true},
		{ID: 4, Name: "k3s-3-cc", PeerURLs: []string{"https://10.0.0.77:2380"}, IsLearner: true},
	}
	var ids []uint64
	for _, m := range unfinished(members, "10.0.0.7") {
		ids = append(ids, m.ID)
	}
	if !slices.Equal(ids, []uint64{2, 3}) {
		t.Errorf("got %v", ids)
	}
}

func TestWithoutSSHEtcdIsUnknown(t *testing.T) {
	v := etcdView(t.Context(), new(guest.Shell))
	if !isUnknown(v.GetKnown()) || !strings.Contains(v.GetKnown().GetReason(), "SSH") {
		t.Errorf("%v", v)
	}
}
