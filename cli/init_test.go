package cli

import (
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/rpc"
)

// beginner is a folder for hlctl init, which no controller answers for.
type beginner struct {
	*testing.T
	dir string
}

func newBeginner(t *testing.T) *beginner {
	f := &beginner{t, t.TempDir()}
	t.Chdir(f.dir)
	return f
}

func (f *beginner) run(in string, args ...string) ran {
	f.Helper()
	var out, errw buffer
	a := &app{in: strings.NewReader(in), out: &out, errw: &errw, now: time.Now, columns: 80}
	code := a.main(f.Context(), append([]string{"--config", filepath.Join(f.dir, "conf", "hlctl.yaml")}, args...))
	return ran{code, out.String(), errw.String()}
}

// files are all files below the folder with what is in them.
func (f *beginner) files() map[string]string {
	f.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(f.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		all[strings.TrimPrefix(path, f.dir+"/")] = string(data)
		if info, _ := d.Info(); info.Mode().Perm() != 0o600 {
			f.Errorf("%s has mode %s", path, info.Mode())
		}
		return err
	})
	if err != nil {
		f.Fatal(err)
	}
	return all
}

var founded = []string{
	"conf/admin.key", "conf/admin.pem", "conf/ca.pem", "conf/controller-pve1/ca.crt", "conf/controller-pve1/controller.crt",
	"conf/controller-pve1/controller.key", "conf/controller-pve1/controller.yaml", "conf/controller-pve1/fleet.key",
	"conf/controller-pve1/gossip.keys", "conf/controller-pve1/issuing-ca.key", "conf/controller-pve1/issuing-ca.pem",
	"conf/fleet.key", "conf/hlctl.yaml", "conf/root-ca.key", "conf/root-ca.pem", "homelab.yaml",
}

func TestAFleetIsBegunOnceAndNothingOfItIsMadeAgain(t *testing.T) {
	f := newBeginner(t)
	init := []string{"init", "home", "--controller", "pve1@192.0.2.10"}
	got := f.run("", init...)
	if got.code != 0 || !strings.Contains(got.out, "has no passphrase") || !strings.Contains(got.out, "Back up") {
		t.Fatalf("%+v", got)
	}
	first := f.files()
	if names := slices.Sorted(maps.Keys(first)); !slices.Equal(names, founded) {
		t.Fatal(names)
	}
	if first["conf/fleet.key"] != first["conf/controller-pve1/fleet.key"] || first["conf/ca.pem"] != first["conf/root-ca.pem"] {
		t.Error("copies differ")
	}
	if _, err := mark.ParseKey([]byte(first["conf/fleet.key"])); err != nil {
		t.Error(err)
	}
	for _, c := range []struct{ cert, key, id string }{
		{"conf/admin.pem", "conf/admin.key", "admin@admin"},
		{"conf/controller-pve1/controller.crt", "conf/controller-pve1/controller.key", "controller@pve1"},
	} {
		creds, err := rpc.LoadTLS("conf/ca.pem", c.cert, c.key)
		if err != nil || creds.Identity().String() != c.id {
			t.Error(creds.Identity(), err)
		}
	}
	issuing, err := rpc.LoadCA("conf/controller-pve1/issuing-ca.pem", "conf/controller-pve1/issuing-ca.key", nil)
	if err != nil || issuing.IsRoot() {
		t.Error(err)
	}
	for _, secret := range []string{first["conf/fleet.key"], first["conf/root-ca.key"]} {
		if strings.Contains(got.out, strings.TrimSpace(secret)) {
			t.Error("a secret is shown")
		}
	}
	if got := f.run("", "validate", "-f", "homelab.yaml"); got.code != 0 {
		t.Errorf("%+v", got)
	}
	// A mistyped address is not that of the controller there, whatever its name.
	if got := f.run("", "init", "home", "--controller", "pve1@192.0.2.11"); got.code != 1 || !strings.Contains(got.err, "not 192.0.2.11:8401 but at 192.0.2.10:8401") || got.out != "" {
		t.Errorf("another address: %+v", got)
	}
	// Its folder is on the controller's host now, and is not made anew.
	if err := os.RemoveAll("conf/controller-pve1"); err != nil {
		t.Fatal(err)
	}
	want := f.files()
	got = f.run("", init...)
	if got.code != 0 || !strings.Contains(got.out, "Not there any more, and not made again:\n  the controller's folder") {
		t.Errorf("%+v", got)
	}
	if strings.Contains(got.out, "start hl-controller there") {
		t.Errorf("%+v", got)
	}
	if got := f.run("", "init", "home", "--controller", "pve2@192.0.2.11"); got.code != 1 || !strings.Contains(got.err, "init makes the first one only") {
		t.Errorf("a second controller: %+v", got)
	}
	if !maps.Equal(want, f.files()) {
		t.Error("something was changed")
	}
}

