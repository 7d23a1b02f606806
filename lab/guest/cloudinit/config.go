// Package cloudinit reads what cloud-init reads: #cloud-config user-data and
// network configuration, as Proxmox makes it or a snippet holds it. It is pure;
// carrying it out is the guest OS's (lab/guest/system). A key that the lab does
// not simulate is an error, never silently ignored.
package cloudinit

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Config is a #cloud-config. Zero values are cloud-init's defaults but where a
// pointer tells absent from false.
type Config struct {
	Hostname         string
	FQDN             string
	PreserveHostname bool
	DefaultUser      string // name of the distribution's user, "ubuntu" if not said
	Users            []User
	AuthorizedKeys   []string          // for the default user
	HostKeys         map[string]string // ed25519_private, ed25519_public, ecdsa_...
	DeleteHostKeys   bool              // ssh_deletekeys, true if not said
	WriteFiles       []File
	Packages         []string
	PackageUpdate    bool
	RunCmd           []string // lines of shell
	BootCmd          []string
	Locale           string
	Timezone         string
}

// User is one of the users to make.
type User struct {
	Name           string
	Sudo           []string // sudoers rules, "ALL=(ALL) NOPASSWD:ALL"
	AuthorizedKeys []string
	Shell          string
	Home           string
	System         bool
	Default        bool
}

// File is an item of write_files.
type File struct {
	Path    string
	Content []byte
	Owner   string // "root:root"
	Mode    uint32 // 0644 if not said
	Append  bool
}

// harmless are keys that change nothing in a simulated guest.
var harmless = []string{
	"manage_etc_hosts", "chpasswd", "password", "ssh_pwauth", "disable_root", "package_upgrade", "package_update",
	"package_reboot_if_required", "final_message", "growpart", "resize_rootfs", "ssh_genkeytypes", "ssh_quiet_keygen",
	"no_ssh_fingerprints", "prefer_fqdn_over_hostname", "create_hostname_file", "ntp", "output", "allow_public_ssh_keys",
}

// ErrNotCloudConfig is user-data of another kind. cloud-init warns and goes on.
var ErrNotCloudConfig = errors.New("Unhandled non-multipart (text/x-not-multipart) userdata") //nolint:staticcheck // the real text

// Parse reads user-data. Empty user-data is an empty configuration. All keys
// that are not simulated are reported together.
func Parse(userData string) (Config, error) {
	c := Config{DefaultUser: "ubuntu", DeleteHostKeys: true}
	if strings.TrimSpace(userData) == "" {
		c.Users = []User{c.defaultUser()}
		return c, nil
	}
	first, _, _ := strings.Cut(userData, "\n")
	if strings.TrimSpace(first) != "#cloud-config" {
		c.Users = []User{c.defaultUser()}
		return c, ErrNotCloudConfig
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(userData), &doc); err != nil {
		return c, fmt.Errorf("Failed loading yaml blob: %w", err) //nolint:staticcheck // the real text
	}
	if len(doc.Content) == 0 {
		c.Users = []User{c.defaultUser()}
		return c, nil
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return c, errors.New("Failed loading yaml blob: the top is not a mapping") //nolint:staticcheck // the real text
	}
	var errs []error
	users := false
	var usersNode *yaml.Node
	for i := 0; i+1 < len(top.Content); i += 2 {
		key, val := top.Content[i].Value, top.Content[i+1]
		if key == "users" {
			users, usersNode = true, val
			continue
		}
		known, err := c.key(key, val)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		case !known && !slices.Contains(harmless, key):
			errs = append(errs, fmt.Errorf("%s: not simulated by hl-lab", key))
		}
	}
	if !users {
		c.Users = []User{c.defaultUser()}
	} else if err := c.users(usersNode); err != nil {
		errs = append(errs, fmt.Errorf("users: %w", err))
	}
	return c, errors.Join(errs...)
}

func (c *Config) defaultUser() User {
	return User{Name: c.DefaultUser, Default: true, Sudo: []string{"ALL=(ALL) NOPASSWD:ALL"}, Shell: "/bin/bash"}
}

