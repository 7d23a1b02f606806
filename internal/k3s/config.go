package k3s

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Config is what a member's config.yaml is made from.
type Config struct {
	Role     Role
	Init     bool       // the first server of a new cluster; only with role server and without Join
	Join     netip.Addr // a healthy server, zero for the first
	NodeName string
	NodeIP   netip.Addr        // zero: k3s takes the address of the default route
	Labels   map[string]string // for node-label
	// Servers are the addresses of all servers and Endpoint the VIP or load
	// balancer ("" for none): every server's certificate names all of them.
	Servers  []netip.Addr
	Endpoint string
	// User is the Spec's k3s.config: string, bool or []string values. It is
	// merged as it is; an agent gets only what an agent knows.
	User map[string]any
}

// ConfigYAML is the config.yaml of a member. It names the token's file and never
// holds the token. Two servers' files differ only in their names, addresses,
// labels and in whether they start or join the cluster. The error is a
// contradiction in c.
func ConfigYAML(c Config) ([]byte, error) {
	switch {
	case c.Role != Server && c.Role != Agent:
		return nil, fmt.Errorf("%q is not a role", string(c.Role))
	case c.Init && c.Role != Server:
		return nil, fmt.Errorf("%s: an agent cannot start a cluster", c.NodeName)
	case c.Init == c.Join.IsValid():
		return nil, fmt.Errorf("%s: a member either starts a cluster or joins one", c.NodeName)
	case c.NodeName == "":
		return nil, fmt.Errorf("a member has no node name")
	}
	out := map[string]any{"node-name": c.NodeName, "token-file": TokenPath}
	for key, value := range c.User {
		if reason, owned := OwnedKey(key); owned {
			return nil, fmt.Errorf("k3s.config.%s %s", key, reason)
		}
		if c.Role == Server || agentKeys[key] {
			out[key] = value
		}
	}
	if c.NodeIP.IsValid() {
		out["node-ip"] = c.NodeIP.String()
	}
	if len(c.Labels) > 0 {
		list := make([]string, 0, len(c.Labels))
		for key, value := range c.Labels {
			list = append(list, key+"="+value)
		}
		slices.Sort(list)
		out["node-label"] = list
	}
	if c.Init {
		out["cluster-init"] = true
	} else {
		out["server"] = ServerURL(c.Join)
	}
	if c.Role == Server {
		if names := c.TLSSAN(); len(names) > 0 {
			out["tls-san"] = names
		}
	}
	text, err := yaml.Marshal(out) // maps are written in the order of their keys
	if err != nil {
		return nil, fmt.Errorf("config.yaml of %s: %w", c.NodeName, err)
	}
	return append([]byte("# Written by hl-agent from the Spec; changed here, it is written again at the next join.\n"), text...), nil
}

