package spec

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// reader collects faults while the tree is read; no fault ends the reading.
type reader struct {
	file     string
	faults   Faults
	warnings Faults
}

func (r *reader) fault(n *yaml.Node, path, format string, args ...any) {
	r.faults = append(r.faults, r.said(n, path, format, args...))
}

func (r *reader) warn(n *yaml.Node, path, format string, args ...any) {
	r.warnings = append(r.warnings, r.said(n, path, format, args...))
}

// said is a fault. A URL may be in its path and in each of its values, wherever
// somebody wrote one, and the password of that is nobody's business.
func (r *reader) said(n *yaml.Node, path, format string, args ...any) Fault {
	for i, arg := range args {
		switch arg := arg.(type) {
		case string:
			args[i] = masked(arg)
		case error:
			args[i] = masked(arg.Error())
		}
	}
	return Fault{File: r.file, Line: n.Line, Column: n.Column, Path: masked(path), Message: fmt.Sprintf(format, args...)}
}

// mapping is one mapping of the file being read. Every key that is asked for
// is known; the rest are reported by end.
type mapping struct {
	r     *reader
	node  *yaml.Node
	path  string
	by    map[string]entry
	order []string
	known []string
}

// mapping reads n as a mapping. Anything else is a fault and reads as empty, so
// that the caller needs no second way.
func (r *reader) mapping(n *yaml.Node, path string) *mapping {
	m := &mapping{r: r, node: n, path: path}
	if n.Kind != yaml.MappingNode {
		r.fault(n, path, "%s stands where a mapping is wanted", kind(n))
		return m
	}
	m.by = make(map[string]entry, len(n.Content)/2)
	seen := make(map[string]*yaml.Node, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Tag == "!!merge" {
			r.checkMerge(value, path)
			continue
		}
		if key.Kind != yaml.ScalarNode || key.Tag == "!!null" {
			r.fault(key, path, "%s cannot be a key", kind(key))
			continue
		}
		if before := seen[key.Value]; before != nil {
			r.fault(key, join(path, key.Value), "is there twice (first in line %d)", before.Line)
			continue
		}
		seen[key.Value] = key
	}
	for _, e := range entries(n) {
		if _, have := m.by[e.key.Value]; have || e.key.Kind != yaml.ScalarNode || e.key.Tag == "!!null" {
			continue
		}
		m.by[e.key.Value] = e
		m.order = append(m.order, e.key.Value)
	}
	return m
}

func (r *reader) checkMerge(n *yaml.Node, path string) {
	list := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		list = n.Content
	}
	for _, one := range list {
		if one.Kind != yaml.MappingNode {
			r.fault(one, join(path, "<<"), "%s cannot be merged: only a mapping can", kind(one))
		}
	}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// has makes key known and says whether it is there.
func (m *mapping) has(key string) bool {
	m.known = append(m.known, key)
	_, ok := m.by[key]
	return ok
}

// value is the node of key, nil when it is not there or is empty (a fault).
func (m *mapping) value(key string) *yaml.Node {
	if !m.has(key) {
		return nil
	}
	e := m.by[key]
	if e.value.Kind == yaml.ScalarNode && e.value.Tag == "!!null" {
		m.r.fault(e.key, m.at(key), "has no value")
		return nil
	}
	return e.value
}

func (m *mapping) at(key string) string { return join(m.path, key) }

// missing reports a key that must be there. The place is the mapping's own.
func (m *mapping) missing(keyNode *yaml.Node, key, why string) {
	if m.node.Kind != yaml.MappingNode {
		return // what stands there is the fault
	}
	m.r.fault(keyNode, m.path, "has no %s%s", key, why)
}

// end reports what was never asked for.
func (m *mapping) end() {
	for _, key := range m.order {
		if slices.Contains(m.known, key) {
			continue
		}
		hint := ""
		if near := nearest(key, m.known); near != "" {
			hint = fmt.Sprintf(" (did you mean %s?)", near)
		}
		m.r.fault(m.by[key].key, m.at(key), "is not a key that is known here%s", hint)
	}
}

// scalar reads text of any scalar. A list or mapping is a fault.
func (r *reader) scalar(n *yaml.Node, path string) (string, bool) {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		r.fault(n, path, "%s stands where a value is wanted", kind(n))
		return "", false
	}
	if n.Tag == "!!binary" || strings.ContainsRune(n.Value, 0) {
		r.fault(n, path, "is not text")
		return "", false
	}
	return n.Value, true
}

// text reads a string; a bare true or 42 is a fault, as YAML reads those as
// something else than what the author sees.
func (r *reader) text(n *yaml.Node, path string) (string, bool) {
	s, ok := r.scalar(n, path)
	if !ok {
		return "", false
	}
	if n.Tag == "!!bool" || n.Tag == "!!int" || n.Tag == "!!float" {
		r.fault(n, path, "%s is not text to YAML: write it in quotes", s)
		return "", false
	}
	if s == "" {
		r.fault(n, path, "is empty")
		return "", false
	}
	return s, true
}

func (m *mapping) text(key string) (string, bool) {
	if n := m.value(key); n != nil {
		return m.r.text(n, m.at(key))
	}
	return "", false
}