func TestAnInterruptedInitIsBroughtToItsEnd(t *testing.T) {
	f := newBeginner(t)
	write(t, "pass", "correct horse\nand this not\n")
	init := []string{"init", "home", "--controller", "pve1@192.0.2.10", "--passphrase-file", "pass"}
	if got := f.run("", init...); got.code != 0 || !strings.Contains(got.out, "has a passphrase") {
		t.Fatalf("%+v", got)
	}
	whole := f.files()
	for _, lost := range []string{"conf/hlctl.yaml", "conf/controller-pve1/controller.crt", "conf/controller-pve1/gossip.keys", "conf/admin.pem"} {
		if err := os.Remove(lost); err != nil {
			t.Fatal(err)
		}
	}
	if got := f.run("wrong\n", init[:4]...); got.code != 1 || !strings.Contains(got.err, "passphrase is not the right one") {
		t.Errorf("%+v", got)
	}
	if got := f.run("correct horse\n", init[:4]...); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	if err := os.Remove("conf/hlctl.yaml"); err != nil {
		t.Fatal(err)
	}
	if got := f.run("correct horse\n", "init", "home", "--controller", "pve1@192.0.2.11"); got.code != 1 || !strings.Contains(got.err, "controller.crt is not for the address 192.0.2.11") {
		t.Errorf("another address: %+v", got)
	}
	if got := f.run("correct horse\n", init[:4]...); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	now := f.files()
	if names := slices.Sorted(maps.Keys(now)); !slices.Equal(names, append(founded, "pass")) {
		t.Error(names)
	}
	for _, kept := range []string{"conf/root-ca.key", "conf/fleet.key", "conf/controller-pve1/controller.key", "conf/controller-pve1/issuing-ca.pem"} {
		if now[kept] != whole[kept] {
			t.Errorf("%s was made anew", kept)
		}
	}
}

func TestAnEmptyFlagOfInitIsNotLeftOut(t *testing.T) {
	f := newBeginner(t)
	for _, flag := range []string{"--from-hosts", "--from-env", "--passphrase-file"} {
		got := f.run("", "init", "home", "--controller", "pve1@192.0.2.10", flag, "")
		if got.code != 1 || !strings.Contains(got.err, flag+" is empty") || len(f.files()) != 0 {
			t.Errorf("%s: %+v", flag, got)
		}
	}
}

func TestInitTouchesNothingOfAnotherFleet(t *testing.T) {
	f := newBeginner(t)
	init := func(fleet string, args ...string) ran {
		return f.run("", append([]string{"init", fleet, "--controller", "pve1@192.0.2.10"}, args...)...)
	}
	if got := init("home"); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	before := f.files()
	for _, c := range []struct {
		fleet, says string
		args        []string
	}{
		{"away", "is no root of fleet away but of home; choose another folder with --dir", nil},
		{"home", "has a context home already, whose files are elsewhere", []string{"--dir", "other"}},
		{"Home", "is not the name of a fleet", nil},
		{"../x", "is not the name of a fleet", nil},
		{"x", "it is NAME@IP", []string{"--controller", "pve1.example.org"}},
		{"x", "it is NAME@IP", []string{"--controller", "../pve1@192.0.2.1"}},
		{"x", "no such file", []string{"--from-env", "none"}},
		{"x", "choose another name", []string{"--name", "root-ca"}},
		{"x", `name "../x"`, []string{"--name", "../x"}},
	} {
		if got := init(c.fleet, c.args...); got.code != 1 || !strings.Contains(got.err, c.says) {
			t.Errorf("%s %v: %+v", c.fleet, c.args, got)
		}
	}
	if !maps.Equal(before, f.files()) {
		t.Error("something was changed")
	}
	// A second fleet in a folder of its own: the context is added, and what is there stays.
	got := init("away", "--dir", "other", "--out", "away.yaml")
	if got.code != 0 || !strings.Contains(got.out, "The current context stays home") {
		t.Fatalf("%+v", got)
	}
	for name, text := range before {
		if now := f.files()[name]; now != text && name != "conf/hlctl.yaml" {
			t.Errorf("%s was changed", name)
		}
	}
	config := f.files()["conf/hlctl.yaml"]
	if !strings.Contains(config, "current: home") || !strings.Contains(config, "away:") || !strings.Contains(config, f.dir+"/other/admin.pem") {
		t.Error(config)
	}
	// A fleet's key that was lost is not made anew.
	if err := os.Remove("other/fleet.key"); err != nil {
		t.Fatal(err)
	}
	write(t, "conf/hlctl.yaml", before["conf/hlctl.yaml"])
	if got := init("away", "--dir", "other"); got.code != 1 || !strings.Contains(got.err, "bring it back from a backup or from a controller") {
		t.Errorf("%+v", got)
	}
}

func TestNothingOfASecretInAnEnvFileIsShown(t *testing.T) {
	f := newBeginner(t)
	write(t, ".env", "NODE_1=pve\nAPI_TOKEN=hunter2\nhunter2\nNODE_2=hunter2!\nHUNTER2=x\n")
	for _, format := range []string{"table", "json"} {
		got := f.run("", "init", "home", "--controller", "pve1@192.0.2.10", "--from-env", ".env", "-o", format)
		if got.code != 0 || strings.Contains(strings.ToLower(got.out+got.err+f.files()["homelab.yaml"]), "hunter") {
			t.Errorf("%+v", got)
		}
		if format == "json" && !json.Valid([]byte(got.out)) {
			t.Errorf("%+v", got)
		}
		if format == "table" && !strings.Contains(got.out, ".env:3 is no KEY=VALUE") {
			t.Errorf("%+v", got)
		}
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
