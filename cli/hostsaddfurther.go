package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/homeiac/homelab/cli/onhost"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
)

// etcdFlags say which etcd a further controller shares with the others, and which root
// signs its issuing CA.
type etcdFlags struct {
	endpoints            []string
	ca, cert, key        string
	rootCert, rootKey    string
	rootPassphraseInFile string
}

func (f *etcdFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringSliceVar(&f.endpoints, "etcd-endpoints", nil, "with --controller: https://IP:PORT of the etcd that all controllers share")
	flags.StringVar(&f.ca, "etcd-ca", "", "with --controller: the CA of that etcd, PEM file")
	flags.StringVar(&f.cert, "etcd-cert", "", "with --controller: a client certificate of that etcd, PEM file")
	flags.StringVar(&f.key, "etcd-key", "", "with --controller: and its key")
	flags.StringVar(&f.rootCert, "root-cert", "", "with --controller: the root's certificate (default "+rootCertFile+" beside the configuration)")
	flags.StringVar(&f.rootKey, "root-key", "", "with --controller: the root's key (default "+rootKeyFile+" beside the configuration)")
	flags.StringVar(&f.rootPassphraseInFile, "passphrase-file", "", "with --controller: a file with the passphrase of the root's key")
}

// check refuses half of it. A first controller needs none of it.
func (f *etcdFlags) check(controller bool) error {
	given := 0
	for _, text := range []string{strings.Join(f.endpoints, ","), f.ca, f.cert, f.key} {
		if text != "" {
			given++
		}
	}
	switch {
	case given > 0 && !controller:
		return errors.New("the flags --etcd-... go with --controller")
	case given > 0 && given < 4:
		return errors.New("a further controller needs all of --etcd-endpoints, --etcd-ca, --etcd-cert and --etcd-key")
	}
	for _, e := range f.endpoints {
		rest, ok := strings.CutPrefix(e, "https://")
		if _, err := netip.ParseAddrPort(rest); !ok || err != nil {
			return fmt.Errorf("--etcd-endpoints %q is not https://IP:PORT", e)
		}
	}
	return nil
}

// furtherController sets up one more controller, or finishes what was begun of it. Its
// issuing CA is signed here, with the root's key, and its fleet key is the admin's copy:
// neither is anything that one controller could get from another.
func (h *addedHost) furtherController(ctx context.Context) (string, bool, error) {
	there, err := h.on.ControllerFiles(ctx)
	if err != nil {
		return "", false, err
	}
	began := !h.seen.Controller.Active
	if began {
		anew, err := h.takenBack(ctx, there)
		if err != nil {
			return "", false, err
		}
		if anew || h.replace {
			there = slices.DeleteFunc(there, func(name string) bool { return name == "controller.crt" || strings.HasPrefix(name, "issuing-ca.") })
		}
		if h.seen.ControllerName == "" || !slices.Contains(there, "controller.crt") {
			if err := h.enrolFurther(ctx, there); err != nil {
				return "", false, err
			}
		}
		if err := h.begin(ctx, onhost.ControllerService, false); err != nil {
			return "", false, err
		}
	}
	ip, err := netip.ParseAddr(h.address)
	if err != nil {
		return "", false, err
	}
	at := netip.AddrPortFrom(ip, h.port).String()
	if err := h.answersAt(ctx, at); err != nil {
		return "", false, err
	}
	added, err := addController(h.context, at)
	if err != nil {
		return "", false, fmt.Errorf("%s answers, and could not be added to the controllers in %s: %w", at, h.context.where, err)
	}
	return fmt.Sprintf("%s, answers at %s, and is in %s", h.name, at, h.context.where), began || added, nil
}

// takenBack says whether the certificate of a controller that was on the host was taken
// back, and with it its issuing CA: it was removed, and gets others.
func (h *addedHost) takenBack(ctx context.Context, there []string) (bool, error) {
	if !slices.Contains(there, "controller.crt") {
		return false, nil
	}
	text, err := h.on.ReadFile(ctx, onhost.ControllerState+"/controller.crt")
	if err != nil {
		return false, err
	}
	cert, _ := onhost.CertificateIn(text)
	if cert == nil {
		return false, nil // what is wrong with it the controller says
	}
	return h.revoked(ctx, rpc.Serial(cert))
}

