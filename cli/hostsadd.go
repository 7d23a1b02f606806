package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/homeiac/homelab/cli/onhost"
	"github.com/homeiac/homelab/cli/remote"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/spec"
)

const (
	// onlineLimit is how long an agent or controller may take to be there once its
	// service is ready, and onlinePoll how often is looked.
	onlineLimit = 60 * time.Second
	onlinePoll  = 500 * time.Millisecond
)

// hostsAdd is what hosts add was asked for, and the fleet.
type hostsAdd struct {
	a                       *app
	ssh                     sshFlags
	name, address           string
	from, checksum          string
	wantController, replace bool
	etcd                    etcdFlags
	limit, poll             time.Duration
	port                    uint16 // of controllers

	wanted  onhost.Wanted
	context clientContext
	fleet   string
	conn    *controller // nil while no controller answers
	silent  error       // and why
}

func (a *app) hostsAddCommand() *cobra.Command {
	o := &hostsAdd{a: a, limit: onlineLimit, poll: onlinePoll, port: controllerPortNumber}
	cmd := &cobra.Command{
		Use: "add root@HOST...", Short: "Install the agent on hosts over SSH, enrol and start it", Args: cobra.MinimumNArgs(1),
		Long: `add makes hosts part of the fleet, one after the other. On each, over SSH as root, it

  looks      is it a Proxmox VE host, and what of ours is there already? Of anything
             else it keeps its hands off
  installs   the package that was built with this hlctl, checked against the checksum
             in hlctl
  enrols     gets it a certificate; its key is made there and stays there
  starts     hl-agent, now and at each boot
  waits      until the controller sees it and it answers

On the host of the first controller, for which hlctl init has made a folder, it sets up
that controller first.

It is safe to repeat: what is there stays (keys, certificates, state), what is missing
is done. The SSH key of a host that is not known is shown and asked about; without a
terminal it is refused unless --host-key says its fingerprint. One that has changed is
always refused. Nothing of this SSH access stays on the host.

The host's name in the Spec is its own (hostname) unless --name says another; the
agent's address is the one that was dialled.`,
		Example: `  hlctl hosts add root@192.168.4.11
  hlctl hosts add root@192.168.4.11 root@192.168.4.12 root@192.168.4.13
  hlctl hosts add root@pve4 --host-key SHA256:pXvG... --from /media/usb
  hlctl hosts add root@pve4 --replace     it was installed anew`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), args) },
	}
	f := cmd.Flags()
	f.StringVar(&o.name, "name", "", "the host's name in the Spec (default its hostname)")
	f.StringVar(&o.address, "address", "", "IP address of the host that the agent advertises (default the one that is dialled)")
	f.StringVar(&o.from, "from", "", "folder with the package (default beside hlctl, then "+onhost.SharedPackages+")")
	f.StringVar(&o.checksum, "checksum", "", "SHA-256 of the package in --from that is trusted instead of hlctl's own")
	f.BoolVar(&o.wantController, "controller", false, "a further controller on the host too; needs an external etcd")
	f.BoolVar(&o.replace, "replace", false, "take back the certificate that the name has, and give the host a new one")
	o.etcd.add(cmd)
	o.ssh.add(cmd)
	_ = cmd.MarkFlagDirname("from")
	return cmd
}

// addedHost is one host that is added.
type addedHost struct {
	*hostsAdd
	target        string
	on            onhost.Root
	seen          onhost.Seen
	name, address string
	folder        *controllerFolder // of the first controller, when that is to be set up here
	began         time.Time

	doc   addedDoc
	late  []string // warnings to be shown when the step is
	fresh bool     // it was enrolled just now
}

// addedDoc is one host in JSON.
type addedDoc struct {
	Name     string         `json:"name"`
	Target   string         `json:"target"`
	Address  string         `json:"address"`
	Result   string         `json:"result"` // added, unchanged or failed
	Error    string         `json:"error"`
	Warnings []string       `json:"warnings"`
	Seconds  float64        `json:"seconds"`
	Steps    []addedStepDoc `json:"steps"`
}

// addedStepDoc is one step: looked, installed, controller, enrolled, started or online.
type addedStepDoc struct {
	Step    string  `json:"step"`
	Changed bool    `json:"changed"`
	Text    string  `json:"text"`
	Seconds float64 `json:"seconds"`
}