func (c *Config) key(key string, val *yaml.Node) (known bool, err error) {
	known = true
	switch key {
	case "hostname":
		err = val.Decode(&c.Hostname)
	case "fqdn":
		err = val.Decode(&c.FQDN)
	case "preserve_hostname":
		err = val.Decode(&c.PreserveHostname)
	case "user":
		var u struct{ Name string }
		if val.Kind == yaml.ScalarNode {
			u.Name = val.Value
		} else {
			err = val.Decode(&u)
		}
		if u.Name != "" {
			c.DefaultUser = u.Name
		}
	case "ssh_authorized_keys":
		err = val.Decode(&c.AuthorizedKeys)
	case "ssh_keys":
		if err = val.Decode(&c.HostKeys); err == nil {
			for k := range c.HostKeys {
				if !slices.Contains([]string{
					"ed25519_private", "ed25519_public", "ed25519_certificate", "ecdsa_private", "ecdsa_public",
					"rsa_private", "rsa_public",
				}, k) {
					err = errors.Join(err, fmt.Errorf("%s is no key type", k))
				}
			}
		}
	case "ssh_deletekeys":
		err = val.Decode(&c.DeleteHostKeys)
	case "write_files":
		err = c.files(val)
	case "packages":
		for _, n := range val.Content {
			switch n.Kind {
			case yaml.ScalarNode:
				c.Packages = append(c.Packages, n.Value)
			default: // [name, version]
				if len(n.Content) == 0 {
					return true, errors.New("an empty package")
				}
				c.Packages = append(c.Packages, n.Content[0].Value)
			}
		}
	case "package_update":
		err = val.Decode(&c.PackageUpdate)
	case "runcmd":
		c.RunCmd, err = commands(val)
	case "bootcmd":
		c.BootCmd, err = commands(val)
	case "locale":
		err = val.Decode(&c.Locale)
	case "timezone":
		err = val.Decode(&c.Timezone)
	default:
		known = false
	}
	return known, err
}

// commands turns runcmd's items into lines of shell: a string is one, a list is
// an argument vector.
func commands(val *yaml.Node) ([]string, error) {
	var out []string
	for _, n := range val.Content {
		switch n.Kind {
		case yaml.ScalarNode:
			out = append(out, n.Value)
		case yaml.SequenceNode:
			var words []string
			for _, w := range n.Content {
				words = append(words, "'"+strings.ReplaceAll(w.Value, "'", `'\''`)+"'")
			}
			out = append(out, strings.Join(words, " "))
		default:
			return nil, errors.New("an item is neither a string nor a list")
		}
	}
	return out, nil
}

func (c *Config) files(val *yaml.Node) error {
	var items []struct {
		Path        string    `yaml:"path"`
		Content     string    `yaml:"content"`
		Owner       string    `yaml:"owner"`
		Permissions yaml.Node `yaml:"permissions"`
		Encoding    string    `yaml:"encoding"`
		Append      bool      `yaml:"append"`
		Defer       bool      `yaml:"defer"`
	}
	if err := val.Decode(&items); err != nil {
		return err
	}
	for _, i := range items {
		f := File{Path: i.Path, Content: []byte(i.Content), Owner: i.Owner, Mode: 0o644, Append: i.Append}
		if !strings.HasPrefix(i.Path, "/") {
			return fmt.Errorf("path %q is not absolute", i.Path)
		}
		if i.Permissions.Value != "" {
			m, err := strconv.ParseUint(strings.TrimPrefix(i.Permissions.Value, "0o"), 8, 32)
			if err != nil {
				return fmt.Errorf("%s: permissions %q", i.Path, i.Permissions.Value)
			}
			f.Mode = uint32(m)
		}
		switch i.Encoding {
		case "", "text/plain":
		case "b64", "base64":
			b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(i.Content), ""))
			if err != nil {
				return fmt.Errorf("%s: %w", i.Path, err)
			}
			f.Content = b
		default:
			return fmt.Errorf("%s: encoding %q is not simulated by hl-lab", i.Path, i.Encoding)
		}
		c.WriteFiles = append(c.WriteFiles, f)
	}
	return nil
}

func (c *Config) users(val *yaml.Node) error {
	for _, n := range val.Content {
		if n.Kind == yaml.ScalarNode {
			if n.Value == "default" {
				c.Users = append(c.Users, c.defaultUser())
				continue
			}
			c.Users = append(c.Users, User{Name: n.Value})
			continue
		}
		var m struct {
			Name     string    `yaml:"name"`
			Sudo     yaml.Node `yaml:"sudo"`
			Keys     []string  `yaml:"ssh_authorized_keys"`
			KeysDash []string  `yaml:"ssh-authorized-keys"`
			Shell    string    `yaml:"shell"`
			Home     string    `yaml:"homedir"`
			System   bool      `yaml:"system"`
		}
		if err := n.Decode(&m); err != nil {
			return err
		}
		u := User{Name: m.Name, AuthorizedKeys: append(m.Keys, m.KeysDash...), Shell: m.Shell, Home: m.Home, System: m.System}
		if u.Name == "" || u.Name == "default" {
			d := c.defaultUser()
			d.AuthorizedKeys = u.AuthorizedKeys
			u = d
		}
		switch {
		case m.Sudo.Kind == yaml.SequenceNode:
			if err := m.Sudo.Decode(&u.Sudo); err != nil {
				return err
			}
		case m.Sudo.Kind == yaml.ScalarNode && m.Sudo.Tag == "!!str" && m.Sudo.Value != "":
			u.Sudo = []string{m.Sudo.Value}
		}
		c.Users = append(c.Users, u)
	}
	return nil
}
