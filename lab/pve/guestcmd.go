package pve

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// agentCommands are what qm guest cmd passes to the guest agent.
const agentCommands = "fsfreeze-freeze fsfreeze-status fsfreeze-thaw fstrim get-fsinfo get-host-name get-memory-block-info get-memory-blocks get-osinfo get-time get-timezone get-users get-vcpus info network-get-interfaces ping shutdown suspend-disk suspend-hybrid suspend-ram"

// withAgent sends a command to the guest agent of a VM that must have one.
func (r *run) withAgent(vmid, command string, arguments any) (any, error) {
	c, err := r.load(vmid)
	if err != nil {
		return nil, err
	}
	if r.running(vmid) == 0 {
		return nil, fail(2, "VM %s is not running", vmid)
	}
	if !agentEnabled(c.main) {
		return nil, fail(255, "No QEMU guest agent configured")
	}
	raw, err := r.agent(vmid, 10*r.times.agent, command, arguments)
	var q *qmpError
	switch {
	case errors.As(err, &q) && strings.ContainsFunc(q.Desc, func(c rune) bool { return c > 255 }):
		return nil, fail(29, "Wide character in die at /usr/share/perl5/PVE/RESTHandler.pm line 1131.\nAgent error: %s", q.Desc)
	case errors.As(err, &q):
		return nil, fail(29, "Agent error: %s", q.Desc)
	case err != nil:
		return nil, fail(255, "QEMU guest agent is not running")
	}
	var v any
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	return v, nil
}

// guestCmd is qm guest cmd, and qm agent.
func (r *run) guestCmd(p params) error {
	v, err := r.withAgent(p["vmid"], "guest-"+p["command"], nil)
	if err != nil {
		return err
	}
	switch p["command"] {
	case "ping", "shutdown":
		return nil
	}
	r.printf("%s\n", perlJSON(v))
	return nil
}

