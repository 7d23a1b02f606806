// Package test holds what looks at the whole: the import walls here, and the
// tests of the system with real processes.
package test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module   = "github.com/homeiac/homelab/"
	maxLines = 600
)

// folders are all that may hold Go code. A new one is a decision: it belongs
// into docs/architecture.md too.
var folders = []string{
	"agent", "agent/hl-agent", "agent/host", "agent/driver", "agent/driver/drivertest", "agent/driver/proxmox",
	"agent/driver/proxmox/args", "agent/driver/proxmox/parse", "agent/guest", "agent/guest/guesttest", "agent/image",
	"controller", "controller/hl-controller", "controller/plan", "controller/plan/plantest", "controller/store",
	"cli", "cli/discover", "cli/hlctl", "cli/onhost", "cli/onhost/onhosttest", "cli/remote", "cli/remote/remotetest",
	"lab", "lab/hl-lab", "lab/disk", "lab/pve", "lab/wan",
	"lab/guest", "lab/guest/cloudinit", "lab/guest/k3s", "lab/guest/qga", "lab/guest/qmp", "lab/guest/shell",
	"lab/guest/sshd", "lab/guest/system", "lab/guest/tree",
	"internal/config", "internal/daemon", "internal/durable", "internal/enrol", "internal/gossip", "internal/human", "internal/k3s", "internal/manual", "internal/mark",
	"internal/pause", "internal/rpc", "internal/rpc/rpctest", "internal/sh", "internal/spec", "internal/sshexec", "internal/sshexec/sshtest", "internal/version",
	"test", "test/e2e",
}

// mains are the packages main; nothing may import them.
var mains = []string{"agent/hl-agent", "controller/hl-controller", "cli/hlctl", "lab/hl-lab"}

// pure packages decide on values alone: no files, network, clocks, cancellation.
var pure = []string{
	"agent/driver/proxmox/args", "agent/driver/proxmox/parse", "controller/plan",
	"internal/human", "internal/k3s", "internal/mark", "internal/sh", "internal/spec",
}

// impure are imports that a pure package must not have, with all below them.
var impure = []string{
	"context", "crypto/rand", "io/ioutil", "log", "math/rand", "net", "os", "plugin", "runtime", "syscall",
	"google.golang.org/grpc", "golang.org/x/sys",
}

// writers are what of package slog a pure package must not use; a type may say
// how it is logged (secrets do).
var writers = []string{"Debug", "Info", "Warn", "Error", "Log", "LogAttrs", "Default", "New"}

// clocks are what of package time a pure package must not use.
var clocks = []string{"After", "AfterFunc", "NewTicker", "NewTimer", "Now", "Since", "Sleep", "Tick", "Until"}

// file is one parsed Go file.
type file struct {
	name    string // from the root, with slashes
	dir     string
	lines   int
	test    bool
	pkg     string
	doc     string
	imports map[string]string // path to name in the file, "" when not given
	ast     *ast.File
}

func TestLayout(t *testing.T) {
	files := parse(t, "..")
	if len(files) < 20 {
		t.Fatalf("only %d Go files: this looks at the wrong place", len(files))
	}
	docs := make(map[string][]string)
	for _, f := range files {
		for _, fault := range faults(f) {
			t.Errorf("%s: %s", f.name, fault)
		}
		if _, ok := docs[f.dir]; !ok {
			docs[f.dir] = nil
		}
		// package test has test files only; elsewhere they do not describe the package.
		if f.doc != "" && (!f.test || f.dir == "test") {
			docs[f.dir] = append(docs[f.dir], f.name)
		}
	}
	for dir, in := range docs {
		if len(in) != 1 {
			t.Errorf("%s: %d package comments %v, there should be one", dir, len(in), in)
		}
	}
}

