package onhost

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"
)

// ControllerState is where the package has the controller's files.
const ControllerState = "/var/lib/hl-controller"

// enrolLimit bounds an enrolment, with the controller's answer.
const enrolLimit = time.Minute

// Enrol has the agent or controller (rpc.RoleAgent, rpc.RoleController) on the host get
// its certificate, with a token, from the controller at IP:PORT.
func (r Root) Enrol(ctx context.Context, role, at, token string, flags ...string) error {
	argv := append([]string{"/usr/sbin/hl-" + role, "enrol", "--controller", at, "--token", "-"}, flags...)
	// Through stdin: arguments are in the list of processes.
	_, err := r.Do(ctx, enrolLimit, strings.NewReader(token+"\n"), argv...)
	return err
}

// HasAgentKey says whether enrol has made the key of an agent here.
func (r Root) HasAgentKey(ctx context.Context) (bool, error) {
	_, err := r.Look(ctx, "test", "-s", AgentKey)
	if Failed(err) {
		return false, nil
	}
	return err == nil, err
}

// Begin enables and starts a service, or starts it anew. systemctl returns when the
// service says that it is ready; the error has its last words.
func (r Root) Begin(ctx context.Context, service string, anew bool) error {
	commands := [][]string{{"systemctl", "enable", "--now", service}}
	if anew {
		commands = [][]string{{"systemctl", "enable", service}, {"systemctl", "restart", service}}
	}
	for _, argv := range commands {
		if _, err := r.Do(ctx, ServiceLimit, nil, argv...); err != nil {
			return fmt.Errorf("%w%s", err, r.Journal(ctx, service))
		}
	}
	return nil
}

// ControllerFiles are the names of the files in the controller's state folder; none when
// it is not there.
func (r Root) ControllerFiles(ctx context.Context) ([]string, error) {
	out, err := r.Look(ctx, "ls", "-A", "--", ControllerState+"/")
	if Failed(err) && strings.Contains(err.Error(), "No such file or directory") {
		return nil, nil
	}
	return strings.Fields(out), err
}

// HasControllerFile says whether a file in it, that is there, is this one.
func (r Root) HasControllerFile(ctx context.Context, name string, data []byte) (bool, error) {
	out, err := r.Look(ctx, "sha256sum", "--", ControllerState+"/"+name)
	sum, _, _ := strings.Cut(out, " ")
	return err == nil && sum == SHA256(data), err
}

// PutControllerFiles puts those of the files that are named, in that order. Whom the
// folder belongs to reads them: root before its first start, when systemd gives it the
// folder, a user of its own later.
func (r Root) PutControllerFiles(ctx context.Context, names []string, files map[string][]byte) error {
	if len(names) == 0 {
		return nil
	}
	if _, err := r.Look(ctx, "mkdir", "-p", "-m", "700", "--", ControllerState); err != nil {
		return err
	}
	chown := []string{"chown", "--reference=" + ControllerState + "/", "--"}
	for _, name := range names {
		file := ControllerState + "/" + name
		if err := r.Put(ctx, file, 0o600, bytes.NewReader(files[name]), int64(len(files[name]))); err != nil {
			return err
		}
		chown = append(chown, file)
	}
	_, err := r.Look(ctx, chown...)
	return err
}

// Remove ends our daemons on the host and removes the package, with purge its data too;
// kept are the files that purge moved away and did not delete.
func (h *Host) Remove(ctx context.Context, purge bool) (kept []string, err error) {
	if h.Installed != "" {
		if err := h.Disable(ctx); err != nil {
			return nil, err
		}
	}
	how := "--remove"
	if purge {
		how = "--purge"
	}
	said, err := h.Dpkg(ctx, how, "homelab")
	if err != nil {
		return nil, err
	}
	// It names them, a path on a line.
	for line := range strings.Lines(said) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "/") {
			kept = append(kept, line)
		}
	}
	return kept, nil
}
