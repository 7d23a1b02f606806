// Package qga is the QEMU guest agent inside a simulated guest: the protocol on
// its virtio channel and the commands that Proxmox uses.
package qga

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/homeiac/homelab/lab/guest/shell"
	"github.com/homeiac/homelab/lab/guest/system"
)

// Agent answers the channel of one guest.
type Agent struct {
	o *system.OS

	mu     sync.Mutex
	next   int
	procs  map[int]*process
	files  map[int]*os.File
	frozen bool
}

// process is one guest-exec. Its result is handed out once.
type process struct {
	mu       sync.Mutex
	done     bool
	code     int
	out, err limited
	capture  bool
}

// limited keeps the beginning of what is written to it.
type limited struct {
	limit int // bytes
	mu    sync.Mutex
	b     bytes.Buffer
	cut   bool
}

// Write implements io.Writer.
func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(p)
	if room := l.limit - l.b.Len(); n > room {
		p, l.cut = p[:max(room, 0)], true
	}
	l.b.Write(p)
	return n, nil
}

// New gives an agent of that guest.
func New(o *system.OS) *Agent {
	return &Agent{o: o, next: 1000, procs: map[int]*process{}, files: map[int]*os.File{}}
}

// Error is the agent's refusal.
type Error struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func generic(format string, a ...any) *Error {
	return &Error{"GenericError", fmt.Sprintf(format, a...)}
}

// Serve answers until the channel or ctx ends. While the guest runs no agent,
// what comes in is lost.
func (a *Agent) Serve(ctx context.Context, rw io.ReadWriter) error {
	buf := make([]byte, 64<<10)
	var msg []byte
	depth, str, esc := 0, false, false
	for {
		n, err := rw.Read(buf)
		for _, ch := range buf[:n] {
			if ch == 0xFF || !a.o.AgentUp() {
				msg, depth, str, esc = nil, 0, false, false
				continue
			}
			if depth == 0 && ch != '{' {
				continue
			}
			msg = append(msg, ch)
			switch {
			case esc:
				esc = false
			case str && ch == '\\':
				esc = true
			case ch == '"':
				str = !str
			case !str && ch == '{':
				depth++
			case !str && ch == '}':
				depth--
			}
			if depth == 0 {
				if err := a.answer(ctx, rw, msg); err != nil {
					return err
				}
				msg = nil
			}
		}
		if err != nil {
			return ended(ctx, err)
		}
	}
}

// ended tells the channel's end from a failure.
func ended(ctx context.Context, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
		err = nil
	}
	return err
}

func (a *Agent) answer(ctx context.Context, w io.Writer, msg []byte) error {
	var r struct {
		Execute   string          `json:"execute"`
		Arguments json.RawMessage `json:"arguments"`
	}
	var out any
	var prefix []byte
	if err := json.Unmarshal(msg, &r); err != nil {
		out = map[string]any{"error": Error{"GenericError", "JSON parse error"}}
	} else {
		if r.Execute == "guest-sync-delimited" {
			prefix = []byte{0xFF}
		}
		ret, e, silent := a.execute(ctx, r.Execute, r.Arguments)
		switch {
		case silent:
			return nil
		case e != nil:
			out = map[string]any{"error": e}
		default:
			out = map[string]any{"return": ret}
		}
	}
	b, err := json.Marshal(out)
	if err != nil {
		return err
	}
	_, err = w.Write(append(append(prefix, b...), '\n'))
	return err
}

type empty struct{}