// faults are all that is wrong with one file.
func faults(f file) []string {
	var all []string
	if !slices.Contains(folders, f.dir) {
		all = append(all, "folder "+f.dir+" is not in the list of folders")
	}
	if f.lines > maxLines {
		all = append(all, strconv.Itoa(f.lines)+" lines; "+strconv.Itoa(maxLines)+" is the limit, split it")
	}
	if (f.pkg == "main") != slices.Contains(mains, f.dir) && !f.test {
		all = append(all, "package "+f.pkg+" does not belong into "+f.dir)
	}
	for imp := range f.imports {
		if inner, ok := strings.CutPrefix(imp, module); ok {
			if why := wall(f.dir, inner, f.test); why != "" {
				all = append(all, "imports "+inner+": "+why)
			}
		}
		if isPure(f) && within(imp, impure) {
			all = append(all, "imports "+imp+" in a pure package")
		}
	}
	if isPure(f) {
		for _, w := range uses(f, "log/slog", writers) {
			all = append(all, "uses "+w+" in a pure package")
		}
		for _, c := range uses(f, "time", clocks) {
			all = append(all, "uses "+c+" in a pure package: time is an argument")
		}
	}
	slices.Sort(all)
	return all
}

func isPure(f file) bool { return slices.Contains(pure, f.dir) && !f.test }

// wall says why code in folder from may not import folder to, empty when it may.
func wall(from, to string, test bool) string {
	top := func(dir string) string { first, _, _ := strings.Cut(dir, "/"); return first }
	of, at := top(from), top(to)
	switch {
	case slices.Contains(mains, to):
		return "nothing imports a main package"
	case from == "test":
		return "" // looks at the whole
	case at == "gen":
		return ""
	case at == "internal":
		if of == "gen" {
			return "generated code imports generated code only"
		}
		return ""
	case of == "internal" || of == "gen":
		return "imports go down only, and nothing is below internal but gen"
	case at == "test":
		return "nothing imports the tests"
	case test:
		// Tests may look across, and put the lab under what they test.
		return ""
	case of != at:
		return "agent, controller, cli and lab do not know each other"
	case slices.Contains(mains, from) || from == of:
		return "" // a main, or the package at the top, uses its own sub folders
	case to == at:
		return "a sub folder does not import the package above it"
	case of == "lab" && (from == "lab/pve" && to == "lab/guest" || from == "lab/guest" && to == "lab/pve"):
		return "a simulated host starts its guests as programs, as a real one does"
	}
	return ""
}

// within says whether one of the trees holds the import.
func within(imp string, trees []string) bool {
	for _, t := range trees {
		if imp == t || strings.HasPrefix(imp, t+"/") {
			// These compute, they do not connect or write.
			return imp != "net/netip" && imp != "net/url" && imp != "log/slog"
		}
	}
	return false
}

// uses lists the selectors of package pkg that the file has, of those named.
func uses(f file, pkg string, names []string) []string {
	local, ok := f.imports[pkg]
	if !ok {
		return nil
	}
	if local == "" {
		local = path.Base(pkg)
	}
	var found []string
	ast.Inspect(f.ast, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if id, ok := sel.X.(*ast.Ident); ok && id.Name == local && slices.Contains(names, sel.Sel.Name) {
			found = append(found, pkg+"."+sel.Sel.Name)
		}
		return true
	})
	return found
}

// parse reads all Go files below root but the generated ones.
func parse(t *testing.T, root string) []file {
	t.Helper()
	var files []file
	set := token.NewFileSet()
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			base := d.Name()
			if rel == "gen" || rel == "bin" || base == "testdata" || (rel != "." && strings.HasPrefix(base, ".")) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") {
			return nil
		}
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		f, err := parseSource(set, rel, src)
		files = append(files, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func parseSource(set *token.FileSet, name string, src []byte) (file, error) {
	tree, err := parser.ParseFile(set, name, src, parser.ParseComments)
	if err != nil {
		return file{}, err
	}
	f := file{
		name: name, dir: path.Dir(name), test: strings.HasSuffix(name, "_test.go"), pkg: tree.Name.Name,
		lines: strings.Count(string(src), "\n"), doc: tree.Doc.Text(), imports: make(map[string]string), ast: tree,
	}
	for _, spec := range tree.Imports {
		imp, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return file{}, err
		}
		f.imports[imp] = ""
		if spec.Name != nil {
			f.imports[imp] = spec.Name.Name
		}
	}
	return f, nil
}