func (o *hostsAdd) run(ctx context.Context, targets []string) error {
	if err := o.check(targets); err != nil {
		return err
	}
	c, creds, err := o.a.credentials()
	if err != nil {
		return err
	}
	o.context, o.fleet = c, creds.Identity().Fleet
	if err := o.reach(ctx); err != nil {
		return err
	}
	defer func() {
		if o.conn != nil {
			o.conn.close()
		}
	}()
	docs := []addedDoc{}
	var wrong []error
	for _, t := range targets {
		h := &addedHost{hostsAdd: o, target: t, began: o.a.now()}
		h.doc = addedDoc{Target: t, Warnings: []string{}, Steps: []addedStepDoc{}}
		err := h.add(ctx)
		h.end(err)
		docs = append(docs, h.doc)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", cmp.Or(h.name, t), err))
		}
	}
	if err := o.a.print(docs, func() {}); err != nil {
		return err
	}
	if len(wrong) > 0 && len(wrong) < len(targets) {
		return &exitError{exitPartial, errors.Join(wrong...)}
	}
	return errors.Join(wrong...)
}

// check refuses what cannot be meant, before anybody is asked.
func (o *hostsAdd) check(targets []string) (err error) {
	for i, t := range targets {
		if _, err := remote.ParseTarget(t); err != nil {
			return err
		}
		if slices.Contains(targets[:i], t) {
			return fmt.Errorf("%s is named twice", t)
		}
	}
	for flag, value := range map[string]string{"--name": o.name, "--address": o.address, "--host-key": o.ssh.hostKey} {
		if value != "" && len(targets) > 1 {
			return fmt.Errorf("%s is of one host: add them one by one", flag)
		}
	}
	if o.name != "" && !spec.IsName(o.name) {
		return fmt.Errorf("--name %q is no name of a host: lower-case letters, digits and inner hyphens, 63 at most", o.name)
	}
	if o.address != "" {
		if ip, err := netip.ParseAddr(o.address); err != nil || ip.IsUnspecified() || ip.Zone() != "" {
			return fmt.Errorf("--address %q is no IP address of a host", o.address)
		}
	}
	if err := o.etcd.check(o.wantController); err != nil {
		return err
	}
	o.wanted, err = onhost.Want(o.from, o.checksum)
	return err
}

// reach finds a controller. That none answers may be because the first host is not
// added yet; that none takes our certificate is an error.
func (o *hostsAdd) reach(ctx context.Context) error {
	o.conn, o.silent = o.a.connect(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(o.silent, rpc.ErrDenied) {
		return o.silent
	}
	return nil
}

// add does all of it for one host.
func (h *addedHost) add(ctx context.Context) error {
	t, err := remote.ParseTarget(h.target)
	if err != nil {
		return err
	}
	h.doing("looking")
	shell, err := remote.Dial(ctx, t, h.options())
	if err != nil {
		return err
	}
	defer func() { _ = shell.Close() }()
	h.on = onhost.Root{Host: shell}
	for _, step := range []struct {
		word, doing string
		do          func(context.Context) (text string, changed bool, err error)
	}{
		{"looked", "looking", h.look},
		{"installed", "installing", h.install},
		{"controller", "setting up the controller", h.controller},
		{"enrolled", "enrolling", h.enrol},
		{"started", "starting", h.start},
		{"online", "waiting until it is online", h.wait},
	} {
		began := h.a.now()
		h.doing(step.doing)
		text, changed, err := step.do(ctx)
		if err != nil {
			return err
		}
		h.told(step.word, text, changed, h.a.now().Sub(began))
	}
	return nil
}

// options are how the host is reached. A question has the line for itself.
func (h *addedHost) options() remote.Options {
	o := h.a.sshOptions(h.ssh)
	if confirm := o.Confirm; confirm != nil {
		o.Confirm = func(ctx context.Context, question string) (bool, error) {
			h.clear()
			return confirm(ctx, question)
		}
	}
	if secret := o.Secret; secret != nil {
		o.Secret = func(ctx context.Context, question string) (string, error) {
			h.clear()
			return secret(ctx, question)
		}
	}
	return o
}

// doing shows on a terminal what is being waited for.
func (h *addedHost) doing(what string) {
	if h.a.outIsTerm && h.a.format == "table" {
		fmt.Fprintf(h.a.out, "\r\x1b[K%s  %s...", cmp.Or(h.name, h.target), what)
	}
}

func (h *addedHost) clear() {
	if h.a.outIsTerm && h.a.format == "table" {
		fmt.Fprint(h.a.out, "\r\x1b[K")
	}
}

// told says a step that is done. One that found nothing to do is not worth a line, but
// for the look.
func (h *addedHost) told(word, text string, changed bool, took time.Duration) {
	h.clear()
	h.doc.Steps = append(h.doc.Steps, addedStepDoc{word, changed, text, took.Seconds()})
	if h.a.format != "table" {
		return
	}
	if changed || word == "looked" {
		fmt.Fprintf(h.a.out, "%s  %-10s  %6s  %s\n", h.name, word, brief(took), text)
	}
	for _, w := range h.late {
		fmt.Fprintf(h.a.out, "%s %s: %s\n", h.a.paint(yellow, "!"), h.name, w)
	}
	h.late = nil
}

// warn says something that is no fault, after the line of the step that found it.
func (h *addedHost) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	h.doc.Warnings, h.late = append(h.doc.Warnings, text), append(h.late, text)
}

