package discover

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/homeiac/homelab/cli/remote"
)

// record is what a real program said once.
type record struct {
	Argv   []string `json:"argv"`
	Stdout string   `json:"stdout"`
	After  struct {
		Conf string `json:"conf"`
	} `json:"after"`
}

func records(t *testing.T) map[string]record {
	t.Helper()
	files, err := filepath.Glob("../../lab/pve/testdata/transcripts/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	all := map[string]record{}
	for _, name := range files {
		archive, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range archive.Files {
			var r record
			if err := json.Unmarshal(f.Data, &r); err == nil {
				all[strings.TrimSuffix(f.Name, ".json")] = r
			}
		}
	}
	return all
}

func TestWhatTheRealProgramsSaidIsRead(t *testing.T) {
	all := records(t)
	out := Outputs{
		line(version): []byte(all["503-pvesh-version-json"].Stdout),
		line(members): []byte(all["019-members"].Stdout),
		line(status):  []byte(all["519-pvesh-node-status"].Stdout),
		line(network): []byte(all["523-pvesh-node-network"].Stdout),
		// Of one storage; the list has its name too.
		line(storage):   []byte(strings.Replace("["+all["522-pvesh-node-storage-status"].Stdout+"]", "{", `{"storage":"local",`, 1)),
		line(resources): []byte(`[{"type":"qemu","vmid":100,"node":"pve1","status":"stopped"}]`),
	}
	for name, r := range all {
		if strings.HasPrefix(name, "013-") && r.After.Conf != "" {
			out[line(guestFile("qemu-server", 100))] = []byte(r.After.Conf)
		}
	}
	h, err := Read(out)
	if err != nil {
		t.Fatal(err)
	}
	if h.Name != "pve1" || h.Version != "9.2.11" || h.CPUs != 2 || h.Memory != 25276502016 || h.Cluster != "" || len(h.Odd) > 0 {
		t.Errorf("%+v", h)
	}
	if want := []Bridge{{Name: "vmbr0"}}; !reflect.DeepEqual(h.Bridges, want) {
		t.Errorf("%+v", h.Bridges)
	}
	if len(h.Storages) != 1 || !h.Storages[0].Active || !h.Storages[0].Folder || h.Storages[0].Free != 71640125440 || !h.Storages[0].Holds("snippets") || h.Storages[0].Holds("snippet") {
		t.Errorf("%+v", h.Storages)
	}
	if len(h.Guests) != 1 || h.Guests[0].Power != PowerStopped || h.Guests[0].CPUs < 1 || h.Guests[0].Memory < 1<<20 {
		t.Errorf("%+v", h.Guests)
	}
}

// Every configuration that a real qm wrote has CPUs and memory, and its disks are on
// storages. (One has more cores than there are: that is no number for a Spec.)
func TestConfigurationsOfTheRealProgramAreRead(t *testing.T) {
	seen := 0
	for name, r := range records(t) {
		if r.After.Conf == "" || !strings.Contains(r.After.Conf, "smbios1") {
			continue
		}
		seen++
		g := vm(resource{VMID: 100}, readConfig([]byte(r.After.Conf)), nil)
		if g.CPUs < 1 && !strings.Contains(r.After.Conf, "cores: 9999\n") || g.Memory < 16<<20 {
			t.Errorf("%s: %+v", name, g)
		}
		for _, d := range g.Disks {
			if d.Storage == "" {
				t.Errorf("%s: %+v of\n%s", name, d, r.After.Conf)
			}
		}
	}
	if seen < 20 {
		t.Errorf("only %d were there to be read", seen)
	}
}

func TestAConfigurationIsReadAsFarAsItIsInForce(t *testing.T) {
	c := readConfig([]byte("#a note%0Ahl1%3Ahome%3Ak3s-1%3A2%3Aabc\nboot: order=virtio1;scsi0\ncores: 2\ncores: 9\nsockets: 2\n" +
		"scsi0: aa:1,size=4G\nvirtio1: bb:2,size=1T\nide2: none,media=cdrom\nsata3: a:vm-1-cloudinit,size=4M\nunused0: a:3\nscsi1: /dev/sdb,size=1G\n" +
		"net10: e1000=BC:24:11:00:00:0a,bridge=vmbr1,tag=4095\nnet2: virtio=BC:24:11:00:00:02,bridge=vmbr0,tag=30\n\n[PENDING]\nmemory: 1\n[snap]\nvcpus: 1\n"))
	g := vm(resource{VMID: 7, Name: "there"}, c, map[string]netip.Addr{"BC:24:11:00:00:02": netip.MustParseAddr("192.0.2.7")})
	want := Guest{
		VMID: 7, Title: "there", Fleet: "home", CPUs: 4, Memory: 512 << 20, Snapshot: true,
		Disks: []Disk{{"virtio1", "bb", 1 << 40}, {"scsi0", "aa", 4 << 30}, {"scsi1", "", 1 << 30}},
		NICs: []NIC{
			{MAC: "BC:24:11:00:00:02", Bridge: "vmbr0", VLAN: 30, Seen: netip.MustParseAddr("192.0.2.7")},
			{MAC: "BC:24:11:00:00:0A", Bridge: "vmbr1"},
		},
	}
	if !reflect.DeepEqual(g, want) {
		t.Errorf("got  %+v\nwant %+v", g, want)
	}
}

func TestAPlainTextEndsNoLineAndIsShort(t *testing.T) {
	for in, want := range map[string]string{
		"k3s-1": "k3s-1", "a\nb\r\x1b[2J\u2028\u0085é\xff": "a?b??[2J????",
		strings.Repeat("x", 81): strings.Repeat("x", 80) + "...",
	} {
		if got := Plain(in); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}

// shellFunc is a host that a function plays.
type shellFunc func(ctx context.Context, line string) ([]byte, error)

func (f shellFunc) Run(ctx context.Context, _ io.Reader, argv ...string) ([]byte, error) {
	return f(ctx, line(argv))
}

// A program that never ends is waited for as long as one may take, and not longer.
func TestAHostThatHangsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		_, err := Look(t.Context(), shellFunc(func(ctx context.Context, _ string) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != patience {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	})
}

func TestWhatAProgramSaidInAnErrorIsPlain(t *testing.T) {
	_, err := Look(t.Context(), shellFunc(func(context.Context, string) ([]byte, error) {
		return nil, &remote.ExitError{Program: "pvesh get", Code: 5, Stderr: "\x1b]0;owned\a\nsecond"}
	}))
	if want := line(version) + ": exit 5\n  ?]0;owned?\n  second"; err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
}

// guestAPI is one end of a connection on which somebody answers.
func guestAPI(organization string) func(net.Conn) {
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "k3s", Organization: []string{organization}}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return func(c net.Conn) {
		_ = tls.Server(c, &tls.Config{ //nolint:gosec // it is a stand-in
			ClientAuth: tls.RequestClientCert, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		}).Handshake()
		_, _ = io.Copy(io.Discard, c)
	}
}

// heard keeps what was said to the server.
type heard struct {
	net.Conn
	said *bytes.Buffer
}

func (h heard) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	h.said.Write(p[:n])
	return n, err
}