// The walls themselves: a wall that lets everything through looks like a clean
// house.
func TestWalls(t *testing.T) {
	for _, c := range []struct {
		from, to string
		test, ok bool
	}{
		{"agent", "agent/host", false, true},
		{"agent/hl-agent", "agent", false, true},
		{"agent/hl-agent", "agent/driver/proxmox", false, true},
		{"agent/driver/proxmox", "agent/driver", false, true},
		{"agent/driver", "gen/homelab/v1", false, true},
		{"agent/driver", "internal/rpc", false, true},
		{"internal/gossip", "internal/rpc", false, true},
		{"controller/plan", "internal/k3s", false, true},
		{"test", "lab/pve", true, true},
		{"agent/driver/proxmox", "lab/pve", true, true},

		{"agent", "controller", false, false},
		{"controller", "agent", false, false},
		{"cli", "controller/plan", false, false},
		{"lab", "agent/driver/proxmox", false, false},
		{"lab/pve", "agent/driver/proxmox", false, false},
		{"agent", "lab", false, false},
		{"agent/host", "agent", false, false},
		{"lab/pve", "lab/guest", false, false},
		{"lab/guest", "lab/pve", false, false},
		{"internal/rpc", "agent", false, false},
		{"internal/rpc", "lab/pve", true, false},
		{"gen/homelab/v1", "internal/rpc", false, false},
		{"cli", "cli/hlctl", false, false},
		{"cli", "cli/hlctl", true, false},
		{"agent", "test", true, false},
	} {
		if why := wall(c.from, c.to, c.test); (why == "") != c.ok {
			t.Errorf("%s -> %s (test %v): %q", c.from, c.to, c.test, why)
		}
	}
}

func TestPureIsPure(t *testing.T) {
	for _, c := range []struct {
		name, src string
		want      []string
	}{
		{"controller/plan/a.go", "package plan\nimport (\"time\"; \"net/netip\"; \"strings\")\nvar _ = time.Second", nil},
		{"controller/plan/a.go", "package plan\nimport \"time\"\nfunc f() { time.Sleep(1); _ = time.Now() }", []string{
			"uses time.Now in a pure package: time is an argument", "uses time.Sleep in a pure package: time is an argument",
		}},
		{"internal/k3s/a.go", "package k3s\nimport clock \"time\"\nvar f = clock.Since", []string{"uses time.Since in a pure package: time is an argument"}},
		{"internal/spec/a.go", "package spec\nimport (\"os\"; \"context\"; \"net/http\")", []string{
			"imports context in a pure package", "imports net/http in a pure package", "imports os in a pure package",
		}},
		{"internal/spec/a_test.go", "package spec\nimport \"os\"", nil},
		{"agent/a.go", "package agent\nimport (\"os\"; \"time\")\nvar _ = time.Now", nil},
		{"agent/odd/a.go", "package odd", []string{"folder agent/odd is not in the list of folders"}},
		{"agent/a.go", "package main", []string{"package main does not belong into agent"}},
		{"agent/a.go", "package agent" + strings.Repeat("\n", maxLines+1), []string{"601 lines; 600 is the limit, split it"}},
	} {
		f, err := parseSource(token.NewFileSet(), c.name, []byte(c.src))
		if err != nil {
			t.Fatal(err)
		}
		if got := faults(f); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q\nfaults %q\nwant   %q", c.name, c.src, got, c.want)
		}
	}
}
