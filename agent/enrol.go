package agent

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	"github.com/homeiac/homelab/internal/config"
	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/rpc"
)

// Enrolment is what a host without a certificate is told.
type Enrolment struct {
	// Controller is IP:PORT of a controller's service for that.
	Controller string
	// Token is the token's text.
	Token string
	// Config is the agent's configuration file. What is said in it holds; when it is
	// not there, or says nothing yet (the package's does not), it is written, and keys
	// and certificates go into the state folder.
	Config string
	// Advertise is the IP address for a configuration that is written; empty is the
	// token's, else that with which the controller is reached.
	Advertise string
	// State is the agent's state folder for a configuration that is written; empty is
	// the usual one.
	State string
	// Out is told what is done.
	Out io.Writer
}

// Enrol gets this host its certificate, for a key that does not leave it. It is safe
// to repeat: a key that is there is kept, and the same key gets the same answer as
// long as the token lasts.
func Enrol(ctx context.Context, e Enrolment) error {
	token, err := rpc.ParseToken(e.Token)
	if err != nil {
		return err
	}
	if token.Role != rpc.RoleAgent {
		return rpc.Errorf(rpc.ErrInvalid, "the token is for %s, this is an agent; make one with: hlctl token create HOST", token.Identity)
	}
	cfg, write, err := e.config(token.Name)
	if err != nil {
		return err
	}
	key, err := rpc.KeyFile(cfg.Key)
	if err != nil {
		return err
	}
	resp, err := rpc.Enrol(ctx, e.Controller, token, key)
	if err != nil {
		return err
	}
	told := resp.GetTrust()
	if err := keep(cfg, told); err != nil {
		return err
	}
	if write {
		if err := e.write(cfg, resp); err != nil {
			return err
		}
		fmt.Fprintf(e.Out, "configuration written: %s\n", e.Config)
	}
	// After all that the agent needs: with a certificate it starts.
	if err := durable.Write(cfg.Cert, resp.GetCertificate()); err != nil {
		return err
	}
	if err := prime(cfg, told); err != nil {
		return err
	}
	fmt.Fprintf(e.Out, "enrolled as %s of fleet %s: %s\nto start it, now and at each boot: systemctl enable --now hl-agent\n", token.Identity, token.Fleet, cfg.Cert)
	return nil
}

// config is the configuration that there is, or the one to write.
func (e Enrolment) config(name string) (cfg Config, write bool, err error) {
	var says map[string]any
	_, err = config.Read(e.Config, &says)
	if err == nil && says != nil {
		cfg, err = LoadConfig(e.Config)
		if err == nil && cfg.Name != name {
			err = rpc.Errorf(rpc.ErrInvalid, "the token is for %s, and %s is the configuration of %s", name, e.Config, cfg.Name)
		}
		return cfg, false, err
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return cfg, false, err
	}
	dir, err := filepath.Abs(cmp.Or(e.State, defaultState))
	if err != nil {
		return cfg, false, err
	}
	// The names are those of the package's example; a purge removes the folder.
	cfg.Name, cfg.State = name, dir
	cfg.CA, cfg.Cert, cfg.Key = filepath.Join(dir, "ca.crt"), filepath.Join(dir, "agent.crt"), filepath.Join(dir, "agent.key")
	cfg.GossipKeys = filepath.Join(dir, "gossip.keys")
	return cfg, true, os.MkdirAll(filepath.Dir(e.Config), 0o755)
}

// keep writes what the fleet goes by.
func keep(cfg Config, told *trustv1.Trust) error {
	if err := gossip.CheckKeys(told.GetGossipKeys()); err != nil {
		return err
	}
	if err := durable.Write(cfg.CA, told.GetRoots()); err != nil {
		return err
	}
	return gossip.WriteKeys(cfg.GossipKeys, told.GetGossipKeys())
}

// prime puts into the agent's state what it would be told at its first start:
// who is revoked, and which controller to ask.
func prime(cfg Config, told *trustv1.Trust) error {
	if err := os.MkdirAll(cfg.State, 0o700); err != nil {
		return err
	}
	creds, err := rpc.LoadTLS(cfg.CA, cfg.Cert, cfg.Key)
	if err != nil {
		return err
	}
	t, err := openTrust(cfg, creds, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return t.take(told)
}

// write writes a configuration of what is known, below the comments that are there.
func (e Enrolment) write(cfg Config, resp *trustv1.EnrolResponse) error {
	cfg.Advertise = e.Advertise
	if cfg.Advertise == "" && len(resp.GetAddresses()) > 0 {
		cfg.Advertise = resp.GetAddresses()[0]
	}
	if cfg.Advertise == "" {
		var err error
		if cfg.Advertise, err = towards(e.Controller); err != nil {
			return err
		}
		fmt.Fprintf(e.Out, "this host is reached at %s, as it reaches the controller; if that is wrong, correct advertise in %s\n", cfg.Advertise, e.Config)
	}
	var seeds []string
	for _, s := range resp.GetSeeds() {
		seeds = append(seeds, fmt.Sprintf("%q", s))
	}
	old, err := os.ReadFile(e.Config)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(old) > 0 {
		old = append(bytes.TrimRight(old, "\n"), "\n\n# Written by hl-agent enrol.\n"...)
	}
	text := fmt.Sprintf("name: %s\nadvertise: %q\nseeds: [%s]\nca: %s\ncert: %s\nkey: %s\ngossipKeys: %s\nstate: %s\n",
		cfg.Name, cfg.Advertise, strings.Join(seeds, ", "), cfg.CA, cfg.Cert, cfg.Key, cfg.GossipKeys, cfg.State)
	return durable.Write(e.Config, append(old, text...))
}

// towards is our address on the way to another. No packet is sent.
func towards(address string) (string, error) {
	conn, err := net.Dial("udp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	return host, err
}
