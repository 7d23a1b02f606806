package k3s

import (
	"fmt"
	"path"
	"strings"
	"time"
)

// WriteFileScript writes standard input to a file, in one step (written beside
// and renamed), readable by root alone until it has its mode. It makes the
// folder if need be.
func WriteFileScript(file string, mode uint32) string {
	beside := quote(file + ".hl-new")
	return fmt.Sprintf(`export LC_ALL=C
mkdir -p %s || exit 1
umask 077
cat >%s && chmod %04o %s && mv -f %s %s
`, quote(path.Dir(file)), beside, mode, beside, beside, quote(file))
}

// WritePieceScript adds standard input to what will be a file, readable by root
// alone; the first piece begins it anew. For ways into a guest that take little at
// once; PlaceFileScript ends it.
func WritePieceScript(file string, first bool) string {
	to := ">>"
	if first {
		to = ">"
	}
	return fmt.Sprintf("export LC_ALL=C\nmkdir -p %s || exit 1\numask 077\ncat %s%s\n", quote(path.Dir(file)), to, quote(file+".hl-new"))
}

// PlaceFileScript gives the pieces their mode and name, in one step.
func PlaceFileScript(file string, mode uint32) string {
	beside := quote(file + ".hl-new")
	return fmt.Sprintf("export LC_ALL=C\nchmod %04o %s && mv -f %s %s\n", mode, beside, beside, quote(file))
}

// ReadFileScript prints a file.
func ReadFileScript(file string) string {
	return "export LC_ALL=C\ncat " + quote(file) + "\n"
}

// Install is one run of the install script. Config, token and the script itself
// have been written before, with WriteFileScript.
type Install struct {
	Role    Role
	Version Version
	Timeout time.Duration // whole seconds, at least one
	Airgap  bool          // the binary is there already: nothing is downloaded
}

// InstallScript runs the install script with the pinned version, under its own
// deadline because the official one never comes back when a join cannot
// succeed. Only the role is on its command line: the rest stands in
// config.yaml, so that a later run loses nothing. FORCE_RESTART because a run
// after a failed join finds nothing changed and would leave the unit stopped.
// It exits 0 and prints what happened: see ParseInstall.
func InstallScript(in Install) string {
	var b strings.Builder
	b.WriteString(prologue)
	b.WriteString("unset K3S_URL K3S_TOKEN K3S_TOKEN_FILE K3S_AGENT_TOKEN K3S_CONFIG_FILE\n")
	b.WriteString("unset INSTALL_K3S_COMMIT INSTALL_K3S_PR INSTALL_K3S_CHANNEL INSTALL_K3S_NAME INSTALL_K3S_SKIP_START INSTALL_K3S_SKIP_ENABLE\n")
	fmt.Fprintf(&b, "export INSTALL_K3S_VERSION=%s INSTALL_K3S_EXEC=%s INSTALL_K3S_FORCE_RESTART=true\n", quote(in.Version.String()), quote(string(in.Role)))
	if in.Airgap {
		b.WriteString("export INSTALL_K3S_SKIP_DOWNLOAD=true\n")
	}
	fmt.Fprintf(&b, "section install %d sh %s\n", max(1, int(in.Timeout/time.Second)), ScriptPath)
	fmt.Fprintf(&b, "section unit 5 systemctl is-active %s\n", in.Role.Unit())
	b.WriteString(journal(in.Role))
	b.WriteString("exit 0\n")
	return b.String()
}

func journal(r Role) string {
	return fmt.Sprintf("section journal 10 journalctl -u %s -n 40 --no-pager -o cat\n", r.Unit())
}

// Installed is what InstallScript printed.
type Installed struct {
	Exit     int    // of the install script; -1 when it is not known
	TimedOut bool   // its deadline ended it
	Active   bool   // the unit is active
	Unit     string // as systemctl says: active, activating, failed, inactive; "" unknown
	Output   string // of the install script
	Journal  string // last 40 lines of the unit, "" when there are none
	Reason   string // why something above is not known, "" when all is
}

// ParseInstall reads what InstallScript printed. A cut-off output is no error:
// it says what is known so far and why there is no more.
func ParseInstall(out []byte) Installed {
	sections := ParseSections(out)
	in := Installed{Exit: -1}
	s, there := sections["install"]
	in.Output = strings.TrimSpace(s.Text)
	switch {
	case !there:
		in.Reason = "install: was not run"
	case s.Reason != "":
		in.Reason = "install: " + s.Reason
	default:
		in.Exit = s.Exit
		in.TimedOut = s.Exit == 124 || s.Exit == 137
	}
	unit, reason := read(sections, "unit")
	in.Unit, in.Active = unit, unit == "active"
	if in.Reason == "" {
		in.Reason = reason
	}
	in.Journal, _ = read(sections, "journal")
	return in
}

