package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/ssh"
)

// isKeyFile says whether an sshKeys entry is a path and not a key.
func isKeyFile(s string) bool {
	for _, prefix := range []string{"~", "/", "./", "../"} {
		if strings.HasPrefix(s, prefix) {
			return true
		}
	}
	return false
}

// checkKeys says what is wrong with public keys, one a line; empty lines and
// comments are left out. Its messages never quote the keys: what was given by
// mistake may be a private one.
func checkKeys(text string) (keys []string, err error) {
	if strings.Contains(text, "PRIVATE KEY") || strings.Contains(text, "PuTTY-User-Key-File") {
		return nil, errors.New("is a private key: name its public half (.pub)")
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if _, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line)); err != nil {
			return nil, errors.New("is not a public SSH key (as ssh-ed25519 AAAA…)")
		}
		keys = append(keys, line)
	}
	if len(keys) == 0 {
		return nil, errors.New("holds no key")
	}
	return keys, nil
}

func (p *parser) sshKeys(m *mapping, g *Guest) {
	n := m.value("sshKeys")
	if n == nil {
		return
	}
	g.SSHKeys, g.KeyFiles = nil, nil
	items := p.list(n, m.at("sshKeys"))
	if n.Kind == yaml.SequenceNode && len(items) == 0 {
		p.fault(n, m.at("sshKeys"), "is empty: nobody could log in")
	}
	for i, item := range items {
		at := index(m.at("sshKeys"), i)
		s, ok := p.text(item, at)
		if !ok {
			continue
		}
		if isKeyFile(s) {
			g.KeyFiles = append(g.KeyFiles, s)
			continue
		}
		keys, err := checkKeys(s)
		if err != nil {
			p.fault(item, at, "%s", err)
			continue
		}
		for _, key := range keys {
			if !slices.Contains(g.SSHKeys, key) {
				g.SSHKeys = append(g.SSHKeys, key)
			}
		}
	}
}

// UnreadFiles are faults for the files that the Spec names and that were not
// inlined. Whoever is about to plan refuses a Spec that has any: the
// controller cannot read the files of the person who wrote it.
func (s *Spec) UnreadFiles() Faults {
	var faults Faults
	seen := map[Fault]bool{}
	for _, name := range s.GuestNames() {
		for _, file := range s.Guests[name].KeyFiles {
			path := "guests." + name + ".sshKeys"
			if !s.Guests[name].Own["sshKeys"] {
				path = "defaults.sshKeys"
			}
			line, column := s.Line(path)
			f := Fault{File: s.File, Line: line, Column: column, Path: path, Message: "the key file " + file + " was not read"}
			if !seen[f] {
				seen[f] = true
				faults = append(faults, f)
			}
		}
	}
	faults.sort()
	return faults
}

// InlineFiles puts the contents of the files that a Spec names (sshKeys
// entries that begin with ~, /, ./ or ../) into its text, each in the place of
// its name, so that all lines stay where they are. read gets the path as it is
// written; what ~ and . mean is its business.
//
// A file that does not exist is in missing and its name stays in the text: a
// warning for validate, a fault for plan and apply. Everything else that is
// wrong with a file, a private key above all, is in faults and is never put
// into the text. Text that is no YAML comes back as it is: Parse says what is
// wrong with it.
func InlineFiles(name string, data []byte, read func(path string) ([]byte, error)) (inlined []byte, missing []Fault, faults Faults) {
	root, bad := document(name, data)
	if len(bad) > 0 {
		return data, nil, nil
	}
	in := inliner{name: name, read: read, texts: map[string]string{}, errs: map[string]error{}, done: map[*yaml.Node]bool{}}
	if _, n := child(root, "defaults"); n != nil {
		in.keysOf(n, "defaults")
	}
	if _, n := child(root, "guests"); n != nil && n.Kind == yaml.MappingNode {
		for _, e := range entries(n) {
			in.keysOf(e.value, join("guests", e.key.Value))
		}
	}
	in.missing.sort()
	in.faults.sort()
	if len(in.edits) == 0 {
		return data, in.missing, in.faults
	}
	out, unplaced := in.apply(data)
	in.faults = append(in.faults, unplaced...)
	in.faults.sort()
	return out, in.missing, in.faults
}

type edit struct {
	node *yaml.Node
	path string
	text string // replacement, quoted
}