// TestAnAnswerIsSeenByAHelloOnly: of a guest it is seen that something answers, and
// nothing is said to it but the hello of TLS.
func TestAnAnswerIsSeenByAHelloOnly(t *testing.T) {
	at := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	silent := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	synctest.Test(t, func(t *testing.T) {
		servers := map[string]func(net.Conn){
			"192.0.2.1:6443": guestAPI("k3s"), "192.0.2.2:6443": guestAPI("someone"), "192.0.2.3:6443": silent,
			"192.0.2.4:6443": func(c net.Conn) { _, _ = io.WriteString(c, "SSH-2.0-x\r\n"); _ = c.Close() },
		}
		said := map[string]*bytes.Buffer{}
		var mu sync.Mutex
		dial := func(_ context.Context, _, address string) (net.Conn, error) {
			serve := servers[address]
			if serve == nil {
				return nil, errors.New("connection refused")
			}
			ours, theirs := net.Pipe()
			mu.Lock()
			defer mu.Unlock()
			all := new(bytes.Buffer)
			said[address] = all
			go func() {
				defer func() { _ = theirs.Close() }()
				serve(heard{theirs, all})
			}()
			return ours, nil
		}
		began := time.Now()
		got := listening(t.Context(), dial, []netip.Addr{at("192.0.2.3"), at("192.0.2.1"), at("192.0.2.9"), at("192.0.2.2"), at("192.0.2.4"), at("192.0.2.1")})
		want := []Answer{{Address: at("192.0.2.3")}, {Address: at("192.0.2.1"), K3s: true}, {Address: at("192.0.2.2")}, {Address: at("192.0.2.4")}}
		if !reflect.DeepEqual(got, want) || time.Since(began) > askedLong {
			t.Errorf("after %s: %+v", time.Since(began), got)
		}
		synctest.Wait()
		for address, all := range said {
			for data := all.Bytes(); len(data) > 0; {
				const alert, handshake, hello, change = 21, 22, 1, 20
				kind, size := data[0], 5+int(data[3])<<8+int(data[4])
				clear := kind == handshake && data[5] == hello || kind == alert || kind == change
				// After the keys are agreed on an alert is a record of data, of 19 bytes.
				if !clear && size != 5+19 {
					t.Errorf("%s was sent a record of kind %d and %d bytes", address, kind, size)
				}
				data = data[size:]
			}
		}
	})
}