// execute gives a command's return value. Silent ones have no answer when they
// succeed.
func (a *Agent) execute(ctx context.Context, name string, raw json.RawMessage) (ret any, e *Error, silent bool) {
	var args struct {
		ID       int64    `json:"id"`
		PID      int      `json:"pid"`
		Path     string   `json:"path"`
		Arg      []string `json:"arg"`
		Env      []string `json:"env"`
		Input    string   `json:"input-data"`
		Capture  any      `json:"capture-output"`
		Mode     string   `json:"mode"`
		Handle   int      `json:"handle"`
		Count    int      `json:"count"`
		Buf      string   `json:"buf-b64"`
		Username string   `json:"username"`
	}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &args); err != nil {
			return nil, generic("Invalid parameter type"), false
		}
	}
	switch name {
	case "guest-ping":
		return empty{}, nil, false
	case "guest-sync", "guest-sync-delimited":
		return args.ID, nil, false
	case "guest-info":
		return a.info(), nil, false
	case "guest-get-host-name":
		return map[string]string{"host-name": a.o.Hostname()}, nil, false
	case "guest-get-time":
		return time.Now().UnixNano(), nil, false
	case "guest-get-timezone":
		return map[string]any{"zone": "UTC", "offset": 0}, nil, false
	case "guest-get-users":
		return []any{}, nil, false
	case "guest-get-fsinfo":
		return []any{}, nil, false
	case "guest-get-osinfo":
		return map[string]string{
			"id": "ubuntu", "name": "Ubuntu", "pretty-name": "Ubuntu 24.04.3 LTS", "version": "24.04.3 LTS (Noble Numbat)",
			"version-id": "24.04", "machine": "x86_64", "kernel-release": "6.8.0-88-generic", "kernel-version": "#89-Ubuntu SMP PREEMPT_DYNAMIC",
		}, nil, false
	case "guest-network-get-interfaces":
		return a.interfaces(), nil, false
	case "guest-get-vcpus":
		var out []map[string]any
		for i := range max(a.o.Machine().CPUs, 1) {
			out = append(out, map[string]any{"logical-id": i, "online": true, "can-offline": i > 0})
		}
		return out, nil, false
	case "guest-fsfreeze-status":
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.frozen {
			return "frozen", nil, false
		}
		return "thawed", nil, false
	case "guest-fsfreeze-freeze", "guest-fsfreeze-thaw":
		a.mu.Lock()
		defer a.mu.Unlock()
		a.frozen = name == "guest-fsfreeze-freeze"
		return 1, nil, false
	case "guest-shutdown":
		switch args.Mode {
		case "", "powerdown", "halt":
			a.o.Shutdown(system.PowerOff)
		case "reboot":
			a.o.Shutdown(system.Reboot)
		default:
			return nil, generic("Invalid parameter 'mode'"), false
		}
		return nil, nil, true
	case "guest-exec":
		ret, e = a.exec(ctx, args.Path, args.Arg, args.Env, args.Input, args.Capture)
		return ret, e, false
	case "guest-exec-status":
		ret, e = a.status(args.PID)
		return ret, e, false
	case "guest-file-open", "guest-file-read", "guest-file-write", "guest-file-close", "guest-file-flush":
		ret, e = a.file(name, args.Path, args.Mode, args.Handle, args.Count, args.Buf)
		return ret, e, false
	}
	return nil, &Error{"CommandNotFound", "The command " + name + " has not been found"}, false
}

var commands = []string{
	"guest-ping", "guest-sync", "guest-sync-delimited", "guest-info", "guest-get-host-name", "guest-get-time", "guest-get-timezone",
	"guest-get-users", "guest-get-fsinfo", "guest-get-osinfo", "guest-network-get-interfaces", "guest-get-vcpus",
	"guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw", "guest-shutdown", "guest-exec", "guest-exec-status",
	"guest-file-open", "guest-file-read", "guest-file-write", "guest-file-close", "guest-file-flush",
}

func (a *Agent) info() any {
	var out []map[string]any
	for _, c := range commands {
		out = append(out, map[string]any{"name": c, "enabled": true, "success-response": c != "guest-shutdown"})
	}
	return map[string]any{"version": "8.2.2", "supported_commands": out}
}

func (a *Agent) interfaces() any {
	type address struct {
		Type   string `json:"ip-address-type"`
		IP     string `json:"ip-address"`
		Prefix int    `json:"prefix"`
	}
	type iface struct {
		Name       string         `json:"name"`
		Addresses  []address      `json:"ip-addresses,omitempty"`
		Statistics map[string]int `json:"statistics"`
		MAC        string         `json:"hardware-address"`
	}
	stats := map[string]int{"tx-packets": 8, "tx-errs": 0, "rx-bytes": 110, "rx-dropped": 0, "rx-packets": 1, "rx-errs": 0, "tx-bytes": 656, "tx-dropped": 0}
	out := []iface{}
	for _, i := range a.o.Interfaces() {
		f := iface{Name: i.Name, MAC: i.MAC, Statistics: stats}
		for _, c := range i.Addresses {
			ip, n, err := net.ParseCIDR(c)
			if err != nil {
				continue
			}
			bits, _ := n.Mask.Size()
			f.Addresses = append(f.Addresses, address{"ipv4", ip.String(), bits})
		}
		out = append(out, f)
	}
	return out
}

