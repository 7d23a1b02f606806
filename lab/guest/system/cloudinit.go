package system

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/lab/guest/cloudinit"
	"github.com/homeiac/homelab/lab/guest/shell"
)

// ciStage is what status.json says of one stage.
type ciStage struct {
	Errors   []string `json:"errors"`
	Start    *float64 `json:"start"`
	Finished *float64 `json:"finished"`
}

// ciStatus is cloud-init's own view of its work.
type ciStatus struct {
	Datasource  string
	Stage       string // "" when done
	Stages      map[string]*ciStage
	Recoverable []string
	Ended       time.Time
}

var ciStages = []string{"init-local", "init", "modules-config", "modules-final"}

const (
	instanceLink = "/var/lib/cloud/instance"
	ciLog        = "/var/log/cloud-init.log"
	ciOutput     = "/var/log/cloud-init-output.log"
)

// ciRun is one boot's cloud-init.
type ciRun struct {
	o     *OS
	cfg   cloudinit.Config
	nets  []cloudinit.Interface
	fresh bool // a new instance-id: per-instance modules run
	dir   string
	none  bool // no data source
}

func now() *float64 {
	t := float64(time.Now().UnixNano()) / 1e9
	return &t
}

// cloudInit reads the drive and decides what this boot has to do.
func (o *OS) cloudInit() *ciRun {
	r := &ciRun{o: o}
	o.mu.Lock()
	o.ci = ciStatus{Stages: map[string]*ciStage{}, Stage: "init-local"}
	for _, s := range ciStages {
		o.ci.Stages[s] = &ciStage{Errors: []string{}}
	}
	o.ci.Stages["init-local"].Start = now()
	o.mu.Unlock()
	doc := o.m.CloudInit
	if doc == nil {
		r.none = true
		return r
	}
	o.mu.Lock()
	o.ci.Datasource = "DataSourceNoCloud [seed=/dev/sr0]"
	o.mu.Unlock()
	var err error
	if r.cfg, err = cloudinit.Parse(doc.UserData); err != nil {
		if errors.Is(err, cloudinit.ErrNotCloudConfig) {
			r.warn(err.Error())
		} else {
			r.fail("init", err)
		}
	}
	if r.nets, err = cloudinit.ParseNetwork(doc.NetworkConfig); err != nil {
		r.fail("init-local", err)
	}
	id := doc.InstanceID
	if id == "" {
		id = "iid-hl-lab"
	}
	r.dir = "/var/lib/cloud/instances/" + path.Base(id)
	old, err := o.FS().Readlink(instanceLink)
	r.fresh = err != nil || old != r.dir
	if r.fresh {
		r.note("new instance " + id)
		r.check("init-local", o.FS().MkdirAll(r.dir+"/sem", 0o755))
		r.check("init-local", o.FS().RemoveAll(instanceLink))
		r.check("init-local", o.FS().Symlink(r.dir, instanceLink))
		r.check("init-local", o.FS().Put("/var/lib/cloud/data/instance-id", []byte(id+"\n"), 0o644))
		r.check("init-local", o.FS().Put(r.dir+"/user-data.txt", []byte(doc.UserData), 0o600))
	}
	return r
}

func (r *ciRun) network() []cloudinit.Interface { return r.nets }

func (r *ciRun) note(text string) {
	r.append(ciLog, time.Now().UTC().Format("2006-01-02 15:04:05,000")+" - "+text+"\n")
}

func (r *ciRun) append(file, text string) {
	f, err := r.o.FS().OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		r.o.Console("cloud-init: " + err.Error())
		return
	}
	defer f.Close()
	if _, err := io.WriteString(f, text); err != nil {
		r.o.Console("cloud-init: " + err.Error())
	}
}

// fail notes an error of a stage: the whole run ends in status error.
func (r *ciRun) fail(stage string, err error) {
	for line := range strings.Lines(err.Error()) {
		text := strings.TrimSpace(line)
		r.note("util.py[WARNING]: " + text)
		r.append(ciOutput, text+"\n")
		r.o.mu.Lock()
		s := r.o.ci.Stages[stage]
		s.Errors = append(s.Errors, text)
		r.o.mu.Unlock()
	}
}

func (r *ciRun) check(stage string, err error) {
	if err != nil {
		r.fail(stage, err)
	}
}

func (r *ciRun) warn(text string) {
	r.note("util.py[WARNING]: " + text)
	r.o.mu.Lock()
	r.o.ci.Recoverable = append(r.o.ci.Recoverable, text)
	r.o.mu.Unlock()
}

// stage ends the present stage and begins the next; "" is the end of all.
func (r *ciRun) stage(next string) {
	r.o.mu.Lock()
	if s := r.o.ci.Stages[r.o.ci.Stage]; s != nil {
		s.Finished = now()
	}
	r.o.ci.Stage = next
	if s := r.o.ci.Stages[next]; s != nil {
		s.Start = now()
	}
	if next == "" {
		r.o.ci.Ended = time.Now()
	}
	r.o.mu.Unlock()
	r.writeStatus()
}

