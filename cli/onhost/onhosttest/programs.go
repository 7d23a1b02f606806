package onhosttest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/homeiac/homelab/cli/onhost"
)

// program plays one, under the lock.
func (h *Host) program(line string, argv []string, input string) (string, error) {
	last := argv[len(argv)-1]
	switch {
	case line == "hostname":
		return h.Hostname + ".example.org\n", nil
	case line == "hostname -I":
		return "127.0.0.1 10.9.9.9 fe80::1 \n", nil
	case line == "dpkg --print-architecture":
		return h.Arch + "\n", nil
	case line == "pveversion":
		return "pve-manager/9.2.11/1234abcd (running kernel: 6.17.2-1-pve)\n", nil
	case line == "sh -c command -v qm":
		return "/usr/sbin/qm\n", nil
	case line == "systemctl --version":
		return "systemd 257 (257.9-1~deb13u1)\n", nil
	case argv[0] == "put", argv[0] == "mkdir", argv[0] == "chown":
		return "", nil
	case argv[0] == "cat", argv[0] == "sha256sum", argv[0] == "test":
		text, ok := h.Files[last]
		switch {
		case argv[0] == "test" && text == "":
			return "", errors.New("")
		case !ok:
			return "", fmt.Errorf("%s: %s: No such file or directory", argv[0], last)
		case argv[0] == "sha256sum":
			text = onhost.SHA256([]byte(text)) + "  " + last + "\n"
		}
		return text, nil
	case argv[0] == "ls":
		var names strings.Builder
		for _, f := range slices.Sorted(maps.Keys(h.Files)) {
			if path.Dir(f)+"/" == last {
				names.WriteString(path.Base(f) + "\n")
			}
		}
		if names.Len() == 0 {
			return "", fmt.Errorf("ls: cannot access '%s': No such file or directory", last)
		}
		return names.String(), nil
	case argv[0] == "rm":
		for _, f := range argv[3:] {
			delete(h.Files, f)
		}
		return "", nil
	case argv[0] == "systemctl":
		return h.systemctl(argv[1], argv[2:])
	case argv[0] == "journalctl":
		lines := h.journal[strings.TrimPrefix(argv[1], "--unit=")]
		most, err := strconv.Atoi(strings.TrimPrefix(argv[2], "--lines="))
		return strings.Join(lines[max(0, len(lines)-most):], ""), err
	case argv[0] == "dpkg-query":
		return h.query()
	case argv[0] == "dpkg-deb":
		version, ok := strings.CutPrefix(h.Files[argv[2]], Deb(""))
		if !ok {
			return "", fault{2, "dpkg-deb: error: failed to read archive"}
		}
		return "Package: homelab\nVersion: " + version + "\n", nil
	case strings.HasPrefix(line, "dpkg --compare-versions "):
		if argv[2] > argv[4] { // as long as their numbers have one digit
			return "", nil
		}
		return "", errors.New("")
	case argv[0] == "dpkg":
		return h.dpkg(argv[1], last)
	case h.Installed != "" && line == "/usr/sbin/hl-agent version":
		return Program(h.Installed) + "\n", nil
	case h.Installed != "" && strings.HasPrefix(argv[0], "/usr/sbin/hl-") && argv[1] == "enrol":
		return h.enrol(strings.TrimPrefix(argv[0], "/usr/sbin/hl-"), argv[2:], strings.TrimSpace(input))
	}
	return "", fault{127, "sh: " + argv[0] + ": not found, or not simulated: " + line}
}

func (h *Host) query() (string, error) {
	switch {
	case h.Half:
		return "half-configured " + h.Installed, nil
	case h.Installed != "":
		return "installed " + h.Installed, nil
	case h.leftovers != "":
		return "config-files " + h.leftovers, nil
	}
	return "", errors.New("dpkg-query: no packages found matching homelab")
}

// dpkg is dpkg with the package's scripts: what runs is started anew, and nothing else.
func (h *Host) dpkg(verb, what string) (string, error) {
	said := ""
	switch verb {
	case "--install":
		version, ok := strings.CutPrefix(h.Files[what], Deb(""))
		if !ok {
			return "", fault{2, "dpkg: error: cannot access archive '" + what + "'"}
		}
		h.Installed, h.Half, h.leftovers = version, false, ""
		said = "Setting up homelab (" + version + ") ...\n"
		for _, conf := range []string{onhost.AgentConfig, onhost.ControllerConfig} {
			if _, ok := h.Files[conf]; !ok {
				h.Files[conf] = "# nothing is set\n#name: pve1\n"
			}
		}
		for name, u := range h.Units {
			if u.Active {
				_ = h.begin(name)
			}
		}
	case "--remove", "--purge":
		if h.Installed != "" {
			h.leftovers = h.Installed
		}
		h.Installed, h.Half = "", false
		if verb == "--purge" {
			h.leftovers, said = "", h.purge()
		}
	default:
		return "", fault{2, "dpkg: error: unknown option " + verb}
	}
	h.done = append(h.done, strings.TrimPrefix(verb, "--")+" "+path.Base(what))
	return said, nil
}

