package guest

import (
	"bytes"
	"fmt"

	"go.yaml.in/yaml/v3"
)

// UserData is what a guest's cloud-init user-data is made of. There is no join
// token in it: the snippet stays on the host as long as the guest.
type UserData struct {
	Hostname       string
	User           string
	AuthorizedKeys []string // people's and the agent's
	HostKey        HostKey
	K3s            bool // prepare the kernel for k3s
}

// cloudConfig is the part of cloud-init's format that we use, in its order.
type cloudConfig struct {
	Hostname         string      `yaml:"hostname"`
	FQDN             string      `yaml:"fqdn"`
	PreserveHostname bool        `yaml:"preserve_hostname"`
	ManageEtcHosts   string      `yaml:"manage_etc_hosts"`
	Locale           string      `yaml:"locale"`
	Users            []cloudUser `yaml:"users"`
	SSHPwauth        bool        `yaml:"ssh_pwauth"`
	SSHDeletekeys    bool        `yaml:"ssh_deletekeys"`
	SSHKeys          sshKeys     `yaml:"ssh_keys"`
	Packages         []string    `yaml:"packages"`
	WriteFiles       []cloudFile `yaml:"write_files,omitempty"`
	Runcmd           [][]string  `yaml:"runcmd"`
}

type cloudUser struct {
	Name              string   `yaml:"name"`
	Shell             string   `yaml:"shell"`
	LockPasswd        bool     `yaml:"lock_passwd"`
	Sudo              string   `yaml:"sudo"`
	SSHAuthorizedKeys []string `yaml:"ssh_authorized_keys"`
}

type sshKeys struct {
	Ed25519Private string `yaml:"ed25519_private"`
	Ed25519Public  string `yaml:"ed25519_public"`
}

type cloudFile struct {
	Path        string `yaml:"path"`
	Permissions string `yaml:"permissions"`
	Content     string `yaml:"content"`
}

// What k3s and the pod network want of the kernel. Its unit loads the modules
// too, but a guest that boots with them shows at boot what is missing.
const (
	k3sModules = "br_netfilter\noverlay\n"
	k3sSysctls = "net.bridge.bridge-nf-call-iptables = 1\n" +
		"net.bridge.bridge-nf-call-ip6tables = 1\n" +
		"net.ipv4.ip_forward = 1\n" +
		"fs.inotify.max_user_instances = 1024\n" +
		"fs.inotify.max_user_watches = 524288\n"
)

// Render gives the user-data. The same input gives the same bytes: a change of
// one of them would change the instance-id, and cloud-init would run everything
// again at the next boot.
func (u UserData) Render() ([]byte, error) {
	c := cloudConfig{
		Hostname: u.Hostname,
		FQDN:     u.Hostname,
		// Without its own name in /etc/hosts every sudo waits for DNS.
		ManageEtcHosts: "localhost",
		// Images without locales end with an error status otherwise.
		Locale: "C.UTF-8",
		Users: []cloudUser{{
			Name: u.User, Shell: "/bin/bash", LockPasswd: true,
			Sudo: "ALL=(ALL) NOPASSWD:ALL", SSHAuthorizedKeys: u.AuthorizedKeys,
		}},
		SSHDeletekeys: true,
		SSHKeys:       sshKeys{Ed25519Private: u.HostKey.Private, Ed25519Public: u.HostKey.Public},
		Packages:      []string{"qemu-guest-agent"},
	}
	if u.K3s {
		c.WriteFiles = []cloudFile{
			{Path: "/etc/modules-load.d/90-k3s.conf", Permissions: "0644", Content: k3sModules},
			{Path: "/etc/sysctl.d/90-k3s.conf", Permissions: "0644", Content: k3sSysctls},
		}
		c.Runcmd = append(c.Runcmd,
			[]string{"modprobe", "br_netfilter"},
			[]string{"modprobe", "overlay"},
			[]string{"sysctl", "--system"})
	}
	c.Runcmd = append(c.Runcmd, []string{"systemctl", "start", "qemu-guest-agent"})
	var b bytes.Buffer
	b.WriteString("#cloud-config\n")
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(c); err != nil {
		return nil, fmt.Errorf("user-data: %w", err)
	}
	return b.Bytes(), enc.Close()
}