type inliner struct {
	name    string
	read    func(string) ([]byte, error)
	texts   map[string]string // by file, so that none is read twice
	errs    map[string]error
	done    map[*yaml.Node]bool // an alias brings the same node again
	edits   []edit
	missing Faults
	faults  Faults
}

func (in *inliner) keysOf(n *yaml.Node, path string) {
	_, list := child(n, "sshKeys")
	if list == nil || list.Kind != yaml.SequenceNode {
		return
	}
	for i, item := range list.Content {
		if item.Kind != yaml.ScalarNode || item.Tag != "!!str" || !isKeyFile(item.Value) || in.done[item] {
			continue
		}
		in.done[item] = true
		at := index(join(path, "sshKeys"), i)
		f := Fault{File: in.name, Line: item.Line, Column: item.Column, Path: at}
		text, err := in.file(item.Value)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			f.Message = "the key file " + item.Value + " does not exist"
			in.missing = append(in.missing, f)
		case err != nil:
			f.Message = item.Value + ": " + err.Error()
			in.faults = append(in.faults, f)
		default:
			in.edits = append(in.edits, edit{node: item, path: at, text: text})
		}
	}
}

// maxKeyFile bounds a file of public keys, in bytes.
const maxKeyFile = 64 << 10

func (in *inliner) file(path string) (text string, err error) {
	if text, ok := in.texts[path]; ok {
		return text, in.errs[path]
	}
	defer func() { in.texts[path], in.errs[path] = text, err }()
	data, err := in.read(path)
	if err != nil {
		return "", err
	}
	if len(data) > maxKeyFile {
		return "", fmt.Errorf("%d bytes are more than a file of keys has", len(data))
	}
	keys, err := checkKeys(string(data))
	if err != nil {
		return "", err
	}
	return strconv.QuoteToGraphic(strings.Join(keys, "\n")), nil
}

// apply replaces each entry where it stands, last first so that the columns of
// the others stay right.
func (in *inliner) apply(data []byte) ([]byte, Faults) {
	slices.SortFunc(in.edits, func(a, b edit) int {
		if a.node.Line != b.node.Line {
			return b.node.Line - a.node.Line
		}
		return b.node.Column - a.node.Column
	})
	var unplaced Faults
	lines := splitLines(data)
	for _, e := range in.edits {
		start, length, ok := place(lines, e.node)
		if !ok {
			unplaced = append(unplaced, Fault{File: in.name, Line: e.node.Line, Column: e.node.Column, Path: e.path,
				Message: "write the name of the file plainly or in quotes, on one line"})
			continue
		}
		line := lines[e.node.Line-1]
		lines[e.node.Line-1] = slices.Concat(line[:start], []byte(e.text), line[start+length:])
	}
	return bytes.Join(lines, nil), unplaced
}

// splitLines divides text as YAML counts lines, which is by more than \n, and
// keeps the breaks.
func splitLines(data []byte) [][]byte {
	var lines [][]byte
	start := 0
	for at := 0; at < len(data); {
		r, size := utf8.DecodeRune(data[at:])
		at += size
		switch r {
		case '\r':
			if at < len(data) && data[at] == '\n' {
				at++
			}
		case '\n', '\u0085', '\u2028', '\u2029':
		default:
			continue
		}
		lines = append(lines, data[start:at])
		start = at
	}
	return append(lines, data[start:])
}

// place finds the bytes of a scalar in its line. yaml counts columns in
// characters, and the node of a quoted scalar begins at its quote.
func place(lines [][]byte, n *yaml.Node) (start, length int, ok bool) {
	if n.Line < 1 || n.Line > len(lines) {
		return 0, 0, false
	}
	line := string(lines[n.Line-1])
	column := 1
	start = -1
	for at := range line {
		if column == n.Column {
			start = at
			break
		}
		column++
	}
	if start < 0 {
		return 0, 0, false
	}
	// An anchor or a tag stands before the value and stays.
	forms := []string{n.Value, strconv.Quote(n.Value), "'" + strings.ReplaceAll(n.Value, "'", "''") + "'"}
	for strings.HasPrefix(line[start:], "&") || strings.HasPrefix(line[start:], "!") {
		blank := strings.IndexAny(line[start:], " \t")
		if blank < 0 {
			return 0, 0, false
		}
		start += blank
		start += len(line[start:]) - len(strings.TrimLeft(line[start:], " \t"))
	}
	for _, form := range forms {
		if strings.HasPrefix(line[start:], form) {
			return start, len(form), true
		}
	}
	return 0, 0, false
}
