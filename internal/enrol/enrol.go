// Package enrol is how a daemon gets its first certificate for a token: in which order,
// and what is written. What the roles do not have in common it leaves to them.
package enrol

import (
	"bufio"
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

	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	"github.com/homeiac/homelab/internal/config"
	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/rpc"
)

// Request is what a daemon without a certificate is told.
type Request struct {
	// Controller is IP:PORT of a controller's service for that.
	Controller string
	// Token is the token's text.
	Token string
	// Config is the daemon's configuration file. What is said in it holds; when it is
	// not there, or says nothing yet (the package's does not), it is written, and keys
	// and certificates go into the state folder.
	Config string
	// Advertise is the IP address for a configuration that is written; empty is the
	// token's, else what the role says.
	Advertise string
	// State is the state folder for a configuration that is written; empty is the
	// usual one.
	State string
	// Out is told what is done.
	Out io.Writer
}

// ReadToken reads the token from in, for the flag --token, which is always -: what is on
// a command line is in the list of processes.
func ReadToken(flag string, in io.Reader) (string, error) {
	if flag != "-" {
		return "", errors.New("the token is read from standard input: --token -")
	}
	text, err := bufio.NewReader(io.LimitReader(in, 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return text, nil
}

// Role is a daemon that enrols.
type Role struct {
	// Name is the role in the token. The files of the certificate and its key are named
	// by it in a configuration that is written, as in the package's example.
	Name string
	// Program is the command, and Own what is said to who brings a token for others.
	Program, Own string
	// State is the usual state folder.
	State string
	// Load reads the configuration that is there; New fills in what the daemon has
	// besides in one that is to be written.
	Load func(file string) (config.Daemon, error)
	New  func(config.Daemon) error
	// Ready says what is missing, before anybody is asked for anything.
	Ready func() error
	// Address is the address for a configuration when neither the request nor the token
	// says one.
	Address func() (string, error)
	// Text are further lines of a configuration that is written, with Mode.
	Text func() string
	Mode fs.FileMode
	// Done ends it, when all is written.
	Done func(config.Daemon, *trustv1.Trust) error
}

// Enrol gets a daemon its certificate, the roots and the gossip keys, for a key that does
// not leave its host. It is safe to repeat: a key that is there is kept, and the same key
// gets the same answer as long as the token lasts.
func (r Role) Enrol(ctx context.Context, q Request) error {
	token, err := rpc.ParseToken(q.Token)
	if err != nil {
		return err
	}
	if token.Role != r.Name {
		return rpc.Errorf(rpc.ErrInvalid, "the token is for %s, %s", token.Identity, r.Own)
	}
	d, write, err := r.config(q, token.Name)
	if err != nil {
		return err
	}
	if err := r.Ready(); err != nil {
		return err
	}
	key, err := rpc.KeyFile(d.Key)
	if err != nil {
		return err
	}
	resp, err := rpc.Enrol(ctx, q.Controller, token, key)
	if err != nil {
		return err
	}
	told := resp.GetTrust()
	if err := keep(d, told); err != nil {
		return err
	}
	if write {
		if err := r.write(q, d, resp); err != nil {
			return err
		}
		fmt.Fprintf(q.Out, "configuration written: %s\n", q.Config)
	}
	// After all that the daemon needs: with a certificate it starts.
	if err := durable.Write(d.Cert, resp.GetCertificate()); err != nil {
		return err
	}
	if err := r.Done(d, told); err != nil {
		return err
	}
	fmt.Fprintf(q.Out, "enrolled as %s of fleet %s: %s\nto start it, now and at each boot: systemctl enable --now %s\n",
		token.Identity, token.Fleet, d.Cert, r.Program)
	return nil
}

// config is the configuration that there is, or the one to write.
func (r Role) config(q Request, name string) (d config.Daemon, write bool, err error) {
	var says map[string]any
	_, err = config.Read(q.Config, &says)
	if err == nil && says != nil {
		d, err = r.Load(q.Config)
		if err == nil && d.Name != name {
			err = rpc.Errorf(rpc.ErrInvalid, "the token is for %s, and %s is the configuration of %s", name, q.Config, d.Name)
		}
		return d, false, err
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d, false, err
	}
	dir, err := filepath.Abs(cmp.Or(q.State, r.State))
	if err != nil {
		return d, false, err
	}
	in := func(file string) string { return filepath.Join(dir, file) }
	// The names are those of the package's example; a purge removes the folder.
	d = config.Daemon{
		Name: name, State: dir,
		CA: in("ca.crt"), Cert: in(r.Name + ".crt"), Key: in(r.Name + ".key"), GossipKeys: in("gossip.keys"),
	}
	if err := r.New(d); err != nil {
		return d, false, err
	}
	return d, true, os.MkdirAll(filepath.Dir(q.Config), 0o755)
}

// keep writes what the fleet goes by.
func keep(d config.Daemon, told *trustv1.Trust) error {
	if err := gossip.CheckKeys(told.GetGossipKeys()); err != nil {
		return err
	}
	if err := durable.Write(d.CA, told.GetRoots()); err != nil {
		return err
	}
	return gossip.WriteKeys(d.GossipKeys, told.GetGossipKeys())
}

// write writes a configuration of what is known, below the comments that are there.
func (r Role) write(q Request, d config.Daemon, resp *trustv1.EnrolResponse) (err error) {
	d.Advertise = q.Advertise
	if d.Advertise == "" && len(resp.GetAddresses()) > 0 {
		d.Advertise = resp.GetAddresses()[0]
	}
	if d.Advertise == "" {
		if d.Advertise, err = r.Address(); err != nil {
			return err
		}
	}
	text, err := os.ReadFile(q.Config)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(text) > 0 {
		text = fmt.Appendf(bytes.TrimRight(text, "\n"), "\n\n# Written by %s enrol.\n", r.Program)
	}
	text = fmt.Appendf(text, "name: %s\nadvertise: %q\nseeds: [%s]\nca: %s\ncert: %s\nkey: %s\ngossipKeys: %s\nstate: %s\n%s",
		d.Name, d.Advertise, Quoted(resp.GetSeeds()), d.CA, d.Cert, d.Key, d.GossipKeys, d.State, r.Text())
	if err := durable.Write(q.Config, text); err != nil {
		return err
	}
	return os.Chmod(q.Config, r.Mode)
}

// Quoted are the items of a list in a configuration.
func Quoted(list []string) string {
	words := make([]string, len(list))
	for i, w := range list {
		words[i] = fmt.Sprintf("%q", w)
	}
	return strings.Join(words, ", ")
}
