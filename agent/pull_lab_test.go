package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// listen has the agents of a lab serve images to each other as they do in life.
func (l *lab) listen() (addresses []string) {
	t := l.t
	t.Helper()
	ca, err := rpc.NewCA("home", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	caFile := filepath.Join(l.dir, "ca.pem")
	if err := ca.Write(caFile, filepath.Join(l.dir, "ca.key")); err != nil {
		t.Fatal(err)
	}
	for _, s := range l.agents {
		cert, key := filepath.Join(l.dir, s.name+".pem"), filepath.Join(l.dir, s.name+".key")
		pair, err := ca.Issue(rpc.Identity{Role: rpc.RoleAgent, Name: s.name}, time.Hour, time.Now())
		if err == nil {
			err = pair.Write(cert, key)
		}
		if err != nil {
			t.Fatal(err)
		}
		creds, err := rpc.LoadTLS(caFile, cert, key)
		if err != nil {
			t.Fatal(err)
		}
		pull := rpc.Allow{agentv1.PeerService_Pull_FullMethodName: allow()[agentv1.PeerService_Pull_FullMethodName]}
		server, err := rpc.Listen(t.Context(), rpc.ServerConfig{Address: "127.0.0.1:0", Credentials: creds, Allow: pull, Log: quiet},
			func(r grpc.ServiceRegistrar) { agentv1.RegisterPeerServiceServer(r, &peerService{service: s}) })
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		over := make(chan error)
		go func() { over <- server.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-over; err != nil {
				t.Error(err)
			}
		})
		s.peers = &agents{credentials: creds, log: quiet}
		addresses = append(addresses, server.Addr().String())
	}
	return addresses
}

// TestAnAgentTakesAnImageFromAnother over mutual TLS, without reading its source.
func TestAnAgentTakesAnImageFromAnother(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	file := filepath.Join(l.dir, "files", "lab.img")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	// Its end is in no full piece, and its bytes are not all the same.
	for i := range content[:1<<20] {
		content[1<<20+i] = byte(i*i>>8 + i)
	}
	content = content[:5<<20+512]
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	addresses := l.listen()
	known := func(r *agentv1.RunRequest) { r.Image.Sha256 = hex.EncodeToString(sum[:]) }
	l.do(1, fetchStep, known)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	s := l.do(2, fetchStep, known, func(r *agentv1.RunRequest) {
		r.Wan, r.ImagePeers = false, []*agentv1.ImagePeer{{Host: "pve1", Address: addresses[0]}}
	})
	if got := s.result.GetText(); got != "fetched image lab (5 MiB, raw) from pve1" {
		t.Errorf("result: %s", got)
	}
	files, _ := filepath.Glob(filepath.Join(l.dir, "hosts/pve2/root/var/lib/vz/template/homelab/*.raw"))
	if len(files) != 1 {
		t.Fatalf("files %q", files)
	}
	if got, err := os.ReadFile(files[0]); err != nil || !bytes.Equal(got, content) {
		t.Errorf("other bytes came: %d of %d, %v", len(got), len(content), err)
	}
}
