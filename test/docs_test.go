package test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// proof is a test as docs/architecture.md names it: `controller/plan.TestX`.
var proof = regexp.MustCompile("`([a-z0-9/]+)\\.(Test[A-Za-z0-9]+)`")

// A guarantee that no test holds any more is a wish.
func TestEachGuaranteeNamesTestsThatExist(t *testing.T) {
	data, err := os.ReadFile("../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(data), "\n## Guarantees\n")
	text, _, _ = strings.Cut(text, "\n## ")
	items := regexp.MustCompile(`(?m)^\d+\. `).Split(text, -1)[1:]
	if len(items) < 10 {
		t.Fatalf("only %d guarantees are found", len(items))
	}
	for i, item := range items {
		named := proof.FindAllStringSubmatch(item, -1)
		if len(named) == 0 {
			t.Errorf("guarantee %d names no test: %s", i+1, item)
		}
		for _, m := range named {
			if !holds(t, filepath.Join("..", filepath.FromSlash(m[1])), m[2]) {
				t.Errorf("guarantee %d: %s has no %s", i+1, m[1], m[2])
			}
		}
	}
}

// holds says whether a folder's tests define one of that name.
func holds(t *testing.T, dir, name string) bool {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), "\nfunc "+name+"(t ") {
			return true
		}
	}
	return false
}

// A target that nobody runs finds nothing.
func TestMakeFuzzRunsEveryFuzzTarget(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, top := range []string{"agent", "cli", "controller", "internal", "lab"} {
		err := filepath.WalkDir(filepath.Join("..", top), func(path string, e os.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			for _, m := range regexp.MustCompile(`(?m)^func (Fuzz\w+)\(f `).FindAllSubmatch(data, -1) {
				found++
				folder := strings.TrimPrefix(filepath.ToSlash(filepath.Dir(path)), "../")
				if line := "$(call fuzz_one," + folder + "," + string(m[1]) + ","; !strings.Contains(string(makefile), line) {
					t.Errorf("make fuzz has no %s", line)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found < 10 {
		t.Errorf("only %d targets were found", found)
	}
}