// purge removes what is ours, but for the key that opens guests.
func (h *Host) purge() (said string) {
	for f, text := range h.Files {
		if !strings.HasPrefix(f, "/etc/homelab/") && !strings.HasPrefix(f, "/var/lib/hl-") {
			continue
		}
		delete(h.Files, f)
		if path.Base(f) == "ssh_key" {
			h.Files["/var/lib/homelab-keep/1/agent/ssh_key"] = text
			said = "homelab: kept, because it cannot be made again:\n  /var/lib/homelab-keep/1/agent/ssh_key\n  delete /var/lib/homelab-keep/1 when no guest of this fleet is left\n"
		}
	}
	return said
}

func (h *Host) systemctl(verb string, args []string) (string, error) {
	for _, name := range args {
		u := h.Units[name]
		state := "inactive"
		switch {
		case u == nil:
			continue // an option
		case u.Active:
			state = "active"
		case u.Failed:
			state = "failed"
		}
		switch {
		case verb == "show" && h.Installed == "":
			return "ActiveState=" + state + "\nUnitFileState=\n", nil
		case verb == "show":
			return "ActiveState=" + state + "\nUnitFileState=" + map[bool]string{true: "enabled", false: "disabled"}[u.Enabled] + "\n", nil
		case verb == "is-active" && !u.Active:
			return state + "\n", fault{3, ""}
		case verb == "is-active":
			return state + "\n", nil
		case h.Installed == "":
			return "", fmt.Errorf("Failed to %s unit: Unit %s does not exist", verb, name) //nolint:staticcheck // as it says it
		case verb == "disable":
			*u = Unit{}
			continue
		}
		u.Enabled = u.Enabled || verb == "enable"
		if verb == "restart" || slices.Contains(args, "--now") && !u.Active {
			if err := h.begin(name); err != nil && !slices.Contains(args, "--no-block") {
				return "", err
			}
		}
	}
	if verb == "disable" {
		h.done = append(h.done, verb)
	}
	return "", nil
}

// begin starts a service, or starts it anew.
func (h *Host) begin(name string) error {
	u := h.Units[name]
	u.Failed = h.Sick[h.Installed]
	u.Active = !u.Failed
	program := strings.TrimSuffix(name, ".service")
	say := func(text string) {
		h.journal[name] = append(h.journal[name], "2026-03-01T14:02:00+00:00 "+h.Hostname+" "+program+"[12]: "+text+"\n")
	}
	say("\x1b[1m" + Program(h.Installed) + " begins")
	if u.Active {
		return nil
	}
	say("it went \x1b[31mwrong")
	return fmt.Errorf("Job for %s failed because the control process exited with error code", name) //nolint:staticcheck // as it says it
}

func stateOf(role string) string { return "/var/lib/hl-" + role + "/" }

// enrol is enrol of hl-agent or hl-controller: the key that is there is kept, and the
// certificate comes last.
func (h *Host) enrol(role string, args []string, token string) (string, error) {
	dir := stateOf(role)
	if len(args) < 4 || args[0] != "--controller" || args[2] != "--token" || args[3] != "-" || role == "agent" && len(args) > 4 {
		return "", fmt.Errorf("hl-%s: usage: %q", role, args)
	}
	for _, name := range []string{"fleet.key", "issuing-ca.pem", "issuing-ca.key"} {
		if role == "controller" && h.Files[dir+name] == "" {
			return "", fmt.Errorf("hl-controller: stat %s: no such file or directory", dir+name)
		}
	}
	key, err := h.key(dir + role + ".key")
	if err != nil {
		return "", err
	}
	cert, is, err := h.Enrol(token, key)
	if err != nil {
		return "", fmt.Errorf("hl-%s: enrol: %w", role, err)
	}
	if h.CutAt == PowerFails {
		return "", errors.New("the lights went out")
	}
	h.Files["/etc/homelab/"+role+".yaml"] = fmt.Sprintf("name: %s\nadvertise: \"127.0.0.1\"\ncert: %s%s.crt\n# %s\n", is.Name, dir, role, strings.Join(args, " "))
	h.Files[dir+role+".crt"] = string(cert)
	return "enrolled as " + is.String() + "\n", nil
}

// key is the public half of the key in a file, which is made if it is not there.
func (h *Host) key(file string) (crypto.PublicKey, error) {
	if h.Files[file] == "" {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		h.Files[file] = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	block, _ := pem.Decode([]byte(h.Files[file]))
	if block == nil {
		return nil, errors.New(file + ": no PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	return key.(*ecdsa.PrivateKey).Public(), nil
}
