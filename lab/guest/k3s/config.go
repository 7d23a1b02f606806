package k3s

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/homeiac/homelab/lab/guest/tree"
)

const (
	configFile = "/etc/rancher/k3s/config.yaml"
	dataDir    = "/var/lib/rancher/k3s"
)

// flags are what k3s server and agent take here: true for those with a value.
// An unknown one ends k3s, as in life; one that k3s has and the lab does not
// simulate is in neither list and ends it too.
var flags = map[string]bool{
	"server": true, "token": true, "token-file": true, "agent-token": true, "agent-token-file": true, "cluster-init": false,
	"node-name": true, "with-node-id": false, "node-ip": true, "node-external-ip": true, "node-label": true, "node-taint": true,
	"tls-san": true, "disable": true, "write-kubeconfig-mode": true, "write-kubeconfig": true, "config": true, "data-dir": true,
	"flannel-backend": true, "cluster-cidr": true, "service-cidr": true, "cluster-dns": true, "cluster-domain": true,
	"disable-cloud-controller": false, "disable-network-policy": false, "disable-kube-proxy": false, "disable-helm-controller": false,
	"secrets-encryption": false, "kubelet-arg": true, "kube-apiserver-arg": true, "kube-controller-manager-arg": true,
	"kube-scheduler-arg": true, "kube-proxy-arg": true, "etcd-arg": true, "etcd-expose-metrics": true, "embedded-registry": false,
	"etcd-snapshot-schedule-cron": true, "etcd-snapshot-retention": true, "etcd-snapshot-dir": true, "etcd-disable-snapshots": false,
	"selinux": false, "flannel-iface": true, "bind-address": true, "advertise-address": true, "debug": false, "v": true,
	"protect-kernel-defaults": false, "default-local-storage-path": true, "egress-selector-mode": true, "snapshotter": true,
	"tls-san-security": false, "rootless": false,
}

// environment gives the flag of a variable of the unit's environment file.
var environment = map[string]string{
	"K3S_URL": "server", "K3S_TOKEN": "token", "K3S_TOKEN_FILE": "token-file", "K3S_AGENT_TOKEN": "agent-token",
	"K3S_NODE_NAME": "node-name", "K3S_KUBECONFIG_MODE": "write-kubeconfig-mode", "K3S_CLUSTER_INIT": "cluster-init",
	"K3S_DATA_DIR": "data-dir", "K3S_CONFIG_FILE": "config",
}

// config is the settings of one k3s process: by flag name, every value given.
type config map[string][]string

func (c config) get(name string) string {
	if v := c[name]; len(v) > 0 {
		return v[len(v)-1]
	}
	return ""
}

func (c config) on(name string) bool {
	v := c[name]
	if len(v) == 0 {
		return false
	}
	b, err := strconv.ParseBool(v[len(v)-1])
	return err == nil && b
}

// list gives a flag that may be repeated or hold several values.
func (c config) list(name string) []string {
	var out []string
	for _, v := range c[name] {
		for p := range strings.SplitSeq(v, ",") {
			if p = strings.TrimSpace(p); p != "" {
				out = append(out, p)
			}
		}
	}
	return out
}

// readConfig collects the settings: flags, else environment, else the files.
func readConfig(v *tree.View, args []string, env map[string]string) (config, error) {
	cli := config{}
	for i := 0; i < len(args); i++ {
		a := args[i]
		name, val, eq := strings.Cut(strings.TrimLeft(a, "-"), "=")
		switch name {
		case "s":
			name = "server"
		case "t":
			name = "token"
		case "c":
			name = "config"
		}
		takes, known := flags[name]
		if !strings.HasPrefix(a, "-") || !known {
			return nil, fmt.Errorf("flag provided but not defined: -%s", name)
		}
		switch {
		case takes && !eq:
			if i++; i >= len(args) {
				return nil, fmt.Errorf("flag needs an argument: -%s", name)
			}
			val = args[i]
		case !takes && !eq:
			val = "true"
		}
		cli[name] = append(cli[name], val)
	}
	for k, name := range environment {
		if x := env[k]; x != "" && len(cli[name]) == 0 {
			cli[name] = []string{x}
		}
	}
	file := configFile
	if f := cli.get("config"); f != "" {
		file = f
	}
	out := config{}
	names := []string{file}
	if es, err := v.ReadDir(file + ".d"); err == nil {
		for _, e := range es {
			if strings.HasSuffix(e.Name(), ".yaml") || strings.HasSuffix(e.Name(), ".yml") {
				names = append(names, file+".d/"+e.Name())
			}
		}
	}
	for _, n := range names {
		if err := readConfigFile(v, n, out); err != nil {
			return nil, err
		}
	}
	for k, x := range cli {
		out[k] = x
	}
	for _, k := range []string{"data-dir", "write-kubeconfig", "rootless", "bind-address", "advertise-address"} {
		if len(out[k]) > 0 && out.get(k) != "false" {
			return nil, fmt.Errorf("%s is not simulated by hl-lab", k)
		}
	}
	return out, nil
}

// readConfigFile adds a file's settings; "key+" appends, "key" replaces.
func readConfigFile(v *tree.View, name string, out config) error {
	b, err := v.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var doc map[string]yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return fmt.Errorf("failed to parse %s: %w", name, err)
	}
	keys := make([]string, 0, len(doc))
	for k := range doc {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		n := doc[k]
		flag, more := strings.CutSuffix(k, "+")
		if _, known := flags[flag]; !known {
			return fmt.Errorf("flag provided but not defined: -%s", flag)
		}
		var vals []string
		switch n.Kind {
		case yaml.ScalarNode:
			vals = []string{n.Value}
		case yaml.SequenceNode:
			for _, x := range n.Content {
				vals = append(vals, x.Value)
			}
		default:
			return fmt.Errorf("%s: %s has no value", name, k)
		}
		if more {
			vals = append(slices.Clone(out[flag]), vals...)
		}
		out[flag] = vals
	}
	return nil
}

// token gives the cluster's token as configured, "" when none is.
func (c config) token(v *tree.View) (string, error) {
	if t := c.get("token"); t != "" {
		return strings.TrimSpace(t), nil
	}
	f := c.get("token-file")
	if f == "" {
		return "", nil
	}
	b, err := v.ReadFile(f)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b)), nil
}
