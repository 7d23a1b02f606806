package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// kvm stands in for QEMU: it writes its pid file, answers on its QMP socket, and on
// the guest agent's when there is one, and ends when it is told to. A file
// status-N beside the host's root is what query-status says; mute-qmp-N and
// mute-qga-N silence the sockets, and deaf-N makes the guest not shut down. stop and
// cont change the status, but not for longer than the next question when there is a
// file sticky-N; resets-N holds a letter for each reset. Of as many conversations of
// QMP as busy-N says, and one more, the last gets no answer.
func kvm(argv []string) int {
	flag := func(name string) string {
		for i, a := range argv[:len(argv)-1] {
			if a == name {
				return argv[i+1]
			}
		}
		return ""
	}
	id := flag("-id")
	root := filepath.Dir(filepath.Dir(filepath.Dir(argv[0]))) // root/usr/bin/kvm
	run := filepath.Join(root, "run/qemu-server")
	say := func(name string) string {
		data, err := os.ReadFile(filepath.Join(filepath.Dir(root), name+"-"+id))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(data)) + " "
	}
	set := func(name, text string, flags int) {
		f, err := os.OpenFile(filepath.Join(filepath.Dir(root), name+"-"+id), os.O_CREATE|os.O_WRONLY|flags, 0o644)
		if err == nil {
			_, _ = f.WriteString(text)
			_ = f.Close()
		}
	}
	if err := os.Chdir(run); err != nil { // short names for the sockets
		return 1
	}
	var once sync.Once
	end := func() {
		once.Do(func() {
			for _, kind := range []string{"pid", "qmp", "qga"} {
				_ = os.Remove(filepath.Join(run, id+"."+kind))
			}
			os.Exit(0)
		})
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	serve := func(kind, greeting string, answer func(command string, arguments json.RawMessage) any) error {
		l, err := net.Listen("unix", id+"."+kind)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				// One client at a time, as QEMU.
				if say("mute-"+kind) != "" {
					_, _ = bufio.NewReader(c).ReadString(0)
					c.Close()
					continue
				}
				if n, err := strconv.Atoi(strings.TrimSpace(say("busy"))); err == nil && kind == "qmp" {
					if set("busy", strconv.Itoa(n-1), os.O_TRUNC); n == 0 {
						_, _ = bufio.NewReader(c).ReadString(0)
						c.Close()
						continue
					}
				}
				fmt.Fprint(c, greeting)
				in := bufio.NewScanner(c)
				for in.Scan() {
					var m struct {
						Execute   string          `json:"execute"`
						Arguments json.RawMessage `json:"arguments"`
					}
					if json.Unmarshal(in.Bytes(), &m) != nil {
						continue
					}
					data, _ := json.Marshal(map[string]any{"return": answer(m.Execute, m.Arguments)})
					_, _ = c.Write(append(data, '\n'))
					down := m.Execute == "system_powerdown" || m.Execute == "guest-shutdown"
					if m.Execute == "quit" || down && say("deaf") == "" {
						end()
					}
				}
				c.Close()
			}
		}()
		return nil
	}
	if err := serve("qmp", "{\"QMP\": {}}\n{\"event\": \"NICE\"}\n", func(command string, _ json.RawMessage) any {
		switch command {
		case "query-status":
			status := strings.TrimSpace(say("status"))
			if sticky := strings.TrimSpace(say("sticky")); sticky != "" {
				set("status", sticky, os.O_TRUNC) // the next question finds it so
			}
			if status == "" {
				status = "running"
			}
			return map[string]any{"status": status, "running": status == "running"}
		case "stop":
			set("status", "paused", os.O_TRUNC)
		case "cont":
			set("status", "running", os.O_TRUNC)
		case "system_reset":
			set("resets", "r", os.O_APPEND)
		}
		return map[string]any{}
	}); err != nil {
		return 1
	}
	if strings.Contains(strings.Join(argv, " "), id+".qga") {
		// What is left of a conversation that somebody broke off comes first, unless
		// there is a file clean-N.
		left := "{\"return\": 4711}\n"
		if say("clean") != "" {
			left = ""
		}
		if err := serve("qga", left, func(command string, arguments json.RawMessage) any {
			switch command {
			case "guest-exec", "guest-exec-status":
				return commands.answer(command, arguments)
			case "guest-sync":
				var a struct{ ID int64 }
				_ = json.Unmarshal(arguments, &a)
				return a.ID
			case "guest-network-get-interfaces":
				return []any{
					map[string]any{"name": "lo", "ip-addresses": []any{map[string]any{"ip-address": "127.0.0.1"}}},
					map[string]any{"name": "eth0", "ip-addresses": []any{map[string]any{"ip-address": "fe80::1"}, map[string]any{"ip-address": "192.168.4.212"}}},
				}
			}
			return map[string]any{}
		}); err != nil {
			return 1
		}
	}
	if err := os.WriteFile(id+".pid", []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		return 1
	}
	<-signals
	end()
	return 0
}
