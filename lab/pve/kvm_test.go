package pve

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestMain makes the test binary the programs of its hosts: usr/bin/kvm and
// usr/sbin/qm are links to it, as they are to hl-lab in the lab.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "kvm":
		Exit(standInKVM(os.Args))
	case "qm", "pvesm", "pvesh":
		Exit(Main(os.Args, os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// fakeKVM is as much of QEMU as the programs of this package talk to. A guest
// named deaf ignores ACPI and has no agent.
type fakeKVM struct {
	mu     sync.Mutex
	name   string
	paused bool
	quit   chan struct{}
	pids   map[int]map[string]any
}

func standInKVM(argv []string) int {
	arg := func(name string) string {
		if i := slices.Index(argv, name); i > 0 {
			return argv[i+1]
		}
		return ""
	}
	root := filepath.Dir(filepath.Dir(filepath.Dir(argv[0])))
	if err := os.Chdir(root); err != nil {
		return 1
	}
	name, _, _ := strings.Cut(arg("-name"), ",")
	k := &fakeKVM{name: name, quit: make(chan struct{}), pids: map[int]map[string]any{}}
	run := "run/qemu-server/" + arg("-id")
	qmp, err := net.Listen("unix", run+".qmp")
	if err != nil {
		fmt.Fprintln(os.Stderr, "kvm:", err)
		return 1
	}
	go k.serve(qmp, k.monitor)
	if slices.ContainsFunc(argv, func(a string) bool { return strings.Contains(a, ".qga,") }) {
		qga, err := net.Listen("unix", run+".qga")
		if err != nil {
			return 1
		}
		go k.serve(qga, k.guest)
	}
	if err := os.WriteFile(run+".pid", []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		return 1
	}
	select {
	case <-k.quit:
	case <-time.After(2 * time.Minute): // the test that made it is gone
	}
	return 0
}

// serve has one client at a time, as QEMU's sockets have.
func (k *fakeKVM) serve(l net.Listener, answer func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		answer(c)
		c.Close()
	}
}

type request struct {
	Execute   string         `json:"execute"`
	Arguments map[string]any `json:"arguments"`
}

func reply(c net.Conn, v any) {
	data, _ := json.Marshal(map[string]any{"return": v})
	_, _ = c.Write(append(data, '\n'))
}

func refuse(c net.Conn, class, desc string) {
	data, _ := json.Marshal(map[string]any{"error": map[string]string{"class": class, "desc": desc}})
	_, _ = c.Write(append(data, '\n'))
}

func (k *fakeKVM) monitor(c net.Conn) {
	fmt.Fprintln(c, `{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}}, "capabilities": []}}`)
	dec := json.NewDecoder(bufio.NewReader(c))
	for {
		var q request
		if dec.Decode(&q) != nil {
			return
		}
		k.command(c, q)
	}
}

func (k *fakeKVM) command(c net.Conn, q request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch q.Execute {
	case "query-status":
		status := "running"
		if k.paused {
			status = "paused"
		}
		reply(c, map[string]any{"status": status, "running": !k.paused})
	case "stop", "cont":
		k.paused = q.Execute == "stop"
		reply(c, struct{}{})
	case "quit":
		reply(c, struct{}{})
		close(k.quit)
	case "system_powerdown":
		reply(c, struct{}{})
		if k.name != "deaf" {
			close(k.quit)
		}
	case "human-monitor-command":
		switch q.Arguments["command-line"] {
		case "info status":
			reply(c, "VM status: running\r\n")
		case "info name":
			reply(c, k.name+"\r\n")
		case "sendkey bogus":
			reply(c, "invalid parameter: bogus\r\n")
		default:
			reply(c, "")
		}
	case "qmp_capabilities", "system_reset", "block_resize", "device_add", "device_del", "netdev_add", "netdev_del":
		reply(c, struct{}{})
	default:
		refuse(c, "CommandNotFound", "The command "+q.Execute+" has not been found")
	}
}

func (k *fakeKVM) guest(c net.Conn) {
	dec := json.NewDecoder(bufio.NewReader(c))
	for {
		var q request
		if dec.Decode(&q) != nil {
			return
		}
		k.mu.Lock()
		mute := k.name == "deaf" || k.paused
		k.mu.Unlock()
		if !mute {
			k.agent(c, q)
		}
	}
}

// agent answers as files in the host's /tmp/agent say, else with little.
func (k *fakeKVM) agent(c net.Conn, q request) {
	if _, err := os.Stat("tmp/agent/mute.json"); err == nil {
		return
	}
	if data, err := os.ReadFile("tmp/agent/" + q.Execute + ".json"); err == nil {
		reply(c, json.RawMessage(data))
		return
	}
	switch q.Execute {
	case "guest-ping":
		reply(c, struct{}{})
	case "guest-shutdown":
		close(k.quit)
	case "guest-exec":
		k.exec(c, q)
	case "guest-exec-status":
		pid, _ := q.Arguments["pid"].(float64)
		status, ok := k.pids[int(pid)]
		if !ok {
			refuse(c, "GenericError", "Invalid parameter 'pid'")
			return
		}
		reply(c, status)
	case "guest-set-user-password":
		refuse(c, "GenericError", "cannot find 'passwd' program in PATH")
	case "guest-file-open":
		reply(c, 1000)
	case "guest-file-read":
		data, _ := os.ReadFile("tmp/agent/file")
		reply(c, map[string]any{"count": len(data), "buf-b64": base64.StdEncoding.EncodeToString(data), "eof": true})
	case "guest-file-write", "guest-file-close":
		reply(c, struct{}{})
	default:
		refuse(c, "CommandNotFound", "The command "+q.Execute+" has not been found")
	}
}

// exec knows the outcomes that the transcripts need; it starts nothing.
func (k *fakeKVM) exec(c net.Conn, q request) {
	path, _ := q.Arguments["path"].(string)
	args, _ := q.Arguments["arg"].([]any)
	status := map[string]any{"exited": true, "exitcode": 0}
	switch {
	case path == "/bin/none":
		refuse(c, "GenericError", "Guest agent command failed, error was 'Failed to execute child process “/bin/none” (No such file or directory)'")
		return
	case path == "/bin/echo":
		status["out-data"], status["out-truncated"] = "aGVsbG8K", false
	case path == "/bin/cat":
		status["out-data"], status["out-truncated"] = q.Arguments["input-data"], false
	case path == "/bin/sh" && strings.HasPrefix(fmt.Sprint(args[1]), "yes x"):
		status["out-data"] = base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x\n", 50000)))
		status["out-truncated"] = false
	case path == "/bin/sleep":
		status = map[string]any{"exited": false}
	case path == "/bin/sh" && len(args) == 2 && strings.Contains(args[1].(string), "exit 3"):
		status["exitcode"] = 3
		status["out-data"], status["out-truncated"] = "b3V0Cg==", false
		status["err-data"], status["err-truncated"] = "ZXJyCg==", false
	}
	pid := 150 + len(k.pids)
	k.pids[pid] = status
	reply(c, map[string]any{"pid": pid})
}
