package k3s

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/homeiac/homelab/lab/guest/shell"
	"github.com/homeiac/homelab/lab/guest/system"
)

// snapshot is "k3s etcd-snapshot save|ls|delete".
func snapshot(ctx context.Context, c *shell.Call, o *system.OS, args []string) int {
	verb := "save"
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		verb, args = args[0], args[1:]
	}
	name, dir, output := "on-demand", snapshotDir, ""
	var names []string
	for i := 0; i < len(args); i++ {
		k, v, eq := strings.Cut(args[i], "=")
		val := func() string {
			if !eq {
				if i++; i < len(args) {
					v = args[i]
				}
			}
			return v
		}
		switch k {
		case "--name":
			name = val()
		case "--etcd-snapshot-dir", "--dir":
			dir = val()
		case "-o", "--output":
			output = val()
		default:
			if strings.HasPrefix(k, "-") {
				return c.Refuse("option " + k)
			}
			names = append(names, args[i])
		}
	}
	p := local(c, o)
	if cfg, err := readConfig(p.v, nil, nil); err == nil && cfg.get("node-name") != "" {
		p.name = strings.ToLower(cfg.get("node-name"))
	}
	var err error
	switch verb {
	case "save":
		err = p.saveSnapshot(ctx, dir, name)
	case "ls", "list", "l":
		err = p.listSnapshots(c, dir, output)
	case "delete":
		for _, n := range names {
			if e := p.v.Remove(clean(dir, n)); e != nil {
				err = errors.Join(err, e)
				continue
			}
			p.info("Snapshot %s deleted.", n)
		}
	default:
		return c.Refuse("etcd-snapshot " + verb)
	}
	if err != nil {
		p.logf("fatal", "Error: %v", err)
		return 1
	}
	return 0
}

func (p *process) saveSnapshot(ctx context.Context, dir, name string) error {
	conn, err := p.o.Dial(ctx, "127.0.0.1", portAPI)
	if err != nil {
		return fmt.Errorf("see server log for details: dial tcp 127.0.0.1:%d: connect: connection refused", portAPI)
	}
	conn.Close()
	cl, err := etcdClient(p.v, clientURL(p.addr))
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r, err := cl.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := p.v.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file := fmt.Sprintf("%s-%s-%d", name, p.name, time.Now().Unix())
	f, err := p.v.OpenFile(clean(dir, file), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	p.info("Snapshot %s saved.", file)
	return nil
}

func (p *process) listSnapshots(c *shell.Call, dir, output string) error {
	es, err := p.v.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	type item struct {
		Name      string    `json:"name"`
		Location  string    `json:"location"`
		NodeName  string    `json:"nodeName"`
		CreatedAt time.Time `json:"createdAt"`
		Size      int64     `json:"size"`
	}
	items := []item{}
	for _, e := range es {
		fi, err := p.v.Stat(clean(dir, e.Name()))
		if err != nil {
			return err
		}
		items = append(items, item{e.Name(), "file://" + clean(dir, e.Name()), p.name, fi.ModTime().UTC(), fi.Size()})
	}
	if output == "json" {
		return json.NewEncoder(c.Stdout).Encode(items)
	}
	c.Printf("%-50s %-100s %-10s %s\n", "Name", "Location", "Size", "Created")
	for _, i := range items {
		c.Printf("%-50s %-100s %-10d %s\n", i.Name, i.Location, i.Size, i.CreatedAt.Format(time.RFC3339))
	}
	return nil
}
