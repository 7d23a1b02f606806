package pve

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// endpoint is one path of the API. In its pattern a word in braces matches one
// element.
type endpoint struct {
	method  string // get, create, set, delete
	pattern string
	opts    map[string]setting
	config  bool // takes the settings of a VM's configuration too
	// run gives what the call returns; a task's UPID when it started one.
	run func(r *run, p params) (any, error)
}

// outputOptions are pvesh's own.
var outputOptions = map[string]setting{
	"output-format": oneOf("text json json-pretty yaml"), "noborder": flag, "noheader": flag, "quiet": flag, "human-readable": flag, "noproxy": flag,
}

// pvesh is the program of that name.
func (r *run) pvesh(args []string) error {
	if len(args) == 0 {
		return fail(255, "ERROR: no command specified\n%s", pveshUsage)
	}
	verb := args[0]
	switch verb {
	case "get", "create", "set", "delete":
	case "ls", "usage", "help":
		return notSimulated("pvesh %s", verb)
	default:
		return fail(255, "ERROR: unknown command 'pvesh %s'\n%s", verb, pveshUsage)
	}
	r.synopsis = "pvesh " + verb + " <api_path> [OPTIONS] [FORMAT_OPTIONS]"
	if len(args) < 2 {
		return r.withUsage(fail(2, "400 not enough arguments"))
	}
	e, p, err := r.route(verb, args[1])
	if err != nil {
		return err
	}
	find := func(key string) (setting, bool) {
		if s, ok := outputOptions[key]; ok {
			return s, true
		}
		if s, ok := e.opts[key]; ok {
			return s, true
		}
		if e.config {
			return lookup(key)
		}
		return setting{}, false
	}
	given, pos, extra, err := parseOptions(args[2:], find, func() []string {
		names := slices.Concat(slices.Collect(maps.Keys(outputOptions)), slices.Collect(maps.Keys(e.opts)))
		if e.config {
			names = append(names, settingNames()...)
		}
		return names
	})
	if err != nil {
		return r.withUsage(err)
	}
	if len(pos)+len(extra) > 0 {
		return r.withUsage(fail(2, "400 too many arguments"))
	}
	maps.Copy(p, given)
	if err := checkParams(p, find); err != nil {
		return err
	}
	return r.call(e, p)
}

// route finds the endpoint of a path and the values of its pattern.
func (r *run) route(method, path string) (endpoint, params, error) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	if len(parts) > 1 && parts[0] == "nodes" {
		if parts[1] == "localhost" {
			parts[1] = r.cfg.NodeName
		}
		if node := parts[1]; node != r.cfg.NodeName {
			if r.knows(node) {
				return endpoint{}, nil, notSimulated("pvesh calls to another node")
			}
			return endpoint{}, nil, fail(2, "hostname lookup '%s' failed - failed to get address info for: %s: Name or service not known", node, node)
		}
	}
	for _, e := range endpoints {
		pattern := strings.Split(e.pattern, "/")
		if e.method != method || len(pattern) != len(parts) {
			continue
		}
		p, match := params{}, true
		for i, word := range pattern {
			if name, ok := strings.CutPrefix(word, "{"); ok {
				p[strings.TrimSuffix(name, "}")] = parts[i]
			} else if word != parts[i] {
				match = false
			}
		}
		if match {
			return e, p, nil
		}
	}
	return endpoint{}, nil, notSimulated("pvesh %s %s", method, path)
}

// knows says whether a node belongs to the cluster.
func (r *run) knows(node string) bool {
	s, err := readClusterState(r.pmxcfs())
	return err == nil && slices.ContainsFunc(s.Nodes, func(n clusterNode) bool { return n.Name == node })
}

