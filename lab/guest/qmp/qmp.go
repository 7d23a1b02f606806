// Package qmp is the monitor socket of a simulated kvm: QEMU's greeting and
// capabilities, one client at a time (others connect and wait unheard, as in
// life), and the few commands that Proxmox and administrators send.
package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net"
	"sync"
	"time"
)

// VM is what the monitor commands. Status is one of QEMU's run states:
// "running", "paused", "shutdown", "internal-error", "guest-panicked".
type VM interface {
	Status() string
	Stop() error
	Cont() error
	Powerdown()
	Reset() error
	Quit()
}

// Server is one monitor.
type Server struct {
	VM   VM
	Name string // query-name
	UUID string // query-uuid

	mu   sync.Mutex
	conn net.Conn // the client that is heard, when it has done its capabilities
}

// Error is QEMU's refusal of a command.
type Error struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

type request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        json.RawMessage `json:"id,omitempty"`
}

type response struct {
	Return any             `json:"return,omitempty"`
	Error  *Error          `json:"error,omitempty"`
	ID     json.RawMessage `json:"id,omitempty"`
}

const greeting = `{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "pve-qemu-kvm_10.0.2-4"}, "capabilities": ["oob"]}}` + "\r\n"

// Serve hears clients one after the other until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		s.client(ctx, conn)
	}
}

// Event tells the client, if there is one, that something happened.
func (s *Server) Event(name string, data any) {
	if data == nil {
		data = map[string]any{}
	}
	at := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		return
	}
	s.writeLocked(map[string]any{
		"event": name, "data": data,
		"timestamp": map[string]int64{"seconds": at.Unix(), "microseconds": int64(at.Nanosecond() / 1000)},
	})
}

func (s *Server) writeLocked(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		return
	}
	// A client that does not read must not stop the machine.
	_ = s.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = s.conn.Write(append(b, "\r\n"...))
}

func (s *Server) client(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := conn.Write([]byte(greeting)); err != nil {
		return
	}
	defer func() {
		s.mu.Lock()
		s.conn = nil
		s.mu.Unlock()
	}()
	negotiated := false
	dec := json.NewDecoder(bufio.NewReader(conn))
	for {
		var r request
		if err := dec.Decode(&r); err != nil {
			return
		}
		resp := response{ID: r.ID}
		resp.Return, resp.Error = map[string]any{}, nil
		switch {
		case r.Execute == "qmp_capabilities" && !negotiated:
			negotiated = true
		case !negotiated:
			resp = response{ID: r.ID, Error: &Error{"CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'"}}
		default:
			ret, e := s.execute(r)
			resp = response{ID: r.ID, Return: ret, Error: e}
		}
		s.mu.Lock()
		s.conn = conn
		s.writeLocked(resp)
		if !negotiated {
			s.conn = nil
		}
		s.mu.Unlock()
		if r.Execute == "quit" && resp.Error == nil {
			s.VM.Quit()
			return
		}
	}
}

var empty = map[string]any{}

func (s *Server) execute(r request) (any, *Error) {
	fail := func(err error) (any, *Error) {
		if err != nil {
			return nil, &Error{"GenericError", err.Error()}
		}
		return empty, nil
	}
	switch r.Execute {
	case "query-status":
		st := s.VM.Status()
		return map[string]any{"status": st, "running": st == "running"}, nil
	case "stop":
		return fail(s.VM.Stop())
	case "cont":
		return fail(s.VM.Cont())
	case "system_powerdown":
		s.VM.Powerdown()
		return empty, nil
	case "system_reset":
		return fail(s.VM.Reset())
	case "quit":
		return empty, nil
	case "query-version":
		return json.RawMessage(`{"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "pve-qemu-kvm_10.0.2-4"}`), nil
	case "query-name":
		return map[string]string{"name": s.Name}, nil
	case "query-uuid":
		return map[string]string{"UUID": s.UUID}, nil
	case "query-commands":
		var out []map[string]string
		for _, n := range []string{"query-status", "stop", "cont", "system_powerdown", "system_reset", "quit", "query-version", "query-name", "query-uuid", "query-commands", "qmp_capabilities"} {
			out = append(out, map[string]string{"name": n})
		}
		return out, nil
	case "qmp_capabilities":
		return nil, &Error{"CommandNotFound", "Capabilities negotiation is already complete, command ignored"}
	}
	return nil, &Error{"CommandNotFound", "The command " + string(bytes.TrimSpace([]byte(r.Execute))) + " has not been found"}
}
