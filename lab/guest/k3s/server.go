package k3s

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/lab/guest/system"
)

const (
	tokenFile  = dataDir + "/server/token"
	passwdFile = dataDir + "/server/cred/passwd"
)

// server is a running "k3s server".
type server struct {
	*process
	pass      string // of the cluster's token
	agentPass string // of the agents' token
	caPEM     []byte // server CA
	etcd      *member
	client    *clientv3.Client

	mu    sync.Mutex
	ready bool // the API may be used
}

// serve is the life of a server; it returns nil when ctx ends.
func (p *process) serve(ctx context.Context) error {
	s := &server{process: p}
	if err := p.bury(); err != nil {
		return err
	}
	initial, err := s.prepare(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(p.etcdCerts(), s.serverCerts()); err != nil {
		return err
	}
	p.o.Wait(ctx, "k3s start", ms(p.o.Settings().K3sStartMs))
	stop, failed, err := s.listen(ctx)
	if err != nil {
		return err
	}
	defer stop()
	name, err := p.memberName()
	if err != nil {
		return err
	}
	if initial != nil {
		list, err := p.join(ctx, initial, name)
		if err != nil {
			return fmt.Errorf("ETCD join failed: %w", err)
		}
		s.etcd, err = p.startEtcd(ctx, name, list)
		if err != nil {
			return err
		}
	} else if s.etcd, err = p.startEtcd(ctx, name, ""); err != nil {
		return err
	}
	defer s.etcd.Close()
	if err := s.voter(ctx); err != nil {
		return err
	}
	if s.client, err = etcdClient(p.v, clientURL(p.addr)); err != nil {
		return err
	}
	defer s.client.Close()
	run, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { p.manageLearners(run, s.etcd.Etcd, s.client) })
	wg.Go(func() { p.control(run, s.etcd.Etcd, s.client) })
	if err := s.kubeconfig(); err != nil {
		return err
	}
	s.setReady(true)
	p.info("Running kube-apiserver --advertise-address=%s", p.addr)
	wg.Go(func() {
		k := &kubelet{process: p, member: name, servers: []string{p.addr}, token: secret{hash: hashCA(s.caPEM), user: "node", pass: s.pass}, own: true}
		if err := k.run(run, func() {
			p.info("k3s is up and running")
			system.Notify(ctx)
		}); err != nil && run.Err() == nil {
			p.logf("error", "kubelet: %v", err)
		}
	})
	select {
	case <-ctx.Done():
		p.info("Shutdown request received")
		s.setReady(false)
		return nil
	case err := <-failed:
		return err
	case err := <-s.etcd.Err():
		return err
	case <-s.etcd.Server.StopNotify():
		s.setReady(false)
		p.removed()
		return errors.New("etcdserver: server stopped")
	}
}

func (s *server) setReady(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = on
}

func (s *server) isReady() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready
}

// voter waits until a learner has been promoted: k3s does not start its API on
// a learner.
func (s *server) voter(ctx context.Context) error {
	start := time.Now()
	learner, member := s.learner()
	if member && !learner {
		return nil
	}
	s.info("Waiting for this server to be promoted from learner to voting member")
	for learner {
		select {
		case <-s.etcd.Server.StopNotify():
			member = false
		default:
		}
		if !member {
			s.removed()
			return errors.New("etcdserver: server stopped")
		}
		if !pause.For(ctx, 50*time.Millisecond) {
			return ctx.Err()
		}
		learner, member = s.learner()
	}
	s.o.LogWait("learner promotion", start)
	return nil
}

// learner tells whether this etcd has no vote, and whether it is a member at all:
// etcd's own IsLearner panics once the member was removed.
func (s *server) learner() (learner, member bool) {
	m := s.etcd.Server.Cluster().Member(s.etcd.Server.MemberID())
	return m == nil || m.IsLearner, m != nil
}

// prepare finds out what this server is: a member that comes back, the first of
// a new cluster, or a new one for an existing cluster; for that it gives the
// cluster's etcd endpoints.
func (s *server) prepare(ctx context.Context) ([]string, error) {
	text, err := s.cfg.token(s.v)
	if err != nil {
		return nil, err
	}
	if hasMember(s.v) {
		s.info("Managed etcd cluster bootstrap already complete and initialized")
		return nil, s.known(text)
	}
	url := s.cfg.get("server")
	switch {
	case url != "":
		return s.bootstrap(ctx, url, text)
	case s.cfg.on("cluster-init"):
		return nil, s.first(text)
	}
	return nil, errors.New("a server without cluster-init and server would use sqlite, which is not simulated by hl-lab")
}

// known is a server that was in the cluster before.
func (s *server) known(text string) error {
	b, err := s.v.ReadFile(passwdFile)
	if err != nil {
		return err
	}
	s.pass, s.agentPass, _ = strings.Cut(strings.TrimSpace(string(b)), "\n")
	if text != "" {
		t, err := parseToken(text)
		if err != nil {
			return err
		}
		if t.pass != s.pass {
			return errors.New("starting kubernetes: preparing server: bootstrap data already found and encrypted with different token")
		}
	}
	s.caPEM, err = s.v.ReadFile(caFiles["ServerCA"])
	return err
}

// first makes a new cluster's authorities and token.
func (s *server) first(text string) error {
	s.pass = text
	if text == "" {
		var err error
		if s.pass, err = randomHex(16); err != nil {
			return err
		}
	} else if t, err := parseToken(text); err != nil || t.hash != "" {
		return errors.New("starting kubernetes: preparing server: " + errTokenFormat.Error())
	}
	if err := makeCAs(s.v); err != nil {
		return err
	}
	return s.writeTokens()
}

