package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/sh"
	"github.com/homeiac/homelab/internal/sshexec"
)

// Execer runs a command in a guest through its guest agent; a driver is one.
type Execer interface {
	Exec(ctx context.Context, req *driverv1.ExecRequest) (*driverv1.ExecResponse, error)
}

// Result is what a command in a guest left.
type Result struct {
	Stdout, Stderr []byte // at most 4 MiB each
	Exit           int
}

// Shell runs scripts as root in one guest, over SSH or through the guest agent.
// It may be used by several goroutines, and is to be closed.
type Shell struct {
	conn   *Conn // nil: guest agent
	sshErr error // why not SSH
	agent  Execer
	id     *homelabv1.Identity
}

// Who is how a guest tells who it is. Empty fields are not compared.
type Who struct {
	Hostname  string
	MachineID string
}

// Open reaches a guest: over SSH, or else through the guest agent (agent nil:
// SSH only). It runs nothing on a machine that is not the guest: when another one
// answers SSH (another host key, Denied), the guest agent is the way in, since it
// goes through the VM's own channel and cannot be the wrong one; SSHError tells of
// it. Whichever way, a hostname or machine-id other than who says ends it
// (Denied). When both ways fail the error tells both.
func Open(ctx context.Context, t Target, agent Execer, id *homelabv1.Identity, who Who) (*Shell, error) {
	s := &Shell{agent: agent, id: id}
	conn, err := Dial(ctx, t)
	if err == nil {
		s.conn = conn
	} else {
		s.sshErr = err
		if agent == nil || errors.Is(err, rpc.ErrInvalid) {
			return nil, err
		}
		if _, aerr := s.Run(ctx, ":", nil); aerr != nil {
			kind := rpc.ErrUnavailable
			if errors.Is(err, rpc.ErrDenied) {
				kind = rpc.ErrDenied
			}
			return nil, rpc.Errorf(kind, "%w; guest agent: %w", err, aerr)
		}
	}
	if err := s.recognise(ctx, who); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// OpenAgent reaches a guest through its guest agent only: for one of which
// nothing is known by which it could be recognised over SSH.
func OpenAgent(ctx context.Context, agent Execer, id *homelabv1.Identity) (*Shell, error) {
	s := &Shell{agent: agent, id: id, sshErr: rpc.Errorf(rpc.ErrUnavailable, "ssh: not tried")}
	if _, err := s.Run(ctx, ":", nil); err != nil {
		return nil, fmt.Errorf("guest agent: %w", err)
	}
	return s, nil
}

// recognise compares who the guest says it is.
func (s *Shell) recognise(ctx context.Context, who Who) error {
	if who == (Who{}) {
		return nil
	}
	res, err := s.Run(ctx, "cat /proc/sys/kernel/hostname /etc/machine-id", nil)
	if err != nil {
		return err
	}
	words := strings.Fields(string(res.Stdout))
	if res.Exit != 0 || len(words) != 2 {
		return rpc.Errorf(rpc.ErrDenied, "the guest does not tell its hostname and machine-id (exit %d: %s)", res.Exit, firstLine(res.Stderr))
	}
	return who.check(words[0], words[1])
}

func (w Who) check(hostname, machineID string) error {
	switch {
	case w.Hostname != "" && hostname != w.Hostname:
		return rpc.Errorf(rpc.ErrDenied, "another machine answers: its hostname is %s and should be %s", hostname, w.Hostname)
	case w.MachineID != "" && machineID != w.MachineID:
		return rpc.Errorf(rpc.ErrDenied, "another machine answers: its machine-id is %s and should be %s", machineID, w.MachineID)
	}
	return nil
}

// Conn is the SSH connection, nil when the shell goes through the guest agent.
func (s *Shell) Conn() *Conn { return s.conn }

// Way says how the guest is reached, for people.
func (s *Shell) Way() string {
	if s.conn != nil {
		return "ssh"
	}
	return "guest agent"
}

// SSHError is why SSH is not used, nil when it is.
func (s *Shell) SSHError() error { return s.sshErr }

// Close ends an SSH connection.
func (s *Shell) Close() error {
	if s.conn == nil {
		return nil
	}
	return s.conn.Close()
}

// Run runs a POSIX sh script as root and gives what it left. The script's own
// failure is an exit code, not an error; with an error the result holds what came
// until then. Secrets go through stdin, never into
// the script, which shows in the guest's process list.
func (s *Shell) Run(ctx context.Context, script string, stdin io.Reader) (Result, error) {
	if s.conn == nil {
		return s.runByAgent(ctx, []string{"/bin/sh", "-c", script}, stdin)
	}
	var out, errs sshexec.Output
	exit, err := s.conn.Exec(ctx, "sudo -n sh -c "+sh.Quote(script), stdin, &out, &errs)
	return Result{Stdout: out.Bytes(), Stderr: errs.Bytes(), Exit: exit}, err
}

// Command runs argv as it is, as root, and streams its output; through the guest
// agent the output comes when the command has ended, however long it is.
func (s *Shell) Command(ctx context.Context, argv []string, stdin io.Reader, stdout, stderr io.Writer) (exit int, err error) {
	if len(argv) == 0 || argv[0] == "" {
		return 0, rpc.Errorf(rpc.ErrInvalid, "no command")
	}
	if s.conn == nil {
		return s.commandByAgent(ctx, argv, stdin, stdout, stderr)
	}
	// Through sh: sudo itself would read A=b and -x before the command as its own.
	line := `sudo -n sh -c 'exec "$@"' sh ` + sh.Line(argv)
	return s.conn.Exec(ctx, line, stdin, stdout, stderr)
}

// Check makes a failed script an error that holds its last words.
func (r Result) Check(what string) error {
	if r.Exit == 0 {
		return nil
	}
	text := r.Stderr
	if len(bytes.TrimSpace(text)) == 0 {
		text = r.Stdout
	}
	return fmt.Errorf("%s: exit %d: %s", what, r.Exit, Tail(text, 3))
}

// longLine bounds what is told of one line, in bytes.
const longLine = 1000

// Tail gives the last lines that are not empty, on one line.
func Tail(text []byte, n int) string {
	var lines []string
	for l := range strings.Lines(string(text)) {
		if l = strings.TrimSpace(l); l != "" {
			lines = append(lines, l[:min(len(l), longLine)])
		}
	}
	return strings.Join(lines[max(0, len(lines)-n):], " | ")
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return line
}
