package k3s

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/lab/guest/system"
)

// conn is a verified way to one server.
type conn struct {
	base  string // https://10.0.0.1:6443
	http  *http.Client
	token secret
	head  http.Header
}

// connect verifies a server's CA against the token's hash, as every join does.
func (p *process) connect(ctx context.Context, raw string, t secret) (*conn, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("invalid server URL %q", raw)
	}
	if u.Scheme != "https" {
		return nil, fmt.Errorf("only https:// URLs are supported, invalid scheme: %s", raw)
	}
	if u.Port() == "" {
		u.Host += fmt.Sprintf(":%d", portAPI)
	}
	base := "https://" + u.Host
	open := &conn{base: base, http: p.o.HTTP(&tls.Config{InsecureSkipVerify: true}, 10*time.Second), head: http.Header{}} //nolint:gosec // the CA is what is being asked for; its hash is compared
	ca, err := open.get(ctx, "/cacerts")
	if err != nil {
		return nil, err
	}
	if t.hash != "" {
		if got := hashCA(ca); got != t.hash {
			return nil, fmt.Errorf("token CA hash does not match the Cluster CA certificate hash: %s != %s", t.hash, got)
		}
	}
	return &conn{base: base, http: p.o.HTTP(&tls.Config{RootCAs: pool(ca)}, 20*time.Second), token: t, head: http.Header{}}, nil
}

func (c *conn) do(ctx context.Context, method, path string, body any) ([]byte, int, error) {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, 0, err
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, in)
	if err != nil {
		return nil, 0, err
	}
	for k, v := range c.head {
		req.Header[k] = v
	}
	if c.token.user != "" {
		req.SetBasicAuth(c.token.user, c.token.pass)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	return b, resp.StatusCode, err
}

// get fetches from the supervisor; another status than 200 is an error with
// k3s's text.
func (c *conn) get(ctx context.Context, path string) ([]byte, error) {
	b, code, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	if code != http.StatusOK {
		text := strings.TrimSpace(string(b))
		if text == "" || code == http.StatusUnauthorized {
			text = http.StatusText(code)
		}
		return nil, fmt.Errorf("%s%s: %d %s", c.base, path, code, text)
	}
	return b, nil
}

