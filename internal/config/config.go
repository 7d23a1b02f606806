// Package config reads configuration files strictly: one YAML document, no
// unknown key, and all faults at once, each with its line. It also holds what
// every daemon of a fleet is configured with. What the keys of one program mean
// it leaves to that program; the Spec is read by package spec.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// ErrEmpty is a file in which nothing is set, such as the one that a package brings: what
// it lacks is not this key or that one, but whoever fills it in.
var ErrEmpty = errors.New("nothing is set in it yet")

// File is a configuration file that was read, and the faults found in it.
type File struct {
	name   string
	dir    string
	root   *yaml.Node // the document's mapping; nil when there is none
	broken bool       // it is no YAML, so what is missing in it is not known
	empty  bool       // it holds comments at most
	faults []error
}

// Read decodes a file into v, a pointer to a struct that holds the defaults. The
// error says only that the file could not be read; what is wrong inside it is
// kept for Err, so that it is told together with what the caller finds.
func Read(name string, v any) (*File, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w; name its file with --config FILE", err)
	}
	return Parse(name, data, v), nil
}

// Parse is Read for text that is there already; name is what it is called, and
// its folder is what relative paths are relative to.
func Parse(name string, data []byte, v any) *File {
	f := &File{name: name, dir: filepath.Dir(name)}
	if abs, err := filepath.Abs(f.dir); err == nil {
		f.dir = abs
	}
	var doc yaml.Node
	if yaml.Unmarshal(data, &doc) == nil && len(doc.Content) == 1 && doc.Content[0].Kind == yaml.MappingNode {
		f.root = doc.Content[0]
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	err := dec.Decode(v)
	var typed *yaml.TypeError
	switch {
	case errors.Is(err, io.EOF):
		f.empty = true // whatever is needed is missing
		return f
	case errors.As(err, &typed):
		for _, text := range typed.Errors {
			f.decoded(text)
		}
	case err != nil:
		f.decoded(strings.TrimPrefix(err.Error(), "yaml: "))
		f.broken = true
		return f
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		f.add(0, "a second document begins in it: it is one document")
	}
	return f
}

var (
	atLine     = regexp.MustCompile(`^line (\d+): (.*)$`)
	unknownKey = regexp.MustCompile(`^field (\S+) not found in type \S+$`)
)

// decoded adds a fault in the words of the YAML package, which name Go types.
func (f *File) decoded(text string) {
	line := 0
	if m := atLine.FindStringSubmatch(text); m != nil {
		_, _ = fmt.Sscan(m[1], &line) // digits
		text = m[2]
	}
	f.add(line, unknownKey.ReplaceAllString(text, "unknown key $1"))
}

func (f *File) add(line int, text string) {
	where := f.name
	if line > 0 {
		where = fmt.Sprintf("%s:%d", f.name, line)
	}
	f.faults = append(f.faults, fmt.Errorf("%s: %s", where, text))
}

// Fault adds a fault in the value of a key ("port", "etcd.ca"), with its line.
func (f *File) Fault(key, format string, args ...any) {
	line, _ := f.find(key)
	f.add(line, key+": "+fmt.Sprintf(format, args...))
}

// Need adds a fault when the value of a key is empty: with the line of the key,
// or of what it should stand in; a key of the whole file that is not there has
// none.
func (f *File) Need(key, value string) {
	if value != "" || f.broken {
		return
	}
	line, there := f.find(key)
	if there {
		f.add(line, key+" is empty")
		return
	}
	f.add(line, key+" is missing")
}

// find is the line of a key, or of the deepest key above it that is there.
func (f *File) find(key string) (line int, there bool) {
	n := f.root
	for part := range strings.SplitSeq(key, ".") {
		next := (*yaml.Node)(nil)
		if n != nil && n.Kind == yaml.MappingNode {
			for i := 0; i+1 < len(n.Content); i += 2 {
				if n.Content[i].Value == part {
					line, next = n.Content[i].Line, n.Content[i+1]
				}
			}
		}
		if next == nil {
			return line, false
		}
		n = next
	}
	return line, true
}

// Paths makes paths absolute: what is relative is relative to the file. An
// empty one stays empty.
func (f *File) Paths(paths ...*string) {
	for _, p := range paths {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(f.dir, *p)
		}
	}
}

// Err is all faults, one a line, nil when there are none. Those of an empty file are one.
func (f *File) Err() error {
	if f.empty && len(f.faults) > 0 {
		return fmt.Errorf("%s: %w", f.name, ErrEmpty)
	}
	return errors.Join(f.faults...)
}