func (m *mapping) boolean(key string) (value, ok bool) {
	n := m.value(key)
	if n == nil {
		return false, false
	}
	s, ok := m.r.scalar(n, m.at(key))
	if !ok {
		return false, false
	}
	if n.Tag == "!!bool" {
		return strings.EqualFold(s, "true"), true
	}
	m.r.fault(n, m.at(key), "%s is neither true nor false", show(s))
	return false, false
}

// whole reads an integer between least and most.
func (r *reader) whole(n *yaml.Node, path string, least, most int) (int, bool) {
	s, ok := r.scalar(n, path)
	if !ok {
		return 0, false
	}
	if n.Tag != "!!int" {
		r.fault(n, path, "%s is not a whole number", show(s))
		return 0, false
	}
	var v int64
	if err := n.Decode(&v); err != nil {
		r.fault(n, path, "%s is not between %d and %d", s, least, most)
		return 0, false
	}
	if strings.HasPrefix(strings.TrimLeft(s, "+-"), "0") && v != 0 {
		r.fault(n, path, "%s is not plain decimal", s)
		return 0, false
	}
	if v < int64(least) || v > int64(most) {
		r.fault(n, path, "%s is not between %d and %d", s, least, most)
		return 0, false
	}
	return int(v), true
}

func (m *mapping) whole(key string, least, most int) (int, bool) {
	if n := m.value(key); n != nil {
		return m.r.whole(n, m.at(key), least, most)
	}
	return 0, false
}

// word reads one of a few words.
func word[T ~string](m *mapping, key string, allowed ...T) (T, bool) {
	n := m.value(key)
	if n == nil {
		return "", false
	}
	s, ok := m.r.scalar(n, m.at(key))
	if !ok {
		return "", false
	}
	names := make([]string, len(allowed))
	for i, a := range allowed {
		if s == string(a) {
			return a, true
		}
		names[i] = string(a)
	}
	hint := ""
	if near := nearest(s, names); near != "" {
		hint = fmt.Sprintf(" (did you mean %s?)", near)
	}
	m.r.fault(n, m.at(key), "%s is not %s%s", show(s), either(names), hint)
	return "", false
}

// either lists words as a, b or c.
func either(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1]
}

func (m *mapping) size(key string, least int64) (int64, bool) {
	n := m.value(key)
	if n == nil {
		return 0, false
	}
	s, ok := m.r.scalar(n, m.at(key))
	if !ok {
		return 0, false
	}
	bytes, err := ParseSize(s)
	switch {
	case err != nil:
		m.r.fault(n, m.at(key), "%s", err)
	case bytes%MiB != 0:
		m.r.fault(n, m.at(key), "%s is not a whole number of MiB", show(s))
	case bytes < least:
		m.r.fault(n, m.at(key), "%s is too small (at least %s)", show(s), FormatSize(least))
	default:
		return bytes, true
	}
	return 0, false
}

// rate reads bytes a second, as 50MiB/s.
func (m *mapping) rate(key string) (int64, bool) {
	n := m.value(key)
	if n == nil {
		return 0, false
	}
	s, ok := m.r.scalar(n, m.at(key))
	if !ok {
		return 0, false
	}
	v, err := parseRate(s)
	if err != nil {
		m.r.fault(n, m.at(key), "%s", err)
	}
	return v, err == nil
}

func (m *mapping) wait(key string, into *time.Duration, zero bool) {
	n := m.value(key)
	if n == nil {
		return
	}
	if s, ok := m.r.scalar(n, m.at(key)); ok {
		d, err := parseWait(s, zero)
		if err != nil {
			m.r.fault(n, m.at(key), "%s", err)
			return
		}
		*into = d
	}
}

func (m *mapping) address(key string) (netip.Addr, bool) {
	n := m.value(key)
	if n == nil {
		return netip.Addr{}, false
	}
	return m.r.address(n, m.at(key))
}

func (r *reader) address(n *yaml.Node, path string) (netip.Addr, bool) {
	s, ok := r.scalar(n, path)
	if !ok {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		r.fault(n, path, "%s is not an IP address", show(s))
		return netip.Addr{}, false
	}
	if a.IsUnspecified() || a.IsMulticast() {
		r.fault(n, path, "%s is not the address of one machine", s)
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// list are the entries of a list; a single value counts as none and is a fault.
func (r *reader) list(n *yaml.Node, path string) []*yaml.Node {
	if n.Kind != yaml.SequenceNode {
		r.fault(n, path, "%s stands where a list is wanted", kind(n))
		return nil
	}
	return n.Content
}

// texts reads a list of strings; what is not text is a fault and left out.
func (m *mapping) texts(key string) ([]string, []*yaml.Node) {
	n := m.value(key)
	if n == nil {
		return nil, nil
	}
	var all []string
	var nodes []*yaml.Node
	for i, item := range m.r.list(n, m.at(key)) {
		if s, ok := m.r.text(item, index(m.at(key), i)); ok {
			all, nodes = append(all, s), append(nodes, item)
		}
	}
	return all, nodes
}