// guestExec is qm guest exec. The guest command's exit code is in the output;
// the program's own is 0.
func (r *run) guestExec(p params) error {
	argv := strings.Split(p["command"], "\x00")
	if argv[0] == "" {
		return badParam(2, "command", "property is missing and it is not optional")
	}
	args := map[string]any{"path": argv[0], "arg": append([]string{}, argv[1:]...), "capture-output": true}
	if p.on("pass-stdin") {
		data, err := io.ReadAll(r.stdin)
		if err != nil {
			return err
		}
		args["input-data"] = base64.StdEncoding.EncodeToString(data)
	}
	v, err := r.withAgent(p["vmid"], "guest-exec", args)
	if err != nil {
		return err
	}
	started, _ := v.(map[string]any)
	pid := started["pid"]
	if s, ok := p["synchronous"]; ok && s == "0" {
		r.printf("%s\n", perlJSON(map[string]any{"pid": pid}))
		return nil
	}
	limit := seconds(p["timeout"], 30*time.Second)
	begin := r.clock.Now()
	for limit == 0 || r.clock.Now().Sub(begin) < limit {
		out, err := r.execStatus(p["vmid"], pid)
		if err != nil {
			return err
		}
		if fmt.Sprint(out["exited"]) == "1" {
			r.printf("%s\n", perlJSON(out))
			return nil
		}
		if err := r.clock.Sleep(r.ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	r.printf("%s\n", perlJSON(map[string]any{"pid": pid}))
	r.warnf("timeout reached, returning pid\n")
	return nil
}

// execStatus asks for a command's outcome: output decoded, booleans as 0 and 1.
func (r *run) execStatus(vmid string, pid any) (map[string]any, error) {
	v, err := r.withAgent(vmid, "guest-exec-status", map[string]any{"pid": pid})
	if err != nil {
		return nil, err
	}
	out, _ := v.(map[string]any)
	for k, v := range out {
		switch v := v.(type) {
		case bool:
			out[k] = map[bool]int{true: 1}[v]
		case string:
			if k == "out-data" || k == "err-data" {
				data, err := base64.StdEncoding.DecodeString(v)
				if err != nil {
					return nil, err
				}
				out[k] = string(data)
			}
		}
	}
	return out, nil
}

// guestExecStatus is qm guest exec-status.
func (r *run) guestExecStatus(p params) error {
	out, err := r.execStatus(p["vmid"], intOr(p["pid"], 0))
	if err != nil {
		return err
	}
	r.printf("%s\n", perlJSON(out))
	return nil
}

// guestPasswd is qm guest passwd: the password comes twice on standard input.
func (r *run) guestPasswd(p params) error {
	data, err := io.ReadAll(r.stdin)
	if err != nil {
		return err
	}
	first, rest, _ := strings.Cut(string(data), "\n")
	second, _, _ := strings.Cut(rest, "\n")
	if first != second {
		return fail(255, "Passwords do not match.")
	}
	_, err = r.withAgent(p["vmid"], "guest-set-user-password", map[string]any{
		"username": p["username"], "password": base64.StdEncoding.EncodeToString([]byte(first)), "crypted": p.on("crypted"),
	})
	return err
}

// apiFileRead reads a file of the guest through its agent.
func (r *run) apiFileRead(p params) (any, error) {
	handle, err := r.withAgent(p["vmid"], "guest-file-open", map[string]any{"path": p["file"], "mode": "rb"})
	if err != nil {
		return nil, err
	}
	v, err := r.withAgent(p["vmid"], "guest-file-read", map[string]any{"handle": handle, "count": 1 << 20})
	if err != nil {
		return nil, err
	}
	_, err = r.withAgent(p["vmid"], "guest-file-close", map[string]any{"handle": handle})
	if err != nil {
		return nil, err
	}
	got, _ := v.(map[string]any)
	text, _ := got["buf-b64"].(string)
	data, err := base64.StdEncoding.DecodeString(text)
	return map[string]any{"content": string(data)}, err
}

// apiFileWrite writes a file of the guest through its agent.
func (r *run) apiFileWrite(p params) (any, error) {
	handle, err := r.withAgent(p["vmid"], "guest-file-open", map[string]any{"path": p["file"], "mode": "wb"})
	if err != nil {
		return nil, err
	}
	content := p["content"]
	if e, ok := p["encode"]; !ok || e == "1" {
		content = base64.StdEncoding.EncodeToString([]byte(content))
	}
	if _, err := r.withAgent(p["vmid"], "guest-file-write", map[string]any{"handle": handle, "buf-b64": content}); err != nil {
		return nil, err
	}
	_, err = r.withAgent(p["vmid"], "guest-file-close", map[string]any{"handle": handle})
	return nil, err
}

// sendKey is qm sendkey.
func (r *run) sendKey(p params) error {
	vmid := p["vmid"]
	if _, err := r.load(vmid); err != nil {
		return err
	}
	if r.running(vmid) == 0 {
		return fail(255, "VM %s not running", vmid)
	}
	raw, err := r.monitor(vmid, "human-monitor-command", map[string]any{"command-line": "sendkey " + p["key"]})
	if err != nil {
		return err
	}
	var said string
	if json.Unmarshal(raw, &said) == nil && strings.TrimSpace(said) != "" {
		return fail(29, "%s", strings.TrimSuffix(said, "\n"))
	}
	return nil
}

// hmp is qm monitor: lines of standard input go to QEMU's human monitor.
func (r *run) hmp(p params) error {
	vmid := p["vmid"]
	if _, err := r.load(vmid); err != nil {
		return err
	}
	r.printf("Entering QEMU Monitor for VM %s - type 'help' for help\n", vmid)
	data, err := io.ReadAll(r.stdin)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\r\n")
		fmt.Fprintf(r.stderr, "qm> %s\n", line)
		if line == "quit" || line == "q" {
			return nil
		}
		if r.running(vmid) == 0 {
			r.printf("ERROR: VM %s not running\n", vmid)
			continue
		}
		raw, err := r.monitor(vmid, "human-monitor-command", map[string]any{"command-line": line})
		if err != nil {
			r.printf("ERROR: %v\n", err)
			continue
		}
		var said string
		if json.Unmarshal(raw, &said) == nil && said != "" {
			r.printf("%s", said)
		}
	}
	return nil
}

// terminal is qm terminal, as far as it can be refused.
func (r *run) terminal(p params) error {
	if _, err := r.load(p["vmid"]); err != nil {
		return err
	}
	if r.running(p["vmid"]) == 0 {
		return fail(2, "VM %s not running", p["vmid"])
	}
	return notSimulated("serial terminals")
}

// vncProxy is qm vncproxy, which needs a ticket in the environment.
func (r *run) vncProxy(p params) error {
	if _, err := r.load(p["vmid"]); err != nil {
		return err
	}
	return fail(2, "LC_PVE_TICKET not set, VNC proxy without password is forbidden")
}

// migrate is qm migrate, as far as it can be refused.
func (r *run) migrate(p params) error {
	if _, err := r.load(p["vmid"]); err != nil {
		return err
	}
	if !r.knows(p["target"]) {
		return fail(2, "no such cluster node '%s'", p["target"])
	}
	return notSimulated("migration")
}
