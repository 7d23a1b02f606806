package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/homeiac/homelab/cli/onhost"
	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
)

// controllerFiles are what is in the folder that init makes, but for the configuration,
// in the order in which they are put.
var controllerFiles = []string{
	fleetKeyFile, "issuing-ca.key", "issuing-ca.pem", "controller.key", "controller.crt", "gossip.keys", "ca.crt",
}

// controllerFolder is a folder controller-NAME beside hlctl's configuration.
type controllerFolder struct {
	dir, name string
	address   netip.Addr
}

// folders are those of the fleet.
func (o *hostsAdd) folders() ([]controllerFolder, error) {
	files, err := filepath.Glob(filepath.Join(filepath.Dir(o.context.Cert), "controller-*", "controller.yaml"))
	if err != nil {
		return nil, err
	}
	var list []controllerFolder
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var says struct{ Name, Advertise string }
		if err := yaml.Unmarshal(data, &says); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		ip, err := netip.ParseAddr(says.Advertise)
		if err != nil {
			return nil, fmt.Errorf("%s: advertise %q is no IP address", file, says.Advertise)
		}
		list = append(list, controllerFolder{filepath.Dir(file), says.Name, ip})
	}
	return list, nil
}

// firstFolder is the folder of the controller that belongs on this host, since none
// answers. When there is none for it, that is why nothing can be done.
func (h *addedHost) firstFolder() (*controllerFolder, error) {
	all, err := h.folders()
	if err != nil {
		return nil, err
	}
	next := ""
	for i := range all {
		f := &all[i]
		if !slices.ContainsFunc(h.context.Controllers, func(c string) bool { return c == netip.AddrPortFrom(f.address, controllerPortNumber).String() }) {
			continue // of another fleet
		}
		if slices.Contains(h.seen.Addresses, f.address) {
			return f, nil
		}
		next = fmt.Sprintf("\n  if the fleet's first controller is not set up yet, begin with its host: hlctl hosts add root@%s", f.address)
	}
	if h.seen.ControllerName != "" && !h.seen.Controller.Active {
		next = "\n  a controller is set up on this host and does not run: systemctl start hl-controller"
	}
	return nil, fmt.Errorf("%w%s", h.silent, next)
}

// controller sets up a controller on the host: the first one, when none answers, or a
// further one that was asked for.
func (h *addedHost) controller(ctx context.Context) (string, bool, error) {
	is := h.seen.ControllerName
	switch {
	case h.conn == nil:
		return h.firstController(ctx)
	case !h.wantController:
		return "", false, nil
	case is != "" && is != h.name && h.seen.Controller.Active:
		return is, false, nil // the first one, whose name is of its own
	case is != "" && is != h.name:
		return "", false, rpc.Errorf(rpc.ErrRefused, "a controller %s is set up on it and does not run; on the host: systemctl start hl-controller", is)
	}
	return h.furtherController(ctx)
}

// firstController puts what init made for it, starts it, and waits until it answers.
// What is on the host already stays: the controller renews its certificate and keys.
func (h *addedHost) firstController(ctx context.Context) (string, bool, error) {
	f := h.folder
	if is := h.seen.ControllerName; is != "" && is != f.name {
		return "", false, rpc.Errorf(rpc.ErrRefused, "%s on it is that of a controller %s, and %s is for %s; move the one aside that is wrong", onhost.ControllerConfig, is, f.dir, f.name)
	}
	if err := h.putController(ctx, f); err != nil {
		return "", false, err
	}
	if h.seen.ControllerName == "" {
		data, err := os.ReadFile(filepath.Join(f.dir, "controller.yaml"))
		if err != nil {
			return "", false, err
		}
		if err := h.on.Put(ctx, onhost.ControllerConfig, 0o644, bytes.NewReader(data), int64(len(data))); err != nil {
			return "", false, err
		}
	}
	if err := h.begin(ctx, onhost.ControllerService, false); err != nil {
		return "", false, err
	}
	if err := h.answers(ctx); err != nil {
		return "", false, err
	}
	h.warn("the controller's keys are on it now: delete %s, or keep it with the backup", f.dir)
	return fmt.Sprintf("%s, answers at %s", f.name, netip.AddrPortFrom(f.address, controllerPortNumber)), true, nil
}

// putController puts the files that are not there yet, after it has made sure that what
// is there is of the same controller.
func (h *addedHost) putController(ctx context.Context, f *controllerFolder) error {
	there, err := h.on.ControllerFiles(ctx)
	if err != nil {
		return err
	}
	local := make(map[string][]byte)
	for _, name := range controllerFiles {
		data, err := os.ReadFile(filepath.Join(f.dir, name))
		switch {
		case errors.Is(err, os.ErrNotExist) && slices.Contains(there, name):
			continue
		case errors.Is(err, os.ErrNotExist):
			return fmt.Errorf("%s is neither in %s nor on the host; bring the folder back from a backup", name, f.dir)
		case err != nil:
			return err
		}
		local[name] = data
	}
	// These two never change as long as it is the same controller.
	for _, name := range []string{fleetKeyFile, "issuing-ca.key"} {
		if slices.Contains(there, name) && local[name] != nil {
			if err := h.sameOn(ctx, name, local[name], f.dir); err != nil {
				return err
			}
		}
	}
	var put []string
	for _, name := range controllerFiles {
		if !slices.Contains(there, name) {
			put = append(put, name)
		}
	}
	return h.on.PutControllerFiles(ctx, put, local)
}

// sameOn refuses a file in the controller's state that is another one than ours.
func (h *addedHost) sameOn(ctx context.Context, name string, ours []byte, of string) error {
	same, err := h.on.HasControllerFile(ctx, name, ours)
	if err != nil || same {
		return err
	}
	return rpc.Errorf(rpc.ErrRefused, "%s/%s on the host is of another controller than %s; if that is not needed any more, on the host: apt-get purge homelab (it keeps such keys in /var/lib/homelab-keep)",
		controllerState, name, of)
}

// answers waits until a controller answers, and keeps the connection.
func (h *addedHost) answers(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, h.limit)
	defer cancel()
	for {
		err := h.reach(bounded)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && bounded.Err() == nil:
			return err
		case h.conn != nil:
			return nil
		case !pause.For(bounded, h.poll):
			return fmt.Errorf("hl-controller is started, and after %.0f s %w%s", h.limit.Seconds(), h.silent, h.on.Journal(ctx, onhost.ControllerService))
		}
	}
}
