//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/emptypb"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
)

// socket is one that a process listens at.
type socket struct {
	net     string // tcp, udp or unix
	address string
}

// listening are all sockets that a process listens at: what /proc says of the network
// with the inodes that the process has open. UDP that is bound listens.
func listening(t *testing.T, pid int) []socket {
	t.Helper()
	inodes := map[string]bool{}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(fds) == 0 {
		t.Fatalf("process %d has nothing open: %v", pid, err)
	}
	for _, fd := range fds {
		to, _ := os.Readlink(fd)
		if inode, ok := strings.CutPrefix(to, "socket:["); ok {
			inodes[strings.TrimSuffix(inode, "]")] = true
		}
	}
	var found []socket
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6", "raw", "raw6", "unix"} {
		file, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(file)
		lines.Scan() // the head
		for lines.Scan() {
			f := strings.Fields(lines.Text())
			switch {
			case table == "unix":
				const acceptsConnections = "00010000"
				if len(f) >= 7 && inodes[f[6]] && f[3] == acceptsConnections {
					found = append(found, socket{"unix", strings.Join(f[7:], " ")})
				}
			case len(f) >= 10 && inodes[f[9]]:
				const listen = "0A"
				if kind := strings.TrimSuffix(table, "6"); kind != "tcp" || f[3] == listen {
					found = append(found, socket{kind, procAddress(t, f[1])})
				}
			}
		}
		_ = file.Close()
	}
	slices.SortFunc(found, func(a, b socket) int { return strings.Compare(a.net+a.address, b.net+b.address) })
	return found
}

// procAddress reads 0100007F:1F90, words of an address in the machine's byte order.
func procAddress(t *testing.T, s string) string {
	t.Helper()
	host, port, _ := strings.Cut(s, ":")
	raw, err := hex.DecodeString(host)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+4 <= len(raw); i += 4 {
		slices.Reverse(raw[i : i+4])
	}
	ip, ok := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		t.Fatalf("address %s", s)
	}
	return netip.AddrPortFrom(ip, uint16(n)).String()
}

// What a stranger says: of the web, of gRPC without TLS, and memberlist's messages for
// those who need no key: a ping, a push of states, a join in error.
var speeches = [][]byte{
	[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
	[]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
	append([]byte{0}, "\x83\xa5SeqNo\x01\xa4Node\xa4pve1\xa6Source\xa1x"...),
	append([]byte{6}, "\x83\xa5Nodes\x00\xacUserStateLen\x00\xa4Join\xc3"...),
	bytes.Repeat([]byte{0xff}, 1400),
	{},
}

// patience is how long a stranger waits for an answer.
const patience = 500 * time.Millisecond

// overheard says what a stranger who speaks no TLS gets out of a socket; empty for
// nothing.
func overheard(s socket) string {
	for _, speech := range speeches {
		conn, err := net.DialTimeout(s.net, s.address, patience)
		if err != nil {
			continue
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, _ = conn.Write(speech)
		got, _ := io.ReadAll(io.LimitReader(conn, 1<<16))
		_ = conn.Close()
		// A TLS server says in an alert why it goes.
		const alert = 21
		if len(got) > 0 && !(len(got) == 7 && got[0] == alert) {
			return fmt.Sprintf("%q is answered with %q", speech, got)
		}
	}
	return ""
}

// answers says what a stranger gets out of a socket; empty for nothing.
func answers(s socket) string {
	if got := overheard(s); got != "" || s.net == "udp" {
		return got
	}
	conn, err := net.DialTimeout(s.net, s.address, patience)
	if err != nil {
		return ""
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(patience))
	stranger := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}) //nolint:gosec // it is the stranger
	if err := stranger.Handshake(); err != nil {
		return ""
	}
	_, _ = stranger.Write(speeches[1])
	if got, err := io.ReadAll(io.LimitReader(stranger, 1<<16)); len(got) > 0 || err == nil {
		return fmt.Sprintf("TLS without a certificate is answered with %q", got)
	}
	return ""
}

// asNobody runs do as another user of the machine, in a thread that ends with it: the
// kernel's users are a thread's own.
func asNobody(do func() error) error {
	const nobody = 65534
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is not used again
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETGROUPS, 0, 0, 0); e != 0 {
			result <- e
			return
		}
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESGID, nobody, nobody, nobody); e != 0 {
			result <- e
			return
		}
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, nobody, nobody); e != 0 {
			result <- e
			return
		}
		result <- do()
	}()
	return <-result
}

// sockets are what each program is expected to listen at; "enrol" is the port where
// those without a certificate come.
var sockets = map[string][]string{
	"hl-agent": {"tcp", "tcp", "udp"}, "hl-agent driver": {"unix"}, "hl-controller": {"enrol", "tcp", "tcp", "udp"},
}