// StopScript stops the unit after a join that failed, and keeps it from
// starting at the next boot, where it would join again. When it does not stop
// within a minute it is killed. The journal's last lines come with it.
func StopScript(r Role) string {
	unit := r.Unit()
	return prologue + fmt.Sprintf(`section stop 60 systemctl stop %[1]s
if [ "$code" != 0 ]; then
	section kill 10 systemctl kill --signal=KILL %[1]s
	section again 20 systemctl stop %[1]s
fi
section disable 20 systemctl disable %[1]s
section unit 5 systemctl is-active %[1]s
%[2]sexit 0
`, unit, journal(r))
}

// CleanScript is StopScript and then k3s's own uninstall script, which alone
// removes everything that would break a later join (the network, mounts, old
// CA files); it leaves the Node and the etcd member to us.
func CleanScript(r Role) string {
	return strings.TrimSuffix(StopScript(r), "exit 0\n") + fmt.Sprintf("section uninstall 120 %s\n%sexit 0\n", r.Uninstall(), lookForFiles)
}

// Stopped is what StopScript and CleanScript printed.
type Stopped struct {
	Stopped bool   // seen not to run
	Unit    string // as systemctl says, "" unknown
	Journal string
	Cleaned bool   // CleanScript only: uninstalled and seen to have left nothing
	Reason  string // why not stopped or not cleaned, or not known
}

// ParseStopped reads what StopScript printed, or, with clean, CleanScript.
func ParseStopped(out []byte, clean bool) Stopped {
	sections := ParseSections(out)
	var s Stopped
	s.Unit, s.Reason = read(sections, "unit")
	s.Journal, _ = read(sections, "journal")
	switch s.Unit {
	case "inactive", "failed", "unknown": // unknown: there is no such unit
		s.Stopped = true
	case "":
	default:
		s.Reason = "the unit is still " + s.Unit
	}
	if !clean || !s.Stopped {
		return s
	}
	if _, reason := read(sections, "uninstall", 0, 127); reason != "" {
		s.Reason = reason
		return s
	}
	files := readFiles(sections)
	for _, name := range []string{EtcdMember, SQLite, AgentData} {
		switch f := files[name]; {
		case !f.Known:
			s.Reason = f.Reason
			return s
		case f.Value:
			s.Reason = name + " is still there"
			return s
		}
	}
	s.Cleaned = true
	return s
}

// DeleteNodeScript deletes a Node on a server, within a deadline: without
// quorum its finalizer never ends. A Node that is gone is no failure.
func DeleteNodeScript(node string, deadline time.Duration) string {
	seconds := max(1, int(deadline/time.Second))
	return fmt.Sprintf("export LC_ALL=C PATH=/usr/local/bin:/usr/bin:/bin:/opt/bin\ntimeout -k 1 %d k3s kubectl delete node %s --ignore-not-found --timeout=%ds\n",
		seconds+1, quote(node), seconds)
}

// EtcdFilesScript prints the files by which the agent talks to the etcd of a
// server, and the name of its member; see ParseEtcdFiles. The last is a key:
// the output is a secret.
const EtcdFilesScript = prologue + `section name 2 cat ` + EtcdName + `
section ca 2 cat ` + EtcdCA + `
section cert 2 cat ` + EtcdCert + `
section key 2 cat ` + EtcdKey + `
if [ "$code" != 0 ]; then
	section other-cert 2 cat ` + etcdOtherCert + `
	section other-key 2 cat ` + etcdOtherKey + `
fi
exit 0
`

// Some releases call the client's files by another name (k3s PR #4001 and
// issue #6816 differ).
const (
	etcdOtherCert = "/var/lib/rancher/k3s/server/tls/etcd/server-client.crt"
	etcdOtherKey  = "/var/lib/rancher/k3s/server/tls/etcd/server-client.key"
)

// EtcdFiles are the client's files for the etcd of a server, as PEM.
type EtcdFiles struct {
	Member   string // name of this server's member, "" when it is not known
	CA, Cert []byte
	Key      Secret
}

// ParseEtcdFiles reads what EtcdFilesScript printed.
func ParseEtcdFiles(out []byte) (EtcdFiles, error) {
	sections := ParseSections(out)
	var f EtcdFiles
	f.Member, _ = read(sections, "name", 0)
	pem := func(names ...string) (text string, err error) {
		for _, name := range names {
			var reason string
			if text, reason = read(sections, name, 0); reason == "" && strings.HasPrefix(text, "-----BEGIN ") {
				return text + "\n", nil
			} else if err == nil {
				// A reason could quote a broken key file: only say which.
				err = fmt.Errorf("etcd's %s was not read", name)
			}
		}
		return "", err
	}
	ca, err := pem("ca")
	if err != nil {
		return EtcdFiles{}, err
	}
	cert, err := pem("cert", "other-cert")
	if err != nil {
		return EtcdFiles{}, err
	}
	key, err := pem("key", "other-key")
	if err != nil {
		return EtcdFiles{}, err
	}
	f.CA, f.Cert, f.Key = []byte(ca), []byte(cert), NewSecret(key)
	return f, nil
}
