package lab

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/homeiac/homelab/lab/pve"
	"golang.org/x/sync/errgroup"
)

const (
	// statInterval is how often the real pvestatd writes .rrd.
	statInterval = 10 * time.Second
	// cleanupInterval stands for qmeventd, which hears of a kvm's death at once.
	cleanupInterval = 200 * time.Millisecond
	// apiPoll is how often a machine looks whether its API port is to be closed.
	apiPoll = 100 * time.Millisecond
)

// Machine is the rest of one host, which no agent looks after: pvestatd,
// qmeventd, the API port, and the start of guests when the machine boots.
type Machine struct {
	lab  *Lab
	name string
	host *pve.Host
	log  *slog.Logger
}

// NewMachine opens a host of the lab.
func NewMachine(l *Lab, name string, log *slog.Logger) (*Machine, error) {
	if _, err := l.hostIndex(name); err != nil {
		return nil, err
	}
	h, err := pve.Open(l.hostDir(name))
	if err != nil {
		return nil, err
	}
	return &Machine{lab: l, name: name, host: h, log: log}, nil
}

// Run is the machine's life until ctx ends.
func (m *Machine) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.every(ctx, statInterval, m.stat) })
	g.Go(func() error { return m.every(ctx, cleanupInterval, m.host.Cleanup) })
	g.Go(func() error { return m.serveAPI(ctx) })
	g.Go(func() error { return m.boot(ctx) })
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// stat is pvestatd's work, on the host as it is now.
func (m *Machine) stat() error {
	h, err := pve.Open(m.lab.hostDir(m.name))
	if err != nil {
		return err
	}
	return h.WriteStat(h.Now())
}

func (m *Machine) every(ctx context.Context, interval time.Duration, do func() error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if err := do(); err != nil {
			m.log.Warn("host daemon", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// bootedFile marks that the machine has booted; it is gone after a power cut.
func (l *Lab) bootedFile(name string) string { return filepath.Join(l.hostRoot(name), "run", "booted") }

// onbootDelayFile holds how long the machine waits before it starts guests.
func (l *Lab) onbootDelayFile(name string) string {
	return filepath.Join(l.hostDir(name), "onboot-delay")
}

// boot starts the guests that start with the host, once per boot.
func (m *Machine) boot(ctx context.Context) error {
	if _, err := os.Stat(m.lab.bootedFile(m.name)); err == nil {
		return nil
	}
	if data, err := os.ReadFile(m.lab.onbootDelayFile(m.name)); err == nil {
		d, err := time.ParseDuration(strings.TrimSpace(string(data)))
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(d):
		}
	}
	guests, err := m.lab.guestsOn(m.name)
	if err != nil {
		return err
	}
	for _, g := range guests {
		if !g.onboot {
			continue
		}
		cmd := exec.CommandContext(ctx, filepath.Join(m.lab.hostRoot(m.name), "usr/sbin/qm"), "start", fmt.Sprint(g.vmid))
		// So that who counts calls can tell the machine's own from others'.
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin", "HL_LAB_HAND=pve-guests"}
		if out, err := cmd.CombinedOutput(); err != nil {
			m.log.Warn("start at boot", "vmid", g.vmid, "error", err, "output", string(out))
		}
	}
	return writeFile(m.lab.bootedFile(m.name), nil, 0o644)
}

// serveAPI listens where the real API does, with a certificate that expired, and
// counts who comes: nobody should.
func (m *Machine) serveAPI(ctx context.Context) error {
	i, err := m.lab.hostIndex(m.name)
	if err != nil {
		return err
	}
	cert, err := expiredCertificate(m.name, time.Now())
	if err != nil {
		return err
	}
	address := net.JoinHostPort(m.lab.hostAddress(i), fmt.Sprint(apiPort))
	tick := time.NewTicker(apiPoll)
	defer tick.Stop()
	var ln net.Listener
	defer func() {
		if ln != nil {
			_ = ln.Close()
		}
	}()
	for {
		_, err := os.Stat(m.lab.apiClosedFile(m.name))
		switch closed := err == nil; {
		case closed && ln != nil:
			_ = ln.Close()
			ln = nil
		case !closed && ln == nil:
			var lc net.ListenConfig
			if ln, err = lc.Listen(ctx, "tcp", address); err != nil {
				return err
			}
			go m.acceptAPI(ln, cert)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// acceptAPI serves until the listener is closed.
func (m *Machine) acceptAPI(ln net.Listener, cert *tls.Certificate) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		m.countAPI(conn.RemoteAddr().String())
		go func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			_ = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS12}).Handshake()
		}()
	}
}

// apiConnections is the file with one line for each connection to port 8006.
func (l *Lab) apiConnections(host string) string {
	return filepath.Join(l.hostDir(host), "api-connections")
}

func (m *Machine) countAPI(from string) {
	f, err := os.OpenFile(m.lab.apiConnections(m.name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		m.log.Warn("count a connection to the API port", "error", err)
		return
	}
	defer f.Close()
	fmt.Fprintln(f, time.Now().UTC().Format(time.RFC3339Nano), from)
}

func expiredCertificate(name string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: now.AddDate(-2, 0, 0), NotAfter: now.AddDate(0, 0, -1),
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// guestConf is what the lab reads of a VM's configuration: enough to find it by
// name and to start it with its host.
type guestConf struct {
	vmid   int
	name   string
	onboot bool
}

// guestsOn lists a host's VMs by VMID.
func (l *Lab) guestsOn(host string) ([]guestConf, error) {
	return guestsIn(filepath.Join(l.hostRoot(host), "etc/pve/qemu-server"))
}

// confDir is where the configurations of a host's VMs lie, also while its /etc/pve
// is empty.
func (l *Lab) confDir(host string) string {
	if l.Cluster {
		return l.path("pmxcfs/nodes", host, "qemu-server")
	}
	return l.path("pmxcfs", host, "nodes", host, "qemu-server")
}

func guestsIn(dir string) ([]guestConf, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []guestConf
	for _, e := range entries {
		var g guestConf
		if n, _ := fmt.Sscanf(e.Name(), "%d.conf", &g.vmid); n != 1 || e.Name() != fmt.Sprintf("%d.conf", g.vmid) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // destroyed this moment
		}
		for line := range strings.Lines(string(data)) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "[") {
				break // pending values and snapshots
			}
			if v, ok := strings.CutPrefix(line, "name: "); ok {
				g.name = v
			}
			g.onboot = g.onboot || line == "onboot: 1"
		}
		list = append(list, g)
	}
	return list, nil
}