// writeStatus writes /run/cloud-init/status.json, and result.json at the end.
func (r *ciRun) writeStatus() {
	r.o.mu.Lock()
	v1 := map[string]any{"datasource": nil, "stage": nil}
	if r.o.ci.Datasource != "" {
		v1["datasource"] = r.o.ci.Datasource
	}
	if r.o.ci.Stage != "" {
		v1["stage"] = r.o.ci.Stage
	}
	errs := []string{}
	for _, s := range ciStages {
		v1[s] = *r.o.ci.Stages[s]
		errs = append(errs, r.o.ci.Stages[s].Errors...)
	}
	done := r.o.ci.Stage == ""
	ds := r.o.ci.Datasource
	status, err := json.MarshalIndent(map[string]any{"v1": v1}, "", " ")
	r.o.mu.Unlock()
	if err == nil {
		err = r.o.FS().Put("/run/cloud-init/status.json", status, 0o644)
	}
	if err == nil && done {
		b, _ := json.MarshalIndent(map[string]any{"v1": map[string]any{"datasource": ds, "errors": errs}}, "", " ")
		err = r.o.FS().Put("/run/cloud-init/result.json", append(b, '\n'), 0o644)
	}
	if err != nil {
		r.o.Console("cloud-init: " + err.Error())
	}
}

// once runs a per-instance module unless it ran for this instance before.
func (r *ciRun) once(stage, name string, fn func() error) {
	sem := r.dir + "/sem/config_" + name
	if _, err := r.o.FS().Stat(sem); err == nil {
		return
	}
	if err := fn(); err != nil {
		r.fail(stage, fmt.Errorf("('%s', %w)", name, err))
	}
	r.check(stage, r.o.FS().Put(sem, nil, 0o644))
}

// init is what runs before sshd starts: files, hostname, users, host keys.
func (r *ciRun) init(ctx context.Context) {
	if r.none {
		r.stage("init")
		r.check("init", r.o.hostKeys(nil, false))
		return
	}
	r.stage("init")
	if len(r.cfg.BootCmd) > 0 { // at every boot
		if code := r.script(ctx, "#!/bin/sh\n"+strings.Join(r.cfg.BootCmd, "\n")+"\n"); code != 0 {
			r.fail("init", fmt.Errorf("('bootcmd', ProcessExecutionError(\"Exit code: %d\"))", code))
		}
	}
	r.once("init", "write_files", r.writeFiles)
	r.hostname()
	r.once("init", "users_groups", r.users)
	r.once("init", "ssh", func() error { return r.o.hostKeys(r.cfg.HostKeys, r.cfg.DeleteHostKeys && r.fresh) })
}

// final is the rest: packages, then the commands.
func (r *ciRun) final(ctx context.Context) {
	r.stage("modules-config")
	r.stage("modules-final")
	r.o.wait(ctx, "cloud-init", ms(r.o.m.Settings.CloudInitMs), time.Now())
	if ctx.Err() != nil {
		return
	}
	if !r.none {
		r.once("modules-final", "package_update_upgrade_install", func() error {
			var errs []error
			for _, p := range r.cfg.Packages {
				if err := r.o.installPackage(p); err != nil {
					r.append(ciOutput, "E: "+err.Error()+"\n")
					errs = append(errs, fmt.Errorf("ProcessExecutionError(\"Stderr: E: %w\")", err))
				}
			}
			return errors.Join(errs...)
		})
		r.once("modules-final", "scripts_user", func() error {
			if len(r.cfg.RunCmd) == 0 {
				return nil
			}
			text := "#!/bin/sh\n" + strings.Join(r.cfg.RunCmd, "\n") + "\n"
			if err := r.o.FS().Put(r.dir+"/scripts/runcmd", []byte(text), 0o700); err != nil {
				return err
			}
			if code := r.script(ctx, text); code != 0 {
				r.append(ciOutput, fmt.Sprintf("Failed to run %s/scripts/runcmd: exit code %d\n", r.dir, code))
				return errors.New("RuntimeError('Runparts: 1 failures (runcmd) in 1 attempted commands')")
			}
			return nil
		})
	}
	if ctx.Err() != nil {
		return
	}
	r.append(ciOutput, fmt.Sprintf("Cloud-init v. 24.4 finished at %s. Up %.2f seconds\n",
		time.Now().UTC().Format(time.RFC1123), r.o.Uptime().Seconds()))
	r.stage("")
	r.check("modules-final", r.o.FS().Put("/var/lib/cloud/instance/boot-finished", []byte(time.Now().UTC().Format(time.RFC3339)+"\n"), 0o644))
}