func (h *addedHost) enrolFurther(ctx context.Context, there []string) error {
	if len(h.etcd.endpoints) == 0 {
		return rpc.Errorf(rpc.ErrInvalid, "a further controller shares an etcd with the others; say which with --etcd-endpoints, --etcd-ca, --etcd-cert and --etcd-key (docs/install.md)")
	}
	cut := slices.Contains(there, "controller.key") && !slices.Contains(there, "controller.crt")
	resp, err := h.token(ctx, &controllerv1.CreateTokenRequest{Name: h.name, Role: rpc.RoleController, Addresses: []string{h.address}, Ttl: durationpb.New(enrolToken), Replace: h.replace},
		func() (bool, error) { return cut, nil })
	if err != nil {
		return err
	}
	files, err := h.furtherFiles(ctx)
	if err != nil {
		return err
	}
	if err := h.putFurther(ctx, there, files); err != nil {
		return err
	}
	if err := h.on.Enrol(ctx, rpc.RoleController, resp.GetEnrol(), resp.GetToken(), "--advertise", h.address, "--etcd-endpoints", strings.Join(h.etcd.endpoints, ",")); err != nil {
		return fmt.Errorf("enrol the controller: %w\n  the host must reach the controller at %s; then again: hlctl hosts add %s --controller", err, resp.GetEnrol(), h.target)
	}
	return nil
}

// furtherFiles are what its state folder must have before it enrols. The issuing CA is
// made for this time only, and nothing of its key stays here.
func (h *addedHost) furtherFiles(ctx context.Context) (map[string][]byte, error) {
	rootCert, rootKey := cmp.Or(h.etcd.rootCert, h.context.beside(rootCertFile)), cmp.Or(h.etcd.rootKey, h.context.beside(rootKeyFile))
	h.clear()
	root, err := h.a.loader(ctx, h.etcd.rootPassphraseInFile)(rootCert, rootKey)
	if err != nil {
		return nil, fmt.Errorf("its issuing CA is signed with the root's key: %w", err)
	}
	if root.Fleet() != h.fleet || !root.IsRoot() {
		return nil, rpc.Errorf(rpc.ErrInvalid, "%s is no root of fleet %s; say which is with --root-cert and --root-key", rootCert, h.fleet)
	}
	issuing, err := root.NewIssuing(h.name, issuingLife, time.Now())
	if err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp("", "hlctl")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := issuing.Write(filepath.Join(tmp, "ca.pem"), filepath.Join(tmp, "ca.key")); err != nil {
		return nil, err
	}
	files := make(map[string][]byte)
	for name, file := range map[string]string{
		"issuing-ca.pem": filepath.Join(tmp, "ca.pem"), "issuing-ca.key": filepath.Join(tmp, "ca.key"),
		fleetKeyFile:  filepath.Join(filepath.Dir(h.context.Cert), fleetKeyFile),
		"etcd-ca.crt": h.etcd.ca, "etcd.crt": h.etcd.cert, "etcd.key": h.etcd.key,
	} {
		if files[name], err = os.ReadFile(file); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// putFurther puts those that are not there yet. An issuing CA is there whole or not: a
// controller that has not run has signed nothing with the half of one.
func (h *addedHost) putFurther(ctx context.Context, there []string, files map[string][]byte) error {
	whole := slices.Contains(there, "issuing-ca.pem") && slices.Contains(there, "issuing-ca.key")
	var put []string
	for _, name := range []string{fleetKeyFile, "issuing-ca.key", "issuing-ca.pem", "etcd-ca.crt", "etcd.crt", "etcd.key"} {
		if strings.HasPrefix(name, "issuing") && !whole || !slices.Contains(there, name) {
			put = append(put, name)
		}
	}
	if slices.Contains(there, fleetKeyFile) {
		if err := h.sameOn(ctx, fleetKeyFile, files[fleetKeyFile], "the fleet's key in "+filepath.Dir(h.context.Cert)); err != nil {
			return err
		}
	}
	return h.on.PutControllerFiles(ctx, put, files)
}

// answersAt waits until the controller at IP:PORT answers.
func (h *addedHost) answersAt(ctx context.Context, at string) error {
	_, creds, err := h.a.credentials()
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, h.limit)
	defer cancel()
	for {
		c, err := probe(bounded, creds, at)
		if err == nil {
			c.close()
			return nil
		}
		if !pause.For(bounded, h.poll) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("hl-controller is started and does not answer at %s after %.0f s: %s%s", at, h.limit.Seconds(), cause(err), h.on.Journal(ctx, onhost.ControllerService))
		}
	}
}