func (a *Agent) exec(ctx context.Context, path string, argv, env []string, input string, capture any) (any, *Error) {
	p := shell.Proc{User: shell.Root, Dir: "/", Env: map[string]string{"PATH": shell.Path}}
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		p.Env[k] = v
	}
	if _, err := a.o.Shell.Find(p, path); err != nil {
		why := "No such file or directory"
		if errors.Is(err, fs.ErrPermission) {
			why = "Permission denied"
		}
		return nil, generic("Failed to execute child process “%s” (%s)", path, why)
	}
	in, err := base64.StdEncoding.DecodeString(input)
	if err != nil {
		return nil, generic("Invalid parameter 'input-data'")
	}
	limit := a.o.Settings().AgentOutputBytes
	pr := &process{capture: capture == true || capture == "separated", out: limited{limit: limit}, err: limited{limit: limit}}
	switch capture {
	case nil, false, true, "none", "separated":
	default:
		return nil, generic("hl-lab does not simulate capture-output %v", capture)
	}
	p.Stdin, p.Stdout, p.Stderr = bytes.NewReader(in), &pr.out, &pr.err
	a.mu.Lock()
	a.next++
	pid := a.next
	a.procs[pid] = pr
	a.mu.Unlock()
	go func() {
		code := a.o.Shell.Exec(ctx, p, append([]string{path}, argv...))
		pr.mu.Lock()
		defer pr.mu.Unlock()
		pr.done, pr.code = true, code
	}()
	return map[string]int{"pid": pid}, nil
}

func (a *Agent) status(pid int) (any, *Error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.procs[pid]
	if p == nil {
		return nil, generic("Invalid parameter 'pid'")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.done {
		return map[string]any{"exited": false}, nil
	}
	delete(a.procs, pid)
	out := map[string]any{"exited": true, "exitcode": p.code}
	if p.capture {
		for name, l := range map[string]*limited{"out": &p.out, "err": &p.err} {
			if l.b.Len() > 0 {
				out[name+"-data"] = base64.StdEncoding.EncodeToString(l.b.Bytes())
				out[name+"-truncated"] = l.cut
			}
		}
	}
	return out, nil
}

func (a *Agent) file(name, path, mode string, handle, count int, data string) (any, *Error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if name == "guest-file-open" {
		flags := map[string]int{
			"": os.O_RDONLY, "r": os.O_RDONLY, "rb": os.O_RDONLY, "r+": os.O_RDWR, "w": os.O_WRONLY | os.O_CREATE | os.O_TRUNC,
			"wb": os.O_WRONLY | os.O_CREATE | os.O_TRUNC, "w+": os.O_RDWR | os.O_CREATE | os.O_TRUNC, "a": os.O_WRONLY | os.O_CREATE | os.O_APPEND,
		}
		flag, ok := flags[mode]
		if !ok {
			return nil, generic("invalid file open mode '%s'", mode)
		}
		f, err := a.o.FS().OpenFile(path, flag, 0o600)
		if err != nil {
			why := err.Error()
			if errors.Is(err, fs.ErrNotExist) {
				why = "No such file or directory"
			}
			return nil, generic("failed to open file '%s' (mode: '%s'): %s", path, mode, why)
		}
		a.next++
		a.files[a.next] = f
		return a.next, nil
	}
	f := a.files[handle]
	if f == nil {
		return nil, generic("handle '%d' has not been found", handle)
	}
	switch name {
	case "guest-file-close":
		delete(a.files, handle)
		if err := f.Close(); err != nil {
			return nil, generic("%v", err)
		}
		return empty{}, nil
	case "guest-file-flush":
		return empty{}, nil
	case "guest-file-write":
		b, err := base64.StdEncoding.DecodeString(data)
		if err != nil {
			return nil, generic("Invalid parameter 'buf-b64'")
		}
		n, err := f.Write(b)
		if err != nil {
			return nil, generic("failed to write to file: %v", err)
		}
		return map[string]any{"count": n, "eof": false}, nil
	}
	if count <= 0 {
		count = 4096
	}
	b := make([]byte, min(count, 48<<20))
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, generic("failed to read file: %v", err)
	}
	return map[string]any{"count": n, "buf-b64": base64.StdEncoding.EncodeToString(b[:n]), "eof": err != nil}, nil
}

// Close closes the files that clients left open.
func (a *Agent) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range slices.Collect(maps.Keys(a.files)) {
		a.files[h].Close()
		delete(a.files, h)
	}
}