func (r *ciRun) script(ctx context.Context, text string) int {
	var out bytes.Buffer
	p := shell.Login(shell.Root)
	p.Dir, p.Stdout, p.Stderr = "/", &out, &out
	p.Args = []string{"runcmd"}
	code := r.o.Shell.Run(ctx, p, text)
	r.append(ciOutput, out.String())
	return code
}

func (r *ciRun) writeFiles() error {
	var errs []error
	for _, f := range r.cfg.WriteFiles {
		b := f.Content
		if f.Append {
			if old, err := r.o.FS().ReadFile(f.Path); err == nil {
				b = append(old, b...)
			}
		}
		if err := r.o.FS().Put(f.Path, b, modeOf(f.Mode)); err != nil {
			errs = append(errs, err)
			continue
		}
		if f.Owner == "" || f.Owner == "root" || f.Owner == "root:root" {
			continue
		}
		name, _, _ := strings.Cut(f.Owner, ":")
		u, ok := shell.LookupUser(r.o.tree, name)
		if !ok {
			// As in life: files are written before the users are made.
			errs = append(errs, fmt.Errorf("OSError('Unknown user or group: \"getpwnam(): name not found: '%s'\"')", name))
			continue
		}
		errs = append(errs, r.o.FS().Chown(f.Path, u.UID, u.GID))
	}
	return errors.Join(errs...)
}

// hostname follows cc_set_hostname: fqdn and hostname from the user-data, once
// per instance unless preserve_hostname says otherwise.
func (r *ciRun) hostname() {
	if r.cfg.PreserveHostname {
		return
	}
	name := r.cfg.Hostname
	if name == "" {
		name, _, _ = strings.Cut(r.cfg.FQDN, ".")
	}
	if name == "" {
		return
	}
	name, _, _ = strings.Cut(name, ".")
	r.once("init", "set_hostname", func() error {
		hosts := "127.0.0.1 localhost\n127.0.1.1 " + strings.TrimSpace(r.cfg.FQDN+" "+name) + "\n"
		return errors.Join(r.o.SetHostname(name, true), r.o.FS().Put("/etc/hosts", []byte(hosts), 0o644))
	})
}

func (r *ciRun) users() error {
	var errs []error
	var rules strings.Builder
	for _, u := range r.cfg.Users {
		who, err := r.o.addUser(u.Name, u.Home)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		keys := u.AuthorizedKeys
		if u.Default {
			keys = append(keys, r.cfg.AuthorizedKeys...)
		}
		if len(keys) > 0 {
			errs = append(errs, r.o.authorize(who, keys))
		}
		for _, s := range u.Sudo {
			fmt.Fprintf(&rules, "%s %s\n", u.Name, s)
		}
	}
	errs = append(errs, r.o.FS().Put("/etc/sudoers.d/90-cloud-init-users", []byte(rules.String()), 0o440))
	return errors.Join(errs...)
}

// hostKeys makes the SSH host keys: the given ones, or fresh ones when there
// are none. RSA keys are left out, they take seconds of CPU.
func (o *OS) hostKeys(given map[string]string, delete bool) error {
	v := o.FS()
	if delete || len(given) > 0 {
		es, err := v.ReadDir("/etc/ssh")
		if err != nil {
			return err
		}
		for _, e := range es {
			if delete && strings.HasPrefix(e.Name(), "ssh_host_") {
				if err := v.Remove("/etc/ssh/" + e.Name()); err != nil {
					return err
				}
			}
		}
	}
	if len(given) > 0 {
		for name, text := range given {
			kind, part, _ := strings.Cut(name, "_")
			file, mode := "/etc/ssh/ssh_host_"+kind+"_key", 0o600
			switch part {
			case "public":
				file, mode = file+".pub", 0o644
			case "certificate":
				file, mode = file+"-cert.pub", 0o644
			}
			if err := v.Put(file, []byte(strings.TrimSpace(text)+"\n"), modeOf(uint32(mode))); err != nil {
				return err
			}
		}
		return nil
	}
	for _, kind := range []string{"ed25519", "ecdsa"} {
		file := "/etc/ssh/ssh_host_" + kind + "_key"
		if _, err := v.Stat(file); err == nil {
			continue
		}
		var key any
		var err error
		if kind == "ed25519" {
			_, key, err = ed25519.GenerateKey(rand.Reader)
		} else {
			key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		}
		if err != nil {
			return err
		}
		block, err := ssh.MarshalPrivateKey(key, "root@"+o.Hostname())
		if err != nil {
			return err
		}
		signer, err := ssh.NewSignerFromKey(key)
		if err != nil {
			return err
		}
		if err := v.Put(file, pem.EncodeToMemory(block), 0o600); err != nil {
			return err
		}
		if err := v.Put(file+".pub", ssh.MarshalAuthorizedKey(signer.PublicKey()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
