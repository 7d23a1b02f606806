// Package remote is a host's root shell over SSH, for the commands that install: it
// finds out who answers before anything is sent, runs programs and puts files. What is
// run, and when, it leaves to others.
package remote

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/sh"
	"github.com/homeiac/homelab/internal/sshexec"
)

const (
	// runTimeout bounds a program whose caller says nothing of time.
	runTimeout = 5 * time.Minute
	// toldLines and toldLine bound what an error tells of a program's last words.
	toldLines = 3
	toldLine  = 400
)

// Target is whom a person wants to reach: USER@HOST[:PORT]. HOST may be a name that
// only the SSH configuration knows.
type Target struct {
	User    string // empty: as the SSH configuration says, else root
	Address string // name or IP address, without port
	Port    int    // 0: as the SSH configuration says, else 22
}

// ParseTarget reads USER@HOST, USER@HOST:PORT, USER@[IPV6]:PORT, with or without USER@.
func ParseTarget(text string) (Target, error) {
	bad := func() (Target, error) {
		return Target{}, rpc.Errorf(rpc.ErrInvalid, "%q is no root@HOST or root@HOST:PORT (root@192.168.4.11)", text)
	}
	var t Target
	rest := text
	if i := strings.LastIndexByte(text, '@'); i >= 0 {
		if t.User, rest = text[:i], text[i+1:]; t.User == "" {
			return bad()
		}
	}
	if inner, ok := strings.CutPrefix(rest, "["); ok && strings.HasSuffix(inner, "]") {
		rest = strings.TrimSuffix(inner, "]")
	}
	t.Address = rest
	if _, err := netip.ParseAddr(rest); err != nil && strings.ContainsRune(rest, ':') {
		host, port, err := net.SplitHostPort(rest)
		if err != nil {
			return bad()
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return bad()
		}
		t.Address, t.Port = host, int(n)
	}
	// What begins with a hyphen is an option that was typed at the wrong place.
	if t.Address == "" || strings.HasPrefix(text, "-") || strings.ContainsFunc(text, strange) {
		return bad()
	}
	return t, nil
}

// strange are runes that are in no user's and no host's name.
func strange(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`/\'"$;|&<>`+"`", r) }

// String is USER@HOST[:PORT], as it is typed.
func (t Target) String() string {
	at := t.Address
	if t.Port != 0 {
		at = net.JoinHostPort(at, strconv.Itoa(t.Port))
	}
	if t.User == "" {
		return at
	}
	return t.User + "@" + at
}

// Host is root's shell on a host whose key was verified. It may be used by several
// goroutines.
type Host struct {
	client *ssh.Client
	name   string // as it was dialled
}

// Name is what was dialled, a name or an IP address.
func (h *Host) Name() string { return h.name }

// IP is the host's address at the other end of the connection.
func (h *Host) IP() netip.Addr {
	if tcp, ok := h.client.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// Close ends the connection and whatever runs over it.
func (h *Host) Close() error { return h.client.Close() }

// ExitError is a program that ended with another code than 0.
type ExitError struct {
	// Program is what was run, without its arguments but the first.
	Program string
	Code    int
	// Stderr is what it said, and what it printed if it said nothing.
	Stderr string
}

func (e *ExitError) Error() string {
	text := fmt.Sprintf("%s: exit %d", e.Program, e.Code)
	if last := tail(e.Stderr); last != "" {
		text += ": " + last
	}
	return text
}

// tail gives the last lines that are not empty, on one line. A host says what it likes:
// nothing in it is obeyed by the terminal on which it is shown.
func tail(text string) string {
	var lines []string
	for l := range strings.Lines(text) {
		if l = strings.TrimSpace(l); l != "" {
			lines = append(lines, strings.Map(shown, l[:min(len(l), toldLine)]))
		}
	}
	return strings.Join(lines[max(0, len(lines)-toldLines):], " | ")
}

func shown(r rune) rune {
	if unicode.IsPrint(r) && r != utf8.RuneError {
		return r
	}
	return '?'
}

// words follow the program and the host.
var words = sshexec.Words{
	Slow: "nothing could be begun in time", NotBegun: "ssh",
	Late: "it did not end in time", Lost: "the connection was lost before it ended",
}

// Run runs a program as root and gives what it printed, 4 MiB at most. Each argument
// arrives as it is. An exit code other than 0 is an *ExitError; any other error means
// that it is not known how the program ended, and is Unavailable. Everybody on the
// host can read the arguments: a secret goes through stdin.
func (h *Host) Run(ctx context.Context, stdin io.Reader, argv ...string) ([]byte, error) {
	if len(argv) == 0 {
		return nil, rpc.Errorf(rpc.ErrInvalid, "no program")
	}
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, runTimeout)
		defer cancel()
	}
	var out, errs sshexec.Output
	code, err := sshexec.Run(ctx, h.client, sshexec.Command{Line: sh.Line(argv), Stdin: stdin, Stdout: &out, Stderr: &errs}, words)
	program := strings.Join(argv[:min(2, len(argv))], " ")
	switch {
	case err != nil:
		return out.Bytes(), fmt.Errorf("%s on %s: %w", program, h.name, err)
	case code != 0:
		text := string(errs.Bytes())
		if strings.TrimSpace(text) == "" {
			text = string(out.Bytes())
		}
		return out.Bytes(), &ExitError{Program: program, Code: code, Stderr: text}
	}
	return out.Bytes(), nil
}

// putScript writes its input to a file beside the one that is meant, and renames it
// when all of it is there: $1 the path, $2 the mode, $3 the size.
const putScript = `umask 077
t=$(mktemp "${1%/*}/.hlctl.XXXXXXXX") || exit 1
trap 'rm -f -- "$t"' EXIT
trap 'exit 1' HUP INT TERM PIPE
cat >"$t" || exit 1
n=$(wc -c <"$t")
if [ "$n" -ne "$3" ]; then echo "only $n of $3 bytes arrived" >&2; exit 1; fi
chmod "$2" "$t" && sync "$t" && mv -f -- "$t" "$1"`

// Put writes a file of root's, whole or not at all: cut off, it leaves what was there.
// The folder exists. size is in bytes.
func (h *Host) Put(ctx context.Context, path string, mode fs.FileMode, r io.Reader, size int64) error {
	if !strings.HasPrefix(path, "/") {
		return rpc.Errorf(rpc.ErrInvalid, "put %q: it is no absolute path", path)
	}
	_, err := h.Run(ctx, r, "sh", "-c", putScript, "sh", path, fmt.Sprintf("%04o", mode.Perm()), strconv.FormatInt(size, 10))
	if err != nil {
		return fmt.Errorf("put %s: %w", path, err)
	}
	return nil
}
