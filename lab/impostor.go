package lab

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/lab/guest/sshd"
)

// impostorInput is how much of a command's input is noted.
const impostorInput = 64 << 10

// told is one line of DIR/impostors/GUEST.jsonl: what somebody told the wrong machine.
type told struct {
	Time    time.Time `json:"time"`
	User    string    `json:"user"`
	Command string    `json:"command"`
	Input   string    `json:"input,omitempty"`
}

// RunImpostor is the wrong machine at a guest's SSH address until ctx ends. It has a
// host key, a hostname and a machine-id of its own, lets anybody in, and is content
// with whatever it is told, which it notes.
func (l *Lab) RunImpostor(ctx context.Context, guest string) error {
	var me impostor
	data, err := os.ReadFile(l.impostorFile(guest))
	if err == nil {
		err = json.Unmarshal(data, &me)
	}
	if err != nil {
		return err
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		return err
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", net.JoinHostPort(me.Address, strconv.Itoa(me.Port)))
	if err != nil {
		return err
	}
	w := &wrongMachine{log: l.path("impostors", guest+".jsonl"), files: map[string]string{
		"/proc/sys/kernel/hostname": "printer\n", "/etc/hostname": "printer\n", "/etc/machine-id": hex.EncodeToString(id) + "\n",
	}}
	s := &sshd.Server{
		HostKeys: []ssh.Signer{signer}, Anybody: true, Run: w.run,
		Dial: func(context.Context, string, int) (net.Conn, error) {
			return nil, errors.New("connect: connection refused")
		},
		Log: func(string) {},
	}
	return s.Serve(ctx, ln)
}

type wrongMachine struct {
	log   string
	files map[string]string

	mu sync.Mutex
}

func (w *wrongMachine) run(_ context.Context, user, command string, stdin io.Reader, stdout, _ io.Writer) int {
	t := told{Time: time.Now().UTC(), User: user, Command: command}
	w.note(t) // before its input, which may never end
	for _, word := range strings.Fields(command) {
		if text, ok := w.files[word]; ok {
			_, _ = io.WriteString(stdout, text)
		} else if word == "hostname" {
			_, _ = io.WriteString(stdout, w.files["/etc/hostname"])
		}
	}
	if in, err := io.ReadAll(io.LimitReader(stdin, impostorInput)); err == nil && len(in) > 0 {
		t.Input = string(in)
		w.note(t)
	}
	return 0
}

func (w *wrongMachine) note(t told) {
	w.mu.Lock()
	defer w.mu.Unlock()
	line, err := json.Marshal(t)
	if err != nil {
		return
	}
	f, err := os.OpenFile(w.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, "impostor:", err)
		return
	}
	defer f.Close()
	_, _ = f.Write(append(line, '\n'))
}