// end says how it went.
func (h *addedHost) end(err error) {
	h.clear()
	took := h.a.now().Sub(h.began)
	d := &h.doc
	d.Name, d.Address, d.Seconds, d.Result = h.name, h.address, took.Seconds(), "unchanged"
	if slices.ContainsFunc(d.Steps, func(s addedStepDoc) bool { return s.Changed }) {
		d.Result = "added"
	}
	switch {
	case err != nil:
		d.Result, d.Error = "failed", err.Error()
	case h.a.format != "table":
	case d.Result == "unchanged":
		fmt.Fprintf(h.a.out, "%s is installed, enrolled and online already, nothing to do.  (%s)\n", h.name, brief(took))
	default:
		fmt.Fprintf(h.a.out, "%s is online.  (%s)\n", h.name, brief(took))
	}
}

// look finds out what is there, and settles name and address. Nothing is changed.
func (h *addedHost) look(ctx context.Context) (string, bool, error) {
	seen, err := onhost.Inspect(ctx, h.on)
	if err != nil {
		return "", false, err
	}
	h.seen = seen
	if err := h.settleName(); err != nil {
		return "", false, err
	}
	if err := h.settleAddress(); err != nil {
		return "", false, err
	}
	if h.conn == nil {
		if h.folder, err = h.firstFolder(); err != nil {
			return "", false, err
		}
	}
	text := "Proxmox VE " + seen.Proxmox
	switch {
	case seen.Installed == "":
		text += ", nothing of ours is installed"
	case seen.Cert == nil:
		text += ", homelab " + seen.Installed + ", not enrolled"
	default:
		text += ", homelab " + seen.Installed + ", " + seen.ID.String()
	}
	return text, false, nil
}

// settleName finds the name: what the host is enrolled as stays.
func (h *addedHost) settleName() error {
	is := h.seen.Config.Name
	h.name = cmp.Or(h.hostsAdd.name, is, h.seen.Hostname)
	switch {
	case is != "" && h.name != is:
		return rpc.Errorf(rpc.ErrRefused, "%s on %s says that it is %s, and a host keeps its name; to give it another: hlctl hosts remove %s, and on the host apt-get purge homelab",
			onhost.AgentConfig, h.seen.Hostname, is, is)
	case !spec.IsName(h.name):
		return rpc.Errorf(rpc.ErrInvalid, "its hostname %q cannot be a name in the Spec; say one with --name NAME (lower-case letters, digits and inner hyphens)", h.name)
	case h.seen.Cert != nil && h.seen.ID.Fleet != h.fleet:
		return rpc.Errorf(rpc.ErrRefused, "it is enrolled in another fleet, %s, and this is %s; to take it from there: hlctl hosts remove %s in that fleet, and on the host apt-get purge homelab",
			h.seen.ID.Fleet, h.fleet, h.seen.ID.Name)
	}
	return nil
}

// settleAddress finds the address, which must be one of the host's: the agent listens
// on it.
func (h *addedHost) settleAddress() error {
	dialled := h.on.IP()
	is := h.seen.Config.Advertise
	h.address = cmp.Or(h.hostsAdd.address, is, dialled.String())
	if is != "" && h.address != is {
		return rpc.Errorf(rpc.ErrRefused, "%s on it says advertise: %s; correct it there, and then: systemctl restart hl-agent", onhost.AgentConfig, is)
	}
	ip, err := netip.ParseAddr(h.address)
	if err == nil && slices.Contains(h.seen.Addresses, ip) {
		return nil
	}
	var has []string
	for _, a := range h.seen.Addresses {
		has = append(has, a.String())
	}
	return rpc.Errorf(rpc.ErrRefused, "%s is no address of the host itself, which has %s; say the one at which the others reach it with --address IP", h.address, cmp.Or(strings.Join(has, ", "), "none"))
}
