package pve

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// command is one subcommand of qm or pvesm.
type command struct {
	name  string // "disk move"
	usage string // what follows the name: "<vmid> <disk> [<storage>] [OPTIONS]"
	// args are the positional parameters: "[x]" may be missing, "x..." takes
	// what follows "--".
	args []string
	opts map[string]setting
	// config takes the settings of a VM's configuration too.
	config bool
	run    func(r *run, p params) error
}

// params are the parameters of a call by name, without dashes.
type params map[string]string

func (p params) on(key string) bool { b, _ := parseBool(p[key]); return b }

// command finds the subcommand in args and runs it.
func (r *run) command(program, usage string, list []command, args []string) error {
	if len(args) == 0 {
		return fail(255, "ERROR: no command specified\n%s", usage)
	}
	for _, n := range []int{2, 1} {
		if len(args) < n {
			continue
		}
		name := strings.Join(args[:n], " ")
		for _, c := range list {
			if c.name == name || slices.Contains(aliases[program+" "+name], c.name) {
				r.synopsis = fmt.Sprintf("%s %s %s", program, c.name, c.usage)
				if program == "qm" {
					r.verb = c.name
				}
				p, err := c.parse(args[n:])
				if err != nil {
					return r.withUsage(err)
				}
				return c.run(r, p)
			}
		}
		if strings.Contains(usage, "\n       "+program+" "+name+" ") {
			return notSimulated("%s %s", program, name)
		}
	}
	return fail(255, "ERROR: unknown command '%s %s'\n%s", program, args[0], usage)
}

// aliases are old spellings of commands.
var aliases = map[string][]string{
	"qm resize": {"disk resize"}, "qm importdisk": {"disk import"}, "qm move_disk": {"disk move"},
	"qm move-disk": {"disk move"}, "qm unlink": {"disk unlink"}, "qm rescan": {"disk rescan"}, "qm agent": {"guest cmd"},
}

// withUsage adds the usage line to a fault of the command line itself.
func (r *run) withUsage(err error) error {
	var f *failure
	if errors.As(err, &f) {
		return &failure{code: f.code, text: f.text + "\n" + r.synopsis}
	}
	return err
}

// parse reads the arguments of a command as Getopt::Long does there: options
// anywhere, one or two dashes, "=" or a space, unique abbreviations, and a
// boolean's value may be missing.
func (c command) parse(args []string) (params, error) {
	p, pos, extra, err := parseOptions(args, c.lookup, c.names)
	if err != nil {
		return nil, err
	}
	if err := c.positional(p, pos, extra); err != nil {
		return nil, err
	}
	return p, c.check(p)
}

func (c command) lookup(key string) (setting, bool) {
	if s, ok := c.opts[key]; ok && !slices.Contains(c.args, key) && !slices.Contains(c.args, "["+key+"]") {
		return s, true
	}
	if c.config {
		return lookup(key)
	}
	return setting{}, false
}

func (c command) names() []string {
	var names []string
	for k := range c.opts {
		if _, ok := c.lookup(k); ok {
			names = append(names, k)
		}
	}
	if c.config {
		names = append(names, settingNames()...)
	}
	return names
}

// positional gives the positional parameters their names.
func (c command) positional(p params, pos, extra []string) error {
	rest := false
	for _, name := range c.args {
		if plain, ok := strings.CutSuffix(name, "..."); ok {
			p[plain] = strings.Join(append(pos, extra...), "\x00")
			pos, rest = nil, true
			break
		}
		plain := strings.Trim(name, "[]")
		if len(pos) == 0 {
			if plain != name {
				continue
			}
			return fail(2, "400 not enough arguments")
		}
		p[plain], pos = pos[0], pos[1:]
	}
	if len(pos) > 0 || len(extra) > 0 && !rest {
		return fail(2, "400 too many arguments")
	}
	return nil
}

// check checks every parameter against its setting.
func (c command) check(p params) error {
	return checkParams(p, func(key string) (setting, bool) {
		if s, ok := c.opts[key]; ok {
			return s, true
		}
		if c.config {
			return lookup(key)
		}
		return setting{}, false
	})
}

func checkParams(p params, find func(string) (setting, bool)) error {
	faults := map[string]string{}
	for key, value := range p {
		switch key {
		case "vmid", "newid", "target-vmid":
			if why := vmidFault(value); why != "" {
				faults[key] = why
			}
			continue
		}
		if s, ok := find(key); ok {
			if why := s.fault(key, value); why != "" {
				faults[key] = why
			}
		}
	}
	if len(faults) > 0 {
		return &badParams{code: 2, faults: faults}
	}
	return nil
}

// parseOptions splits a command line into options, positional arguments and
// what follows "--".
func parseOptions(args []string, find func(string) (setting, bool), names func() []string) (p params, pos, extra []string, err error) {
	p = params{}
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			return p, pos, args, nil
		}
		if len(arg) < 2 || arg[0] != '-' {
			pos = append(pos, arg)
			continue
		}
		name, value, given := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-"), "=")
		s, ok := find(name)
		if !ok {
			var candidates []string
			for _, n := range names() {
				if strings.HasPrefix(n, name) {
					candidates = append(candidates, n)
				}
			}
			switch slices.Sort(candidates); len(candidates) {
			case 0:
				return nil, nil, nil, fail(2, "Unknown option: %s\n400 unable to parse option", name)
			case 1:
				name = candidates[0]
				s, _ = find(name)
			default:
				return nil, nil, nil, fail(2, "Option %s is ambiguous (%s)\n400 unable to parse option", name, strings.Join(candidates, ", "))
			}
		}
		if s.kind == boolean {
			if !given && len(args) > 0 && !strings.HasPrefix(args[0], "-") {
				value, args = args[0], args[1:]
			}
			if value == "" {
				value = "1"
			}
			b, ok := parseBool(value)
			if !ok {
				return nil, nil, nil, fail(2, "400 unable to parse boolean option")
			}
			value = map[bool]string{true: "1", false: "0"}[b]
		} else if !given {
			if len(args) == 0 {
				return nil, nil, nil, fail(2, "Option %s requires an argument\n400 unable to parse option", name)
			}
			value, args = args[0], args[1:]
		}
		p[name] = value
	}
	return p, pos, nil, nil
}