// TLSSAN are the names for which every server's certificate is made: all
// servers, the endpoint and what the Spec's k3s.config adds, sorted.
func (c Config) TLSSAN() []string {
	var names []string
	for _, a := range c.Servers {
		if a.IsValid() {
			names = append(names, a.String())
		}
	}
	if c.Endpoint != "" {
		names = append(names, c.Endpoint)
	}
	switch user := c.User["tls-san"].(type) {
	case string:
		for name := range strings.SplitSeq(user, ",") {
			names = append(names, strings.TrimSpace(name))
		}
	case []string:
		names = append(names, user...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// ServerURL is where members join and kubectl talks to: https://IP:6443.
func ServerURL(a netip.Addr) string {
	return "https://" + netip.AddrPortFrom(a, APIPort).String()
}

// owned are the keys of config.yaml that are ours, with why.
var owned = map[string]string{
	"server":                     "is set for each member: the Spec says who is in the cluster",
	"cluster-init":               "is set for the first server by itself",
	"cluster-reset":              "is a recovery done by hand, not a setting",
	"token":                      "is a secret: it is taken from the cluster and never stands in a Spec",
	"token-file":                 "is set: the token is taken from the cluster",
	"agent-token":                "is a secret: it never stands in a Spec",
	"agent-token-file":           "is set: the token is taken from the cluster",
	"node-name":                  "belongs to a guest: guests.NAME.k3s.name",
	"with-node-id":               "changes node names behind the Spec's back",
	"node-ip":                    "belongs to a guest: guests.NAME.networks",
	"node-label":                 "belongs to a guest: guests.NAME.k3s.labels",
	"data-dir":                   "is not supported: state is looked for in /var/lib/rancher/k3s",
	"datastore-endpoint":         "is not supported: clusters here have embedded etcd",
	"disable-etcd":               "is not supported: every server here is a voter",
	"disable-apiserver":          "is not supported: every server here serves the API",
	"https-listen-port":          "is not supported: the API is looked for at port 6443",
	"supervisor-port":            "is not supported: members join at port 6443",
	"config":                     "is not supported: the configuration is this one",
	"etcd-s3-secret-key":         "is a secret: it never stands in a Spec",
	"etcd-s3-access-key":         "is a secret: it never stands in a Spec",
	"etcd-s3-session-token":      "is a secret: it never stands in a Spec",
	"vpn-auth":                   "is a secret: it never stands in a Spec (vpn-auth-file names a file)",
	"cluster-reset-restore-path": "is a recovery done by hand, not a setting",
}

// OwnedKey says whether a key of config.yaml may not stand in the Spec's
// k3s.config, and why. A + after a key (k3s appends with it) changes nothing.
func OwnedKey(key string) (reason string, is bool) {
	reason, is = owned[strings.TrimLeft(strings.TrimRight(key, "+"), "-")]
	return reason, is
}

// agentKeys are the flags that `k3s agent` knows (docs.k3s.io/cli/agent); in
// an agent's config.yaml others are left out.
var agentKeys = func() map[string]bool {
	keys := map[string]bool{}
	for _, key := range []string{
		"debug", "v", "vmodule", "log", "alsologtostderr", "bind-address",
		"node-taint", "image-credential-provider-bin-dir", "image-credential-provider-config",
		"selinux", "lb-server-port", "protect-kernel-defaults", "container-runtime-endpoint",
		"default-runtime", "disable-default-registry-endpoint", "nonroot-devices", "image-service-endpoint",
		"docker", "pause-image", "snapshotter", "private-registry", "node-external-ip",
		"node-internal-dns", "node-external-dns", "resolv-conf", "flannel-iface", "flannel-conf",
		"flannel-cni-conf", "vpn-auth-file", "kubelet-arg", "kube-proxy-arg", "enable-pprof",
		"rootless", "prefer-bundled-bin", "disable-apiserver-lb", "airgap-extra-registry",
	} {
		keys[key], keys[key+"+"] = true, true
	}
	return keys
}()

// kubeletLabels are the labels within kubernetes.io that a kubelet may give itself.
var kubeletLabels = map[string]bool{
	"kubernetes.io/hostname": true, "kubernetes.io/os": true, "kubernetes.io/arch": true,
	"beta.kubernetes.io/os": true, "beta.kubernetes.io/arch": true, "beta.kubernetes.io/instance-type": true,
	"topology.kubernetes.io/region": true, "topology.kubernetes.io/zone": true,
	"failure-domain.beta.kubernetes.io/region": true, "failure-domain.beta.kubernetes.io/zone": true,
}

// KubeletRefusesLabel says whether a kubelet would not start with this label
// among its own: kubernetes.io and k8s.io are not for it, with exceptions
// (kubelet's own check of --node-labels; node-role.kubernetes.io is the usual
// victim).
func KubeletRefusesLabel(key string) bool {
	prefix, _, divided := strings.Cut(key, "/")
	if !divided || kubeletLabels[key] {
		return false
	}
	within := func(domain string) bool { return prefix == domain || strings.HasSuffix(prefix, "."+domain) }
	if within("kubelet.kubernetes.io") || within("node.kubernetes.io") {
		return false
	}
	return within("kubernetes.io") || within("k8s.io")
}
