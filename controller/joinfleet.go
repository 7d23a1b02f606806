package controller

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/homeiac/homelab/controller/store"
	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	"github.com/homeiac/homelab/internal/config"
	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/rpc"
)

// Enrolment is what a further controller is told.
type Enrolment struct {
	// Controller is IP:PORT of another controller's service for that.
	Controller string
	// Token is the token's text.
	Token string
	// Config is the configuration file. What is said in it holds; when it is not there,
	// or says nothing yet, it is written.
	Config string
	// Advertise, State and Endpoints are for a configuration that is written: the IP
	// address (empty is the token's), the state folder (empty is the usual one), and the
	// etcd that all controllers share.
	Advertise string
	State     string
	Endpoints []string
	// Out is told what is done.
	Out io.Writer
}

// Enrol gets a further controller its certificate, the roots and the gossip keys, for a
// key that does not leave its host. The fleet's key and its issuing CA, which no
// controller gives to another, must be in the state folder already. It is safe to repeat.
func Enrol(ctx context.Context, e Enrolment) error {
	token, err := rpc.ParseToken(e.Token)
	if err != nil {
		return err
	}
	if token.Role != rpc.RoleController {
		return rpc.Errorf(rpc.ErrInvalid, "the token is for %s, this is a controller; make one with: hlctl token create NAME --role controller", token.Identity)
	}
	cfg, write, err := e.config(token.Name)
	if err != nil {
		return err
	}
	for _, file := range []string{cfg.FleetKey, cfg.IssuingCA, cfg.IssuingKey} {
		if _, err := os.Stat(file); err != nil {
			return rpc.Errorf(rpc.ErrInvalid, "%w; hlctl hosts add --controller puts it there", err)
		}
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
	if err := gossip.CheckKeys(told.GetGossipKeys()); err != nil {
		return err
	}
	if err := durable.Write(cfg.CA, told.GetRoots()); err != nil {
		return err
	}
	if err := gossip.WriteKeys(cfg.GossipKeys, told.GetGossipKeys()); err != nil {
		return err
	}
	if write {
		if err := e.write(cfg, resp); err != nil {
			return err
		}
		fmt.Fprintf(e.Out, "configuration written: %s\n", e.Config)
	}
	// Last: with a certificate it starts.
	if err := durable.Write(cfg.Cert, resp.GetCertificate()); err != nil {
		return err
	}
	if err := give(cfg.State, cfg.Key, cfg.Cert, cfg.CA, cfg.GossipKeys); err != nil {
		return err
	}
	fmt.Fprintf(e.Out, "enrolled as %s of fleet %s: %s\n", token.Identity, token.Fleet, cfg.Cert)
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
	dir, err := filepath.Abs(cmp.Or(e.State, "/var/lib/hl-controller"))
	if err != nil {
		return cfg, false, err
	}
	if len(e.Endpoints) == 0 {
		return cfg, false, rpc.Errorf(rpc.ErrInvalid, "a further controller shares an etcd with the others: --etcd-endpoints https://IP:2379,...")
	}
	for _, e := range e.Endpoints {
		if err := store.CheckEndpoint(e); err != nil {
			return cfg, false, fmt.Errorf("--etcd-endpoints: %w", err)
		}
	}
	in := func(file string) string { return filepath.Join(dir, file) }
	// The names are those of the package's example.
	cfg.Name, cfg.State = name, dir
	cfg.CA, cfg.Cert, cfg.Key, cfg.GossipKeys = in("ca.crt"), in("controller.crt"), in("controller.key"), in("gossip.keys")
	cfg.FleetKey, cfg.IssuingCA, cfg.IssuingKey = in("fleet.key"), in("issuing-ca.pem"), in("issuing-ca.key")
	cfg.Etcd = EtcdConfig{Endpoints: e.Endpoints, CA: in("etcd-ca.crt"), Cert: in("etcd.crt"), Key: in("etcd.key")}
	return cfg, true, os.MkdirAll(filepath.Dir(e.Config), 0o755)
}

// write writes a configuration of what is known, below the comments that are there.
func (e Enrolment) write(cfg Config, resp *trustv1.EnrolResponse) error {
	cfg.Advertise = e.Advertise
	if cfg.Advertise == "" && len(resp.GetAddresses()) > 0 {
		cfg.Advertise = resp.GetAddresses()[0]
	}
	if cfg.Advertise == "" {
		return rpc.Errorf(rpc.ErrInvalid, "neither the token nor --advertise says this controller's IP address")
	}
	old, err := os.ReadFile(e.Config)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var b bytes.Buffer
	if len(old) > 0 {
		b.Write(bytes.TrimRight(old, "\n"))
		b.WriteString("\n\n# Written by hl-controller enrol.\n")
	}
	fmt.Fprintf(&b, "name: %s\nadvertise: %q\nseeds: [%s]\n# Not the agent's, which is on the same host.\ngossipPort: 7947\n", cfg.Name, cfg.Advertise, quoted(resp.GetSeeds()))
	for _, key := range [][2]string{
		{"ca", cfg.CA}, {"cert", cfg.Cert}, {"key", cfg.Key}, {"gossipKeys", cfg.GossipKeys}, {"fleetKey", cfg.FleetKey},
		{"issuingCA", cfg.IssuingCA}, {"issuingKey", cfg.IssuingKey}, {"state", cfg.State},
	} {
		fmt.Fprintf(&b, "%s: %s\n", key[0], key[1])
	}
	fmt.Fprintf(&b, "etcd:\n  endpoints: [%s]\n  ca: %s\n  cert: %s\n  key: %s\n", quoted(cfg.Etcd.Endpoints), cfg.Etcd.CA, cfg.Etcd.Cert, cfg.Etcd.Key)
	if err := durable.Write(e.Config, b.Bytes()); err != nil {
		return err
	}
	// It holds no secret, and the controller's own user reads it.
	return os.Chmod(e.Config, 0o644)
}

func quoted(list []string) string {
	words := make([]string, len(list))
	for i, w := range list {
		words[i] = fmt.Sprintf("%q", w)
	}
	return strings.Join(words, ", ")
}

// give gives files to who has the state folder: systemd gives a new folder with all in
// it to the controller's user at the first start, and what comes later it does not look
// at.
func give(state string, files ...string) error {
	st, err := os.Stat(state)
	if err != nil {
		return err
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !ok || int(owner.Uid) == os.Geteuid() {
		return nil
	}
	for _, file := range files {
		if err := os.Lchown(file, int(owner.Uid), int(owner.Gid)); err != nil {
			return err
		}
	}
	return nil
}
