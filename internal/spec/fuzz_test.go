package spec

import (
	"os"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// checkParse holds what Parse and InlineFiles promise of any text.
func checkParse(t interface{ Fatalf(string, ...any) }, data []byte) {
	s, faults := Parse("f", data)
	if (s == nil) != (len(faults) > 0) {
		t.Fatalf("neither or both of a Spec and faults: %v %v", s, faults)
	}
	lines := len(splitLines(data))
	sorted := slices.Clone(faults)
	sorted.sort()
	if !slices.Equal(sorted, faults) {
		t.Fatalf("not sorted: %v", faults)
	}
	for _, f := range faults {
		if f.Line > lines+1 || f.Line < 0 || (f.Line > 0 && f.Column < 1) || f.Message == "" {
			t.Fatalf("%+v", f)
		}
	}
	read := func(path string) ([]byte, error) {
		if strings.Contains(path, "x") {
			return nil, os.ErrNotExist
		}
		return []byte(laptop), nil
	}
	inlined, _, wrong := InlineFiles("f", data, read)
	if len(splitLines(inlined)) != lines {
		t.Fatalf("lines have moved: %q", inlined)
	}
	if s == nil || len(wrong) > 0 {
		return
	}
	after, faults := Parse("f", inlined)
	if after == nil {
		t.Fatalf("a good Spec has faults once its files are in it: %v\n%s", faults, inlined)
	}
	for _, name := range s.GuestNames() {
		s.Line("guests." + name + ".memory")
		if g := after.Guests[name]; len(g.KeyFiles) > len(s.Guests[name].KeyFiles) {
			t.Fatalf("%+v", g)
		}
	}
}

// seeds are the example and all goldens.
func seeds(t interface{ Fatal(...any) }) []string {
	text, err := os.ReadFile("../../docs/examples/homelab.yaml")
	if err != nil {
		t.Fatal(err)
	}
	all := []string{string(text)}
	for _, dir := range []string{"testdata/broken/", "testdata/warnings/"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			b, err := os.ReadFile(dir + e.Name())
			if err != nil {
				t.Fatal(err)
			}
			_, yaml, _ := strings.Cut(string(b), "-- homelab.yaml --\n")
			for _, section := range []string{"-- faults --\n", "-- warnings --\n"} {
				yaml, _, _ = strings.Cut(yaml, section)
			}
			all = append(all, yaml)
		}
	}
	return all
}

func FuzzParse(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) { checkParse(t, data) })
}

// Real Specs with pieces dropped, doubled, swapped for values of other kinds
// and cut short.
func TestNoTextMakesParsePanic(t *testing.T) {
	texts := seeds(t)
	odd := []string{"null", "~", "true", "[]", "{}", "[[]]", "{a: b}", "-1", "1e400", "99999999999999999999", "0x1F", "!!binary aGk=", "!!int x",
		"&a [*a]", "*b", "<<", "? [a]: b", "|\n", "'", "\"\\x00\"", "\t", "2026-01-01", "é", "\xff", "---", ".inf", "y", "0o17", "!!map []"}
	rapid.Check(t, func(t *rapid.T) {
		lines := strings.SplitAfter(rapid.SampledFrom(texts).Draw(t, "text"), "\n")
		for range rapid.IntRange(1, 4).Draw(t, "changes") {
			i := rapid.IntRange(0, len(lines)-1).Draw(t, "line")
			switch rapid.IntRange(0, 4).Draw(t, "change") {
			case 0:
				lines[i] = ""
			case 1:
				lines[i] += lines[i]
			case 2:
				if key, _, ok := strings.Cut(lines[i], ":"); ok {
					lines[i] = key + ": " + rapid.SampledFrom(odd).Draw(t, "value") + "\n"
				}
			case 3:
				lines[i] = lines[i][:rapid.IntRange(0, len(lines[i])).Draw(t, "cut")] + "\n"
			case 4:
				lines[i] = strings.Replace(lines[i], rapid.SampledFrom([]string{" ", ",", "{", "[", "i", "0"}).Draw(t, "old"), rapid.SampledFrom(odd).Draw(t, "new"), 1)
			}
		}
		checkParse(t, []byte(strings.Join(lines, "")))
	})
}

// Wherever somebody puts a URL with a password, also as a key, no fault and no
// warning shows it.
func TestNoPasswordIsShown(t *testing.T) {
	tried := map[string]bool{}
	for _, secret := range []string{`"https://me:hunter2@example.org/a"`, `"http://me:hun/ter2 hunter2@example.org/a b"`, `"file://me:hunter2@/a"`} {
		for _, text := range seeds(t) {
			lines := strings.Split(text, "\n")
			for i, line := range lines {
				key, _, ok := strings.Cut(line, ": ")
				if !ok || tried[secret+line] {
					continue
				}
				tried[secret+line] = true
				indent := line[:len(line)-len(strings.TrimLeft(line, " "))]
				for _, put := range []string{key + ": " + secret, key + ": [" + secret + "]", key + ": {url: " + secret + "}", indent + secret + ": 1"} {
					changed := slices.Clone(lines)
					changed[i] = put
					s, faults := Parse("f", []byte(strings.Join(changed, "\n")))
					if s != nil {
						faults = s.Warnings
					}
					if shown := faults.String(); strings.Contains(shown, "hunter") {
						t.Fatalf("%s\n%s", put, shown)
					}
				}
			}
		}
	}
}
