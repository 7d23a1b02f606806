// Package k3s knows how k3s is configured, installed, looked at and judged:
// the texts that are written and run in a guest, the parsing of what they
// print, and the rules of versions and quorum.
//
// It is pure. It opens no file and no connection; running a script in a guest
// and reading its output is the agent's part, deciding what to do with it the
// planner's. User-data is not made here.
//
// Every script here is POSIX sh, to be run as root with the script as an
// argument (`sudo -n sh -c SCRIPT`), because some read their content from
// standard input: with `sh -s` the shell would take that content as script.
// No script holds a secret, so that none shows in the guest's process list or
// in sudo's log.
package k3s

import "github.com/homeiac/homelab/internal/sh"

// Role is the role of a member of the cluster.
type Role string

// The roles.
const (
	Server Role = "server"
	Agent  Role = "agent"
)

// Unit is the systemd unit that the install script makes for the role.
func (r Role) Unit() string {
	if r == Agent {
		return "k3s-agent"
	}
	return "k3s"
}

// Uninstall is the path of the role's uninstall script.
func (r Role) Uninstall() string { return "/usr/local/bin/" + r.Unit() + "-uninstall.sh" }

// Ports of a server that others must reach.
const (
	APIPort        = 6443 // supervisor and Kubernetes API
	EtcdClientPort = 2379
	EtcdPeerPort   = 2380
)

// Paths in a guest. The first three are written by us before the install
// script runs; the rest belong to k3s.
const (
	ConfigPath  = "/etc/rancher/k3s/config.yaml"
	TokenPath   = "/etc/rancher/k3s/token"
	ScriptPath  = "/var/lib/hl/k3s-install.sh"
	BinaryPath  = "/usr/local/bin/k3s"
	ImagesDir   = "/var/lib/rancher/k3s/agent/images"
	Kubeconfig  = "/etc/rancher/k3s/k3s.yaml"
	NodePass    = "/etc/rancher/node/password"
	ServerToken = "/var/lib/rancher/k3s/server/token"
	CACerts     = "/var/lib/rancher/k3s/server/tls/server-ca.crt"
	EtcdMember  = "/var/lib/rancher/k3s/server/db/etcd/member"
	EtcdName    = "/var/lib/rancher/k3s/server/db/etcd/name"
	SQLite      = "/var/lib/rancher/k3s/server/db/state.db"
	AgentData   = "/var/lib/rancher/k3s/agent/client-ca.crt"
	EtcdCA      = "/var/lib/rancher/k3s/server/tls/etcd/server-ca.crt"
	EtcdCert    = "/var/lib/rancher/k3s/server/tls/etcd/client.crt"
	EtcdKey     = "/var/lib/rancher/k3s/server/tls/etcd/client.key"
)

func quote(s string) string { return sh.Quote(s) }
