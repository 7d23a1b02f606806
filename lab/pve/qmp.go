package pve

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// socketMax is the longest path that is dialled as it is; the system's own
// limit is 107.
const socketMax = 100

// dialSocket connects to a unix socket, also at a long path.
func dialSocket(path string, timeout time.Duration) (net.Conn, error) {
	if len(path) > socketMax {
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		path = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	}
	return net.DialTimeout("unix", path, timeout)
}

// qmpError is QEMU's own refusal of a command.
type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *qmpError) Error() string { return e.Desc }

// errMute says that a socket gave no greeting or no answer in time: its one
// client is another, or the process is hung.
var errMute = errors.New("no answer")

// jsonConn is a QMP or guest-agent connection.
type jsonConn struct {
	net.Conn
	dec *json.Decoder
}

func (c *jsonConn) call(command string, arguments any) (json.RawMessage, error) {
	msg := map[string]any{"execute": command}
	if arguments != nil {
		msg["arguments"] = arguments
	}
	data, err := json.Marshal(msg)
	if err != nil {
		return nil, err
	}
	if _, err := c.Write(append(data, '\n')); err != nil {
		return nil, errMute
	}
	for {
		var reply struct {
			Return json.RawMessage `json:"return"`
			Error  *qmpError       `json:"error"`
			Event  string          `json:"event"`
		}
		if err := c.dec.Decode(&reply); err != nil {
			return nil, errMute
		}
		switch {
		case reply.Error != nil:
			return nil, reply.Error
		case reply.Return != nil:
			return reply.Return, nil
		}
	}
}

// qmp sends one command over a connection of its own and closes it at once:
// the socket has room for one client.
func (h *Host) qmp(vmid string, limit time.Duration, command string, arguments any) (json.RawMessage, error) {
	conn, err := dialSocket(h.runFile(vmid, "qmp"), limit)
	if err != nil {
		return nil, errMute
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(limit))
	c := &jsonConn{Conn: conn, dec: json.NewDecoder(bufio.NewReader(conn))}
	var greeting map[string]json.RawMessage
	if err := c.dec.Decode(&greeting); err != nil || greeting["QMP"] == nil {
		return nil, errMute
	}
	if _, err := c.call("qmp_capabilities", nil); err != nil {
		return nil, err
	}
	return c.call(command, arguments)
}

// monitor sends a QMP command for a verb of qm, with the errors that one gives.
func (r *run) monitor(vmid, command string, arguments any) (json.RawMessage, error) {
	if r.running(vmid) == 0 {
		return nil, fail(2, "VM %s not running", vmid)
	}
	got, err := r.qmp(vmid, r.times.qmpConnect, command, arguments)
	var q *qmpError
	switch {
	case errors.As(err, &q):
		return nil, fail(29, "VM %s qmp command '%s' failed - %s", vmid, command, q.Desc)
	case err != nil:
		return nil, fail(255, "VM %s qmp command '%s' failed - unable to connect to VM %s qmp socket - timeout after 51 retries", vmid, command, vmid)
	}
	return got, nil
}

// device sends a QMP command that plugs or unplugs. The simulated kvm need not
// know devices: a command it does not have is as good as done.
func (r *run) device(vmid, command string, arguments any) error {
	_, err := r.qmp(vmid, r.times.qmpConnect, command, arguments)
	var q *qmpError
	if errors.As(err, &q) && q.Class == "CommandNotFound" {
		return nil
	}
	if errors.As(err, &q) {
		return fail(255, "VM %s qmp command '%s' failed - %s", vmid, command, q.Desc)
	}
	if err != nil {
		return fail(255, "VM %s qmp command '%s' failed - unable to connect to VM %s qmp socket - timeout after 51 retries", vmid, command, vmid)
	}
	return nil
}

// qmpStatus is QEMU's run state, or "running" when it does not answer in time,
// as qm status says.
func (h *Host) qmpStatus(vmid string) string {
	got, err := h.qmp(vmid, h.times.qmpStatus, "query-status", nil)
	var s struct {
		Status string `json:"status"`
	}
	if err != nil || json.Unmarshal(got, &s) != nil || s.Status == "" {
		return "running"
	}
	return s.Status
}

// agent sends one command to the guest agent. errMute means that no agent
// answers.
func (h *Host) agent(vmid string, limit time.Duration, command string, arguments any) (json.RawMessage, error) {
	conn, err := dialSocket(h.runFile(vmid, "qga"), limit)
	if err != nil {
		return nil, errMute
	}
	defer conn.Close()
	c := &jsonConn{Conn: conn, dec: json.NewDecoder(bufio.NewReader(conn))}
	_ = conn.SetDeadline(time.Now().Add(min(limit, h.times.agent)))
	if _, err := c.call("guest-ping", nil); err != nil {
		return nil, errMute
	}
	_ = conn.SetDeadline(time.Now().Add(limit))
	return c.call(command, arguments)
}