func (c *conn) json(ctx context.Context, path string, v any) error {
	b, err := c.get(ctx, path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// kubelet is the part of k3s that makes the guest a node, on servers and agents.
type kubelet struct {
	*process
	servers []string // addresses, tried in order
	token   secret
	member  string // name of this server's etcd member; "" on an agent
	own     bool   // only this server's own API is used
	base    *conn  // of an agent: the server it was given
	api     *http.Client
}

// runAgent is the life of "k3s agent".
func (p *process) runAgent(ctx context.Context) error {
	text, err := p.cfg.token(p.v)
	if err != nil {
		return err
	}
	raw := p.cfg.get("server")
	if raw == "" {
		return errors.New("--server is required")
	}
	if text == "" {
		return errors.New("--token is required")
	}
	t, err := parseToken(text)
	if err != nil {
		return err
	}
	if t.user == "" {
		t.user = "node"
	}
	u, err := url.Parse(raw)
	if err != nil {
		return err
	}
	p.o.Wait(ctx, "k3s start", ms(p.o.Settings().K3sStartMs))
	k := &kubelet{process: p, servers: []string{u.Host}, token: t}
	err = k.run(ctx, func() {
		p.info("k3s agent is up and running")
		system.Notify(ctx)
	})
	if ctx.Err() == nil {
		return err
	}
	return nil
}

// run registers the node, calls ready, and keeps its heartbeat until ctx ends.
// What a server refuses is asked again for ever.
func (k *kubelet) run(ctx context.Context, ready func()) error {
	retry := ms(max(k.o.Settings().RetryMs, 50))
	for {
		err := k.identity(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		k.info("Waiting to retrieve agent configuration; server is not ready: %v", err)
		if !pause.For(ctx, retry) {
			return ctx.Err()
		}
	}
	for {
		err := k.register(ctx)
		if err == nil {
			err = k.beat(ctx)
		}
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		k.logf("error", "Unable to register node with API server: %v", err)
		if !pause.For(ctx, retry) {
			return ctx.Err()
		}
	}
	k.info("Successfully registered node %s", k.name)
	ready()
	for pause.For(ctx, ms(max(k.o.Settings().HeartbeatMs, 50))) {
		if err := k.beat(ctx); err != nil && ctx.Err() == nil {
			k.logf("error", "Error updating node status, will retry: %v", err)
		}
	}
	return nil
}

// identity proves the node's name and gets its certificate.
func (k *kubelet) identity(ctx context.Context) error {
	pass, err := k.nodePassword()
	if err != nil {
		return err
	}
	var last error
	for _, host := range k.servers {
		c, err := k.connect(ctx, "https://"+host, k.token)
		if err != nil {
			last = err
			continue
		}
		c.head.Set("K3s-Node-Name", k.name)
		c.head.Set("K3s-Node-Password", pass)
		c.head.Set("K3s-Node-Ip", k.addr)
		var cfg map[string]any
		if err := c.json(ctx, "/v1-k3s/config", &cfg); err != nil {
			last = err
			continue
		}
		b, err := c.get(ctx, "/v1-k3s/client-kubelet.crt")
		if err != nil {
			last = err
			continue
		}
		pair, err := tls.X509KeyPair(b, b)
		if err != nil {
			last = err
			continue
		}
		ca, err := c.get(ctx, "/v1-k3s/server-ca.crt")
		if err != nil {
			last = err
			continue
		}
		clientCA, err := c.get(ctx, "/v1-k3s/client-ca.crt")
		if err != nil {
			last = err
			continue
		}
		if err := errors.Join(
			k.v.Put(dataDir+"/agent/client-ca.crt", clientCA, 0o600),
			k.v.Put(dataDir+"/agent/client-kubelet.crt", b, 0o600), k.v.Put(dataDir+"/agent/server-ca.crt", ca, 0o600),
			k.v.Put(dataDir+"/agent/kubelet.kubeconfig", kubeletConfig(host), 0o600),
		); err != nil {
			return err
		}
		k.base = c
		k.api = k.o.HTTP(&tls.Config{RootCAs: pool(ca), Certificates: []tls.Certificate{pair}}, 10*time.Second)
		k.learnServers(ctx)
		return nil
	}
	return last
}

// kubeletConfig is the kubelet's kubeconfig. In life it names the agent's own load
// balancer on 127.0.0.1:6444; here it names the server that was joined.
func kubeletConfig(host string) []byte {
	return fmt.Appendf(nil, `apiVersion: v1
clusters:
- cluster:
    certificate-authority: %[1]s/server-ca.crt
    server: https://%[2]s
  name: local
contexts:
- context:
    cluster: local
    namespace: default
    user: user
  name: Default
current-context: Default
kind: Config
preferences: {}
users:
- name: user
  user:
    client-certificate: %[1]s/client-kubelet.crt
    client-key: %[1]s/client-kubelet.crt
`, dataDir+"/agent", host)
}

// learnServers notes all servers of the cluster, for when one goes.
func (k *kubelet) learnServers(ctx context.Context) {
	if k.own {
		return
	}
	var list []string
	if err := k.base.json(ctx, "/v1-k3s/apiservers", &list); err != nil {
		k.logf("warning", "Unable to list servers: %v", err) // the ones known so far will do
		return
	}
	for _, a := range list {
		host := fmt.Sprintf("%s:%d", a, portAPI)
		if !slices.Contains(k.servers, a) && !slices.Contains(k.servers, host) {
			k.servers = append(k.servers, host)
		}
	}
}

// call asks the API of the first server that answers; it stays with that one.
func (k *kubelet) call(ctx context.Context, method, path string, body any) ([]byte, int, error) {
	var last error
	for i, host := range k.servers {
		if !strings.Contains(host, ":") {
			host = fmt.Sprintf("%s:%d", host, portAPI)
		}
		c := &conn{base: "https://" + host, http: k.api}
		b, code, err := c.do(ctx, method, path, body)
		if err == nil && code < 500 {
			if i > 0 {
				k.servers = append([]string{k.servers[i]}, slices.Delete(slices.Clone(k.servers), i, i+1)...)
			}
			return b, code, nil
		}
		if err == nil {
			err = fmt.Errorf("%d %s", code, strings.TrimSpace(string(b)))
		}
		last = err
	}
	return nil, 0, last
}

func (k *kubelet) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, code, err := k.call(ctx, http.MethodPut, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/"+k.name, map[string]string{})
	if err != nil {
		return err
	}
	if code != http.StatusOK {
		return fmt.Errorf("lease: %d", code)
	}
	return nil
}

// object is the Node as this kubelet wants it.
func (k *kubelet) object() node {
	n := node{APIVersion: "v1", Kind: "Node"}
	m := k.o.Machine()
	n.Meta.Name = k.name
	n.Meta.Labels = map[string]string{
		"beta.kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux", "beta.kubernetes.io/instance-type": "k3s",
		"kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux", "kubernetes.io/hostname": k.name, "node.kubernetes.io/instance-type": "k3s",
	}
	n.Meta.Annotations = map[string]string{
		"k3s.io/hostname": k.o.Hostname(), "k3s.io/internal-ip": k.addr, "alpha.kubernetes.io/provided-node-ip": k.addr,
	}
	n.Meta.Finalizers = []string{finalNode}
	for _, l := range k.cfg.list("node-label") {
		key, val, _ := strings.Cut(l, "=")
		n.Meta.Labels[key] = val
	}
	for _, t := range k.cfg.list("node-taint") {
		kv, effect, _ := strings.Cut(t, ":")
		key, val, _ := strings.Cut(kv, "=")
		n.Spec.Taints = append(n.Spec.Taints, taint{Key: key, Value: val, Effect: effect})
	}
	if k.member != "" {
		n.Meta.Labels[labelControl], n.Meta.Labels[labelEtcd] = "true", "true"
		n.Meta.Annotations[annoEtcdName], n.Meta.Annotations[annoEtcdAddress] = k.member, k.addr
		n.Meta.Finalizers = append(n.Meta.Finalizers, finalMember)
	}
	n.Spec.ProviderID = "k3s://" + k.name
	n.Status.Capacity = map[string]string{
		"cpu": fmt.Sprint(max(m.CPUs, 1)), "memory": fmt.Sprintf("%dKi", m.Memory/1024), "pods": "110", "ephemeral-storage": "50000000Ki",
	}
	n.Status.Allocatable = n.Status.Capacity
	n.Status.Addresses = []nodeAddress{{"InternalIP", k.addr}, {"Hostname", k.name}}
	read := func(name string) string {
		b, err := k.v.ReadFile(name)
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	n.Status.Info = nodeInfo{
		MachineID: read("/etc/machine-id"), SystemUUID: read("/sys/class/dmi/id/product_uuid"), BootID: read("/proc/sys/kernel/random/boot_id"),
		KernelVersion: strings.Fields(read("/proc/version") + " - - -")[2], OSImage: "Ubuntu 24.04.3 LTS", ContainerRuntime: "containerd://2.1.5-k3s1",
		KubeletVersion: k.version, KubeProxyVersion: k.version, OS: "linux", Architecture: "amd64",
	}
	return n
}

// register makes the Node, or brings the one of that name up to date.
func (k *kubelet) register(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	n := k.object()
	b, code, err := k.call(ctx, http.MethodPost, "/api/v1/nodes", n)
	if err == nil && code == http.StatusConflict {
		patch := map[string]any{
			"metadata": map[string]any{"labels": n.Meta.Labels, "annotations": n.Meta.Annotations, "finalizers": n.Meta.Finalizers},
			"status":   n.Status,
		}
		b, code, err = k.call(ctx, http.MethodPatch, "/api/v1/nodes/"+k.name, patch)
	}
	if err != nil {
		return err
	}
	if code >= 300 {
		return fmt.Errorf("%d %s", code, strings.TrimSpace(string(b)))
	}
	return nil
}
