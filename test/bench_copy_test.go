//go:build bench

package test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/homeiac/homelab/internal/rpc"
)

// hl-copy is what a transfer between agents is measured against: two processes
// that do no more than io.Copy over the same mutual TLS, the receiving one hashing
// to a file that it syncs.
//
//	hl-copy send --dir DIR --file FILE      prints its address and serves one caller
//	hl-copy receive --dir DIR --file FILE --from ADDRESS   prints its nanoseconds
func init() {
	programs["hl-copy"] = func(ctx context.Context, args []string) int {
		if args[0] == "send" {
			return failed(copySend(ctx, after(args, "--dir"), after(args, "--file")))
		}
		return failed(copyReceive(ctx, after(args, "--dir"), after(args, "--from"), after(args, "--file")))
	}
}

// copyTLS is what internal/rpc has for agents.
func copyTLS(dir, name string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "pki", name+".pem"), filepath.Join(dir, "pki", name+".key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(dir, "pki/ca.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("no CA")
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs: pool, RootCAs: pool, ServerName: rpc.RoleAgent + ".homelab.internal",
	}, nil
}

func copySend(ctx context.Context, dir, file string) error {
	cfg, err := copyTLS(dir, "pve1")
	if err != nil {
		return err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = l.Close() })
	fmt.Println(l.Addr())
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(conn, f)
	return errors.Join(err, conn.Close())
}

func copyReceive(_ context.Context, dir, from, file string) error {
	began := time.Now()
	cfg, err := copyTLS(dir, "pve2")
	if err != nil {
		return err
	}
	conn, err := tls.Dial("tcp", from, cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(io.MultiWriter(f, hash), conn); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	took := time.Since(began)
	fmt.Println(strconv.FormatInt(took.Nanoseconds(), 10), fmt.Sprintf("%x", hash.Sum(nil)))
	return nil
}
