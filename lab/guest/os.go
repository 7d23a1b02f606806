package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"runtime/debug"

	"github.com/homeiac/homelab/lab/guest/k3s"
	"github.com/homeiac/homelab/lab/guest/qga"
	"github.com/homeiac/homelab/lab/guest/system"
)

// guestOS is the child process: it gets its machine and the power button over
// descriptor 3 and the guest agent's channel on 4.
func guestOS() int {
	// Several of these run at once; little garbage is kept.
	debug.SetGCPercent(50)
	control, err := fileConn(3)
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		return 1
	}
	channel, err := fileConn(4)
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		return 1
	}
	r := bufio.NewReader(control)
	line, err := r.ReadBytes('\n')
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest: no machine:", err)
		return 1
	}
	var m system.Machine
	if err := json.Unmarshal(line, &m); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		return 1
	}
	reason, err := Boot(context.Background(), m, channel, func(o *system.OS) {
		go func() {
			for {
				line, err := r.ReadBytes('\n')
				if err != nil {
					return
				}
				var msg struct {
					Do string `json:"do"`
				}
				if json.Unmarshal(line, &msg) == nil && msg.Do == "powerdown" {
					o.Shutdown(system.PowerOff)
				}
			}
		}()
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		return 1
	}
	if reason == system.Reboot {
		return exitReboot
	}
	return exitOff
}

func fileConn(fd uintptr) (net.Conn, error) {
	f := os.NewFile(fd, "socket")
	if f == nil {
		return nil, fmt.Errorf("descriptor %d is not there", fd)
	}
	defer f.Close()
	return net.FileConn(f)
}

// Boot runs a guest OS with k3s in this process until it ends or ctx, its
// power, does. The guest agent answers on channel, which may be nil. With is
// called with the OS before it runs; it may be nil.
func Boot(ctx context.Context, m system.Machine, channel net.Conn, with func(*system.OS)) (system.Reason, error) {
	o, err := system.New(m, k3s.Install)
	if err != nil {
		return system.Killed, err
	}
	if with != nil {
		with(o)
	}
	if channel != nil {
		actx, cancel := context.WithCancel(ctx)
		a := qga.New(o)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = a.Serve(actx, channel) // its end is the channel's
		}()
		defer func() {
			cancel()
			channel.Close()
			<-done
			a.Close()
		}()
	}
	return o.Run(ctx)
}
