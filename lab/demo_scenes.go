package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// configurations are the VMs' files of all hosts, by host and VMID.
func (d *demo) configurations() (map[string]string, error) {
	all := map[string]string{}
	for _, host := range d.HostNames() {
		files, err := filepath.Glob(filepath.Join(d.confDir(host), "*.conf"))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			all[host+"/"+strings.TrimSuffix(filepath.Base(file), ".conf")] = string(data)
		}
	}
	return all, nil
}

// visits are the connections to the hosts' API ports.
func (d *demo) visits() error {
	for _, host := range d.HostNames() {
		data, err := os.ReadFile(d.apiConnections(host))
		if err == nil && len(data) > 0 {
			return fmt.Errorf("somebody came to port %d of %s: %s", apiPort, host, data)
		}
	}
	return nil
}

// addHost adds host n and applies the Spec that names it.
func (d *demo) addHost(ctx context.Context, n int) error {
	if err := d.up(ctx, n); err != nil {
		return err
	}
	_, err := d.apply(ctx, d.path(fmt.Sprintf("homelab-%d.yaml", n)))
	return err
}

func (d *demo) newNode(ctx context.Context) error {
	if _, err := d.apply(ctx, d.spec()); err != nil {
		return err
	}
	if err := d.settle(ctx, 3); err != nil {
		return err
	}
	before, err := d.configurations()
	if err != nil {
		return err
	}
	earlier, err := d.calls()
	if err != nil {
		return err
	}
	if err := d.addHost(ctx, 4); err != nil {
		return err
	}
	if err := d.settle(ctx, 4); err != nil {
		return err
	}
	after, err := d.configurations()
	if err != nil {
		return err
	}
	for name, text := range before {
		if after[name] != text {
			return fmt.Errorf("the configuration of %s was touched:\n%s", name, after[name])
		}
	}
	added := "pve4/" + strconv.Itoa(firstVMID+3)
	if len(after) != len(before)+1 || !strings.Contains(after[added], "bridge=vmbr0") {
		return fmt.Errorf("there should be one VM more, %s, on vmbr0; there are %v", added, slices.Sorted(maps.Keys(after)))
	}
	all, err := d.calls()
	if err != nil {
		return err
	}
	for _, c := range all[len(earlier):] {
		if c.changes() && c.Host != "pve4" {
			return fmt.Errorf("another host was touched: %s", c)
		}
	}
	return nil
}

func (d *demo) secondRun(ctx context.Context) error {
	if _, err := d.apply(ctx, d.spec()); err != nil {
		return err
	}
	if err := d.settle(ctx, 5); err != nil {
		return err
	}
	earlier, err := d.calls()
	if err != nil {
		return err
	}
	second, err := d.apply(ctx, d.spec())
	if err != nil {
		return err
	}
	if !strings.Contains(second.stdout+second.stderr, "nothing to do") {
		return fmt.Errorf("the second apply says:\n%s%s", second.stdout, second.stderr)
	}
	third, err := d.hlctl(ctx, 0, "apply", "-f", d.spec(), "--yes", "-o", "json")
	if err != nil {
		return err
	}
	if !strings.Contains(third.stdout, `"mutatingCalls":0`) {
		return fmt.Errorf("its summary counts changes:\n%s", third.stdout)
	}
	all, err := d.calls()
	if err != nil {
		return err
	}
	for _, c := range all[len(earlier):] {
		if c.changes() {
			return fmt.Errorf("something was changed: %s", c)
		}
	}
	return nil
}

// apiClosed is made with the API's certificate expired, as it is in every lab, then
// goes on with the port closed.
func (d *demo) apiClosed(ctx context.Context) error {
	if _, err := d.apply(ctx, d.spec()); err != nil {
		return err
	}
	if err := d.up(ctx, 4); err != nil {
		return err
	}
	for _, host := range d.HostNames() {
		if err := d.Fault("api-close", host); err != nil {
			return err
		}
	}
	if _, err := d.apply(ctx, d.path("homelab-4.yaml")); err != nil {
		return err
	}
	if err := d.settle(ctx, 4); err != nil {
		return err
	}
	again, err := d.apply(ctx, d.path("homelab-4.yaml"))
	if err != nil {
		return err
	}
	if !strings.Contains(again.stdout+again.stderr, "nothing to do") {
		return fmt.Errorf("the second apply says:\n%s%s", again.stdout, again.stderr)
	}
	return d.visits()
}

func (d *demo) joinCluster(ctx context.Context) error {
	if _, err := d.apply(ctx, d.spec()); err != nil {
		return err
	}
	if err := d.settle(ctx, 3); err != nil {
		return err
	}
	trees, err := d.trees()
	if err != nil {
		return err
	}
	if len(trees) != 3 {
		return fmt.Errorf("%d guests have files, not 3", len(trees))
	}
	c, err := d.openCluster()
	if err != nil {
		return err
	}
	defer c.Close()
	nodes, err := c.nodes(ctx)
	if err != nil {
		return err
	}
	for name, n := range nodes {
		if n.Status.Info.Version != d.K3sVersion {
			return fmt.Errorf("the Node %s has k3s %s, not %s", name, n.Status.Info.Version, d.K3sVersion)
		}
	}
	if len(nodes) != 3 {
		return fmt.Errorf("there are %d Nodes, not 3", len(nodes))
	}
	token, err := os.ReadFile(filepath.Join(trees[0], "var/lib/rancher/k3s/server/token"))
	if err != nil {
		return err
	}
	if err := d.secret(token, trees); err != nil {
		return err
	}
	again, err := d.apply(ctx, d.spec())
	if err == nil && !strings.Contains(again.stdout+again.stderr, "nothing to do") {
		err = fmt.Errorf("members of the cluster were not skipped:\n%s%s", again.stdout, again.stderr)
	}
	return err
}

// trees are the folders with the files of all guests.
func (d *demo) trees() ([]string, error) {
	var list []string
	for _, host := range d.HostNames() {
		for _, where := range []string{"var/lib/vz/images/*/*.fs", "dev/zvol/*/*/*.fs", "dev/*/*.fs"} {
			found, err := filepath.Glob(filepath.Join(d.hostRoot(host), where))
			if err != nil {
				return nil, err
			}
			for _, f := range found {
				if _, err := os.Stat(filepath.Join(f, "etc/hostname")); err == nil {
					list = append(list, f)
				}
			}
		}
	}
	return list, nil
}

// secret looks for the token's password in every file of the lab: it may stand in
// k3s's own folders of the guests only.
func (d *demo) secret(token []byte, trees []string) error {
	_, password, ok := bytes.Cut(bytes.TrimSpace(token), []byte("::server:"))
	if !ok || len(password) < 16 {
		return errors.New("the server's token has no form that is known")
	}
	return filepath.WalkDir(d.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil //nolint:nilerr // gone while we looked, or no file
		}
		for _, t := range trees {
			inside, ok := strings.CutPrefix(path, t+"/")
			if ok && (strings.HasPrefix(inside, "var/lib/rancher/k3s/") || strings.HasPrefix(inside, "etc/rancher/")) {
				return nil
			}
		}
		info, err := e.Info()
		if err != nil || info.Size() > 32<<20 {
			return nil //nolint:nilerr // images are no text
		}
		data, err := os.ReadFile(path)
		if err == nil && bytes.Contains(data, password) {
			return fmt.Errorf("the token stands in %s", path)
		}
		return nil
	})
}
