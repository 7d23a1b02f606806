package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	maxBytes = 16 << 20 // of a Spec; 10,000 guests take about 3 MiB
	maxNodes = 4 << 20  // of a Spec with its aliases written out
)

// document reads data as one YAML mapping and resolves its aliases. Without
// faults root is never nil.
func document(name string, data []byte) (root *yaml.Node, faults Faults) {
	whole := func(format string, args ...any) (*yaml.Node, Faults) {
		return nil, Faults{{File: name, Message: fmt.Sprintf(format, args...)}}
	}
	if len(data) > maxBytes {
		return whole("%d bytes are more than a Spec may have (%d)", len(data), maxBytes)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
		return whole("the file is empty: a Spec begins with apiVersion: %s", APIVersion)
	} else if err != nil {
		return nil, syntaxFaults(name, data, err)
	}
	var next yaml.Node
	if err := decoder.Decode(&next); err == nil {
		return nil, Faults{{File: name, Line: next.Line, Column: next.Column,
			Message: "a second document begins here: a Spec is one document"}}
	} else if !errors.Is(err, io.EOF) {
		return nil, syntaxFaults(name, data, err)
	}
	root = doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return whole("the file is empty: a Spec begins with apiVersion: %s", APIVersion)
	}
	r := resolver{file: name, size: map[*yaml.Node]int{}}
	if r.resolve(root) > maxNodes && len(r.faults) == 0 {
		return whole("its aliases write out to more than %d entries", maxNodes)
	}
	if len(r.faults) > 0 {
		return nil, r.faults
	}
	if root.Kind != yaml.MappingNode {
		return nil, Faults{{File: name, Line: root.Line, Column: root.Column,
			Message: fmt.Sprintf("%s stands where a mapping is wanted: a Spec begins with apiVersion: %s", kind(root), APIVersion)}}
	}
	return root, nil
}

var (
	syntaxLine  = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)
	parserError = regexp.MustCompile(`^did not find expected (['<]|key|node)`)
	anchorError = regexp.MustCompile(`^unknown anchor '(.*)' referenced`)
)

// syntaxFaults places what the YAML parser says. It names a line at best, and
// for a tab in an indentation its text is hard to understand: those are looked
// for first.
func syntaxFaults(name string, data []byte, err error) Faults {
	var faults Faults
	var lines []string
	for _, line := range splitLines(data) {
		lines = append(lines, string(line))
	}
	for i, line := range lines {
		indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
		if at := strings.IndexByte(indent, '\t'); at >= 0 && strings.TrimSpace(line) != "" {
			faults = append(faults, Fault{File: name, Line: i + 1, Column: at + 1,
				Message: "a tab in the indentation: YAML wants spaces"})
		}
	}
	if len(faults) > 0 {
		return faults
	}
	f := Fault{File: name, Message: "not YAML: " + err.Error()}
	if m := syntaxLine.FindStringSubmatch(err.Error()); m != nil {
		f.Message = "not YAML: " + m[2]
		n, err := strconv.Atoi(m[1])
		if err == nil && parserError.MatchString(m[2]) {
			n++ // yaml counts the lines of these from 0
		}
		if at := anchorError.FindStringSubmatch(m[2]); at != nil {
			n, err = 1, nil
			for i, line := range lines {
				if strings.Contains(line, "*"+at[1]) {
					n = i + 1
					break
				}
			}
		}
		if err == nil && n > 0 {
			f.Line, f.Column = n, 1
			if n <= len(lines) {
				f.Column = len(lines[n-1]) - len(strings.TrimLeft(lines[n-1], " ")) + 1
			}
		}
	}
	return Faults{f}
}

// resolver replaces aliases by what they name, so that nothing else must know
// of them. The result shares nodes and is not to be changed; size counts it as
// if it were written out, to refuse a few lines that unfold into gigabytes.
type resolver struct {
	file   string
	size   map[*yaml.Node]int // 0 while it is being counted
	faults Faults
}

func (r *resolver) resolve(n *yaml.Node) int {
	if size, seen := r.size[n]; seen {
		return size
	}
	r.size[n] = 0
	total := 1
	for i, child := range n.Content {
		if child.Kind == yaml.AliasNode {
			target := child.Alias
			if size, seen := r.size[target]; seen && size == 0 {
				r.faults = append(r.faults, Fault{File: r.file, Line: child.Line, Column: child.Column,
					Message: fmt.Sprintf("the alias *%s stands inside what it names", child.Value)})
				continue
			}
			n.Content[i] = target
			child = target
		}
		total = min(total+r.resolve(child), maxNodes+1)
	}
	r.size[n] = total
	return total
}

// kind names what a node is, for messages.
func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "nothing"
		}
		return show(n.Value)
	}
	return "something else"
}

// Line is where an item of the Spec stands, as hosts.pve2.bridges.lan or
// guests.k3s-2.networks[0].ip; both are from 1. An item that a guest has from
// the defaults is found there, and one that is not in the file at all where
// the nearest part of its path is. Only an empty path gives 0, 0.
func (s *Spec) Line(path string) (line, column int) {
	if s.root == nil || path == "" {
		return 0, 0
	}
	segments := splitPath(path)
	line, column, found := locate(s.root, segments)
	if !found && len(segments) > 2 && segments[0] == "guests" {
		inherited := append([]string{"defaults"}, segments[2:]...)
		if l, c, ok := locate(s.root, inherited); ok {
			return l, c
		}
	}
	return line, column
}

// locate walks as far as it can and says whether it came to the end.
func locate(n *yaml.Node, segments []string) (line, column int, found bool) {
	line, column = n.Line, n.Column
	for _, segment := range segments {
		key, value := child(n, segment)
		if value == nil {
			return line, column, false
		}
		n, line, column = value, key.Line, key.Column
	}
	return line, column, true
}

// child is one entry of a mapping or list; for a list key is the entry itself.
func child(n *yaml.Node, segment string) (key, value *yaml.Node) {
	if n.Kind == yaml.SequenceNode {
		i, err := strconv.Atoi(segment)
		if err != nil || i < 0 || i >= len(n.Content) {
			return nil, nil
		}
		return n.Content[i], n.Content[i]
	}
	if n.Kind != yaml.MappingNode {
		return nil, nil
	}
	for _, e := range entries(n) {
		if e.key.Value == segment {
			return e.key, e.value
		}
	}
	return nil, nil
}

// splitPath divides guests.k3s-2.networks[0].ip at its dots and brackets.
func splitPath(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' })
}

type entry struct{ key, value *yaml.Node }

// entries are the entries of a mapping, merge keys (<<) written out: what
// stands in the mapping itself wins, then the earlier merged one.
func entries(n *yaml.Node) []entry {
	plain := make([]entry, 0, len(n.Content)/2)
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Tag != "!!merge" {
			plain = append(plain, entry{key, value})
			continue
		}
		if value.Kind == yaml.SequenceNode {
			merged = append(merged, value.Content...)
		} else {
			merged = append(merged, value)
		}
	}
	if len(merged) == 0 {
		return plain
	}
	have := map[string]bool{}
	for _, e := range plain {
		have[e.key.Value] = true
	}
	for _, m := range merged {
		if m.Kind != yaml.MappingNode {
			continue // a fault, reported where mappings are read
		}
		for _, e := range entries(m) {
			if !have[e.key.Value] {
				have[e.key.Value] = true
				plain = append(plain, e)
			}
		}
	}
	return plain
}
