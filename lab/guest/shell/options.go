package shell

import (
	"fmt"
	"strings"
)

// options are a program's parsed arguments.
type options struct {
	set  map[string][]string // by name: "n", "lines"; value "" for a switch
	args []string            // the operands
}

func (o options) has(names ...string) bool {
	for _, n := range names {
		if _, ok := o.set[n]; ok {
			return true
		}
	}
	return false
}

// get gives the last value of the first of the names that was given.
func (o options) get(def string, names ...string) string {
	for _, n := range names {
		if v, ok := o.set[n]; ok {
			return v[len(v)-1]
		}
	}
	return def
}

// parseOptions parses arguments in getopt's way: short switches may be joined, and
// operands and options mixed. spec lists the known ones separated by blanks,
// with ":" after those that take a value: "n: q lines: quiet". An unknown
// option is an error, so a tool never quietly ignores what it does not know.
func parseOptions(args []string, spec string) (options, error) {
	takes := map[string]bool{}
	for _, s := range strings.Fields(spec) {
		name, val := strings.CutSuffix(s, ":")
		takes[name] = val
	}
	o := options{set: map[string][]string{}}
	add := func(n, v string) { o.set[n] = append(o.set[n], v) }
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--":
			o.args = append(o.args, args[i+1:]...)
			return o, nil
		case strings.HasPrefix(a, "--"):
			name, val, eq := strings.Cut(a[2:], "=")
			val2, known := takes[name]
			switch {
			case !known || len(name) == 1:
				return o, fmt.Errorf("option %s", a)
			case val2 && !eq:
				if i++; i >= len(args) {
					return o, fmt.Errorf("option %s without its value", a)
				}
				val = args[i]
			case !val2 && eq:
				return o, fmt.Errorf("option %s", a)
			}
			add(name, val)
		case len(a) > 1 && a[0] == '-':
			for j := 1; j < len(a); j++ {
				name := a[j : j+1]
				val, known := takes[name]
				if !known {
					return o, fmt.Errorf("option -%s", name)
				}
				if !val {
					add(name, "")
					continue
				}
				v := a[j+1:]
				if v == "" {
					if i++; i >= len(args) {
						return o, fmt.Errorf("option -%s without its value", name)
					}
					v = args[i]
				}
				add(name, v)
				break
			}
		default:
			o.args = append(o.args, a)
		}
	}
	return o, nil
}