// nothingAnswers finds what the daemons and the driver's plugins listen at, and tries it
// without a certificate and without the gossip's key, over the network and as another
// user of the machine. It gives how many programs of each kind were tried.
func (l *lab) nothingAnswers() (tried map[string]int) {
	t := l.t
	t.Helper()
	// Another user must be kept out by the daemons' own folders, not by the test's.
	for dir := l.dir; dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(os.TempDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	tried = map[string]int{}
	for _, p := range l.processes() {
		what := filepath.Base(p.argv[0])
		if len(p.argv) > 1 && p.argv[1] == "driver" {
			what += " driver"
		}
		want, ours := sockets[what]
		if !ours {
			continue
		}
		tried[what]++
		found := listening(t, p.pid)
		var nets []string
		for _, s := range found {
			try := answers
			if what == "hl-controller" && s.net == "tcp" && strings.HasSuffix(s.address, ":8402") {
				nets, try = append(nets, "enrol"), enrolsOnly
			} else {
				nets = append(nets, s.net)
			}
			if got := try(s); got != "" {
				t.Errorf("%s at %s %s: %s", what, s.net, s.address, got)
			}
			if s.net != "unix" {
				if a, err := netip.ParseAddrPort(s.address); err != nil || a.Addr().IsUnspecified() {
					t.Errorf("%s listens at %s, on more than the address that it is told", what, s.address)
				}
			} else if st, err := os.Stat(filepath.Dir(s.address)); err != nil || !strings.HasPrefix(s.address, "/") || st.Mode().Perm() != 0o700 {
				t.Errorf("%s listens at %s, in a folder that is not its own: %v, %v", what, s.address, st, err)
			}
			if os.Geteuid() != 0 {
				continue
			}
			err := asNobody(func() error {
				if got := try(s); got != "" {
					return errors.New(got)
				}
				if s.net != "unix" {
					return nil
				}
				conn, err := net.DialTimeout(s.net, s.address, patience)
				if err == nil {
					_ = conn.Close()
					return errors.New("another user is connected")
				}
				if !errors.Is(err, syscall.EACCES) {
					return fmt.Errorf("another user is kept out by something else: %w", err)
				}
				return nil
			})
			if err != nil {
				t.Errorf("%s at %s %s: %v", what, s.net, s.address, err)
			}
		}
		slices.Sort(nets)
		if !slices.Equal(nets, want) {
			t.Errorf("%s listens at %v, expected %v", what, found, want)
		}
	}
	return tried
}

// enrolsOnly says what a stranger gets out of the port for enrolment beside a refusal to
// enrol; empty for nothing. No speech without TLS is answered there either.
func enrolsOnly(s socket) string {
	if got := overheard(s); got != "" {
		return got
	}
	conn, err := grpc.NewClient(s.address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}))) //nolint:gosec // it is the stranger
	if err != nil {
		return err.Error()
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	tried := 0
	for _, f := range []protoreflect.FileDescriptor{
		agentv1.File_homelab_agent_v1_agent_proto, agentv1.File_homelab_agent_v1_peer_proto,
		controllerv1.File_homelab_controller_v1_controller_proto, trustv1.File_homelab_trust_v1_trust_proto,
	} {
		for i := range f.Services().Len() {
			service := f.Services().Get(i)
			for j := range service.Methods().Len() {
				tried++
				method := fmt.Sprintf("/%s/%s", service.FullName(), service.Methods().Get(j).Name())
				stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
				if err == nil {
					if err = stream.SendMsg(new(emptypb.Empty)); err == nil {
						_ = stream.CloseSend()
					}
					err = stream.RecvMsg(new(emptypb.Empty))
				}
				switch code := status.Code(err); {
				case service.Name() == "EnrolService" && slices.Contains([]codes.Code{codes.InvalidArgument, codes.Unauthenticated, codes.PermissionDenied, codes.ResourceExhausted}, code):
				case service.Name() != "EnrolService" && code == codes.Unimplemented:
				default:
					return fmt.Sprintf("%s without a certificate: %v", method, err)
				}
			}
		}
	}
	if tried < 20 {
		return fmt.Sprintf("only %d calls were tried", tried)
	}
	return ""
}

func TestNothingThatListensAnswersAStranger(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{hosts: 2})
	if tried := l.nothingAnswers(); tried["hl-agent"] != 2 || tried["hl-agent driver"] != 2 || tried["hl-controller"] != 1 {
		t.Errorf("tried %v of %v", tried, l.processes())
	}
	// They live on.
	if r := l.hlctl("hosts", "-o", "json"); r.exit != 0 || strings.Count(r.stdout, `"online"`) != 2 {
		t.Errorf("afterwards: %s", r)
	}
}