// call runs an endpoint and prints what it gives. A task that fails is only a
// line on stderr: the UPID is printed all the same, and the exit code is 0.
func (r *run) call(e endpoint, p params) error {
	formatOf, quiet, bare := p["output-format"], p.on("quiet"), p.on("noborder")
	for k := range outputOptions {
		delete(p, k)
	}
	got, err := e.run(r, p)
	if err != nil {
		if r.upid == "" {
			return err
		}
		fmt.Fprintln(r.stderr, err)
	}
	if r.upid != "" && e.method != "get" {
		got = r.upid
	}
	if quiet || got == nil {
		return nil
	}
	switch formatOf {
	case "json":
		r.printf("%s\n", compactJSON(got))
	case "json-pretty":
		r.printf("%s\n", perlJSON(got))
	case "yaml":
		r.printf("---\n%s", yamlText(got, 0))
	default:
		return r.printTable(got, bare)
	}
	return nil
}

// printTable is the output for people: a table of keys and values.
func (r *run) printTable(v any, bare bool) error {
	switch v := v.(type) {
	case string:
		r.printf("%s\n", v)
	case map[string]any:
		if bare {
			return notSimulated("pvesh --noborder")
		}
		r.printf("%s", boxTable(v))
	default:
		return notSimulated("pvesh's text tables of lists: use --output-format json")
	}
	return nil
}

func boxTable(m map[string]any) string {
	keyWidth, valueWidth := len("key"), len("value")
	rows := map[string][]string{}
	for k, v := range m {
		rows[k] = strings.Split(strings.TrimSuffix(fmt.Sprint(v), "\n"), "\n")
		keyWidth = max(keyWidth, len([]rune(k)))
		for _, line := range rows[k] {
			valueWidth = max(valueWidth, len([]rune(line)))
		}
	}
	rule := func(left, line, cross, right string) string {
		return left + strings.Repeat(line, keyWidth+2) + cross + strings.Repeat(line, valueWidth+2) + right + "\n"
	}
	var b strings.Builder
	b.WriteString(rule("┌", "─", "┬", "┐"))
	fmt.Fprintf(&b, "│ %-*s │ %-*s │\n", keyWidth, "key", valueWidth, "value")
	b.WriteString(rule("╞", "═", "╪", "╡"))
	for i, k := range slices.Sorted(maps.Keys(rows)) {
		if i > 0 {
			b.WriteString(rule("├", "─", "┼", "┤"))
		}
		for j, line := range rows[k] {
			key := k
			if j > 0 {
				key = ""
			}
			fmt.Fprintf(&b, "│ %-*s │ %-*s │\n", keyWidth, key, valueWidth, line)
		}
	}
	b.WriteString(rule("└", "─", "┴", "┘"))
	return b.String()
}

// yamlText prints JSON-like data as Perl's YAML does for plain values.
func yamlText(v any, depth int) string {
	indent := strings.Repeat("  ", depth)
	var b strings.Builder
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			switch v[k].(type) {
			case map[string]any, []any:
				fmt.Fprintf(&b, "%s%s:\n%s", indent, k, yamlText(v[k], depth+1))
			default:
				fmt.Fprintf(&b, "%s%s: %v\n", indent, k, v[k])
			}
		}
	case []any:
		for _, e := range v {
			text := yamlText(e, depth+1)
			b.WriteString(indent + "- " + strings.TrimPrefix(text, indent+"  "))
		}
	default:
		fmt.Fprintf(&b, "%s%v\n", indent, v)
	}
	return b.String()
}

// perlJSON is JSON as Perl's pretty printer lays it out.
func perlJSON(v any) string { return perlValue(v, 0) }

func perlValue(v any, depth int) string {
	indent, end := strings.Repeat("   ", depth+1), strings.Repeat("   ", depth)
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 {
			return "{}"
		}
		var parts []string
		for _, k := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, indent+compactJSON(k)+" : "+perlValue(v[k], depth+1))
		}
		return "{\n" + strings.Join(parts, ",\n") + "\n" + end + "}"
	case []any:
		if len(v) == 0 {
			return "[]"
		}
		var parts []string
		for _, e := range v {
			parts = append(parts, indent+perlValue(e, depth+1))
		}
		return "[\n" + strings.Join(parts, ",\n") + "\n" + end + "]"
	case float64:
		if v == float64(int64(v)) {
			return strconv.FormatInt(int64(v), 10)
		}
	}
	return compactJSON(v)
}
