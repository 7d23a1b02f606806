package proxmox

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// socketPath is the longest path that is connected to as it is; the kernel takes
// 107 characters.
const socketPath = 100

// talkLimit bounds what is read in one conversation, in bytes. The guest agent is
// the guest's: one that sends without end is not to take the host's memory.
const talkLimit = 1 << 20

// dial connects to a socket file. One whose path is too long is reached through
// its opened folder.
func dial(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	if len(path) > socketPath {
		dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		defer unix.Close(dir)
		path = fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path))
	}
	return d.DialContext(ctx, "unix", path)
}

// talk has one short conversation over a socket: it is given up after
// socketLimit, and closed at once. Proxmox's sockets take one client at a time.
func talk(ctx context.Context, path string, what func(*dialogue) error) error {
	ctx, cancel := context.WithTimeout(ctx, socketLimit)
	defer cancel()
	conn, err := dial(ctx, path)
	if err != nil {
		return unspoken(err)
	}
	defer conn.Close()
	end, _ := ctx.Deadline()
	_ = conn.SetDeadline(end)
	return unspoken(what(&dialogue{conn: conn, in: bufio.NewReaderSize(io.LimitReader(conn, talkLimit), 64<<10)}))
}

// unspoken says a failed conversation without addresses and paths.
func unspoken(err error) error {
	var op *net.OpError
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer in %d ms", socketLimit/time.Millisecond)
	case errors.As(err, &op):
		return op.Err
	}
	return err
}

// dialogue is a conversation in JSON lines.
type dialogue struct {
	conn net.Conn
	in   *bufio.Reader
}

// message is what QEMU and the guest agent say.
type message struct {
	QMP    json.RawMessage `json:"QMP"`
	Event  string          `json:"event"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
}

func (c *dialogue) say(command string, arguments any) error {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return err
	}
	_, err = c.conn.Write(append(line, '\n'))
	return err
}

// hear reads the next message that is no event.
func (c *dialogue) hear() (message, error) {
	for {
		line, err := c.in.ReadBytes('\n')
		if err != nil {
			return message{}, err
		}
		// An agent may begin with what is left of a conversation that was broken off.
		var m message
		if json.Unmarshal(line, &m) != nil || m.Event != "" {
			continue
		}
		return m, nil
	}
}

func (c *dialogue) ask(command string, answer any) error {
	if err := c.say(command, nil); err != nil {
		return err
	}
	m, err := c.hear()
	switch {
	case err != nil:
		return err
	case m.Error != nil:
		return fmt.Errorf("%s: %q", command, m.Error.Desc) // quoted: it is the guest that speaks
	case answer == nil:
		return nil
	}
	return json.Unmarshal(m.Return, answer)
}

// queryStatus asks QEMU for the VM's state: running, paused, io-error...
func queryStatus(ctx context.Context, path string) (status string, err error) {
	err = talk(ctx, path, func(c *dialogue) error {
		greeting, err := c.hear()
		if err != nil {
			return err
		}
		if greeting.QMP == nil {
			return errors.New("no QMP greeting")
		}
		if err := c.ask("qmp_capabilities", nil); err != nil {
			return err
		}
		var answer struct {
			Status string `json:"status"`
		}
		if err := c.ask("query-status", &answer); err != nil {
			return err
		}
		status = answer.Status
		return nil
	})
	return status, err
}

// queryAgent pings the guest agent and asks it for addresses, without loopback and
// link-local ones. An agent that answers but does not tell addresses is no error.
func queryAgent(ctx context.Context, path string) (addresses []string, err error) {
	err = talk(ctx, path, func(c *dialogue) error {
		// The channel may still hold the answer to a question that somebody else
		// gave up on: it is in step when the number comes back.
		id := time.Now().UnixNano() & 0x7fffffff
		if err := c.say("guest-sync", map[string]int64{"id": id}); err != nil {
			return err
		}
		for {
			m, err := c.hear()
			if err != nil {
				return err
			}
			var got int64
			if m.Error != nil || json.Unmarshal(m.Return, &got) == nil && got == id {
				break // an agent that does not know the question is there all the same
			}
		}
		if err := c.ask("guest-ping", nil); err != nil {
			return err
		}
		var interfaces []struct {
			Name      string `json:"name"`
			Addresses []struct {
				IP string `json:"ip-address"`
			} `json:"ip-addresses"`
		}
		// An agent that may not tell its addresses leaves the list empty.
		_ = c.ask("guest-network-get-interfaces", &interfaces)
		for _, i := range interfaces {
			for _, a := range i.Addresses {
				ip, err := netip.ParseAddr(a.IP)
				if err != nil || i.Name == "lo" || ip.IsLinkLocalUnicast() || ip.IsUnspecified() {
					continue
				}
				addresses = append(addresses, ip.String())
			}
		}
		return nil
	})
	slices.Sort(addresses)
	return slices.Compact(addresses), err
}