func (s *server) writeTokens() error {
	var err error
	if s.caPEM, err = s.v.ReadFile(caFiles["ServerCA"]); err != nil {
		return err
	}
	s.agentPass = s.pass
	if t := s.cfg.get("agent-token"); t != "" {
		s.agentPass = t
	}
	link := dataDir + "/server/node-token"
	if err := s.v.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errors.Join(
		s.v.Put(tokenFile, []byte(formatToken(s.caPEM, "server", s.pass)+"\n"), 0o600),
		s.v.Put(dataDir+"/server/agent-token", []byte(formatToken(s.caPEM, "node", s.agentPass)+"\n"), 0o600),
		s.v.Symlink(tokenFile, link),
		s.v.Put(passwdFile, []byte(s.pass+"\n"+s.agentPass+"\n"), 0o600),
	)
}

// bootstrap fetches the cluster's authorities from a server of it.
func (s *server) bootstrap(ctx context.Context, url, text string) ([]string, error) {
	wrap := func(err error) error { return fmt.Errorf("starting kubernetes: preparing server: %w", err) }
	if text == "" {
		return nil, wrap(errors.New("--token is required"))
	}
	t, err := parseToken(text)
	if err != nil {
		return nil, wrap(err)
	}
	if t.user == "" {
		t.user = "server"
	}
	c, err := s.connect(ctx, url, t)
	if err != nil {
		return nil, wrap(fmt.Errorf("failed to get CA certs: %w", err))
	}
	var data map[string][]byte
	if err := c.json(ctx, "/v1-k3s/server-bootstrap", &data); err != nil {
		return nil, wrap(err)
	}
	var stale []string
	for _, name := range slices.Sorted(maps.Keys(caFiles)) {
		if len(data[name]) == 0 {
			return nil, wrap(fmt.Errorf("bootstrap data holds no %s", name))
		}
		if old, err := s.v.ReadFile(caFiles[name]); err == nil && string(old) != string(data[name]) {
			stale = append(stale, caFiles[name])
		}
	}
	if len(stale) > 0 {
		return nil, wrap(fmt.Errorf("%s newer than datastore and could cause a cluster outage. Remove the file(s) from disk and restart to be recreated from datastore", strings.Join(stale, ", ")))
	}
	for name, file := range caFiles {
		mode := fs.FileMode(0o644)
		if strings.HasSuffix(file, ".key") {
			mode = 0o600
		}
		if err := s.v.Put(file, data[name], mode); err != nil {
			return nil, err
		}
	}
	s.pass = t.pass
	if err := s.writeTokens(); err != nil {
		return nil, err
	}
	var info struct {
		Members []struct {
			ClientURLs []string `json:"clientURLs"`
			IsLearner  bool     `json:"isLearner"`
		} `json:"members"`
	}
	if err := c.json(ctx, "/db/info", &info); err != nil {
		return nil, wrap(err)
	}
	endpoints := []string{}
	for _, m := range info.Members {
		if !m.IsLearner {
			endpoints = append(endpoints, m.ClientURLs...)
		}
	}
	if len(endpoints) == 0 {
		return nil, wrap(errors.New("the cluster names no etcd endpoints"))
	}
	return endpoints, nil
}

// serverCerts signs what the API serves with and its administrator.
func (s *server) serverCerts() error {
	names := append([]string{
		"127.0.0.1", "localhost", s.addr, s.name, "10.43.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc.cluster.local",
	}, s.cfg.list("tls-san")...)
	return errors.Join(
		leaf(s.v, "ServerCA", tlsDir+"/serving-kube-apiserver", "kube-apiserver", nil, names),
		leaf(s.v, "ClientCA", tlsDir+"/client-admin", "system:admin", []string{"system:masters"}, nil),
	)
}

// kubeconfig writes /etc/rancher/k3s/k3s.yaml.
func (s *server) kubeconfig() error {
	cert, err1 := s.v.ReadFile(tlsDir + "/client-admin.crt")
	key, err2 := s.v.ReadFile(tlsDir + "/client-admin.key")
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	b64 := base64.StdEncoding.EncodeToString
	text := fmt.Sprintf(`apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: %s
    server: https://127.0.0.1:%d
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
preferences: {}
users:
- name: default
  user:
    client-certificate-data: %s
    client-key-data: %s
`, b64(s.caPEM), portAPI, b64(cert), b64(key))
	mode := fs.FileMode(0o600)
	if m := s.cfg.get("write-kubeconfig-mode"); m != "" {
		n, err := strconv.ParseUint(m, 8, 32)
		if err != nil {
			return fmt.Errorf("write-kubeconfig-mode %q: %w", m, err)
		}
		mode = fs.FileMode(n & 0o777)
	}
	return s.v.Put(kubeconfigFile, []byte(text), mode)
}

// store is the objects' store of a server that is ready.
func (s *server) store() *store { return &store{c: s.client} }

// memberInfo is the answer to /db/info.
func (s *server) memberInfo(ctx context.Context, w http.ResponseWriter) {
	list, err := s.client.MemberList(ctx)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	type member struct {
		ID         string   `json:"ID"`
		Name       string   `json:"name"`
		PeerURLs   []string `json:"peerURLs"`
		ClientURLs []string `json:"clientURLs"`
		IsLearner  bool     `json:"isLearner"`
	}
	out := []member{}
	for _, m := range list.Members {
		out = append(out, member{strconv.FormatUint(m.ID, 16), m.Name, m.PeerURLs, m.ClientURLs, m.IsLearner})
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"members": out})
}

// base is the last part of a request's path.
func base(r *http.Request) string { return path.Base(r.URL.Path) }
