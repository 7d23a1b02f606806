package system

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/homeiac/homelab/lab/guest/tree"
)

// unitDirs are where unit files lie, the administrator's first.
var unitDirs = []string{"/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system"}

const wantsDir = "/etc/systemd/system/multi-user.target.wants"

// unitFile is what is used of a service's unit file.
type unitFile struct {
	name, path  string
	description string
	kind        string // Type=
	start       []string
	pre         [][]string // each command; a leading "-" was taken off
	envFiles    []string
	env         map[string]string
	restart     string
	restartWait time.Duration
	remain      bool
	wantedBy    []string
	condition   []string // ConditionPathExists=
}

var errNoUnit = errors.New("unit not found")

func unitName(s string) string {
	s = path.Base(s)
	if !strings.Contains(s, ".") {
		s += ".service"
	}
	return s
}

func findUnit(v *tree.View, name string) (string, error) {
	for _, d := range unitDirs {
		at := path.Join(d, name)
		if fi, err := v.Stat(at); err == nil && !fi.IsDir() {
			return at, nil
		}
	}
	return "", errNoUnit
}

// readUnit parses a unit. Keys that only matter to a real kernel are ignored;
// the comment of each section is dropped.
func readUnit(v *tree.View, name string) (*unitFile, error) {
	at, err := findUnit(v, name)
	if err != nil {
		return nil, err
	}
	b, err := v.ReadFile(at)
	if err != nil {
		return nil, err
	}
	u := &unitFile{name: name, path: at, kind: "simple", env: map[string]string{}, restartWait: 100 * time.Millisecond, restart: "no"}
	b = bytes.ReplaceAll(b, []byte("\\\n"), []byte(" "))
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' || line[0] == ';' || line[0] == '[' {
			continue
		}
		key, val, ok := strings.Cut(line, "=")
		if !ok {
			return nil, fmt.Errorf("%s: %q is not an assignment", at, line)
		}
		key, val = strings.TrimSpace(key), strings.TrimSpace(val)
		val = strings.ReplaceAll(val, "%N", strings.TrimSuffix(name, ".service"))
		switch key {
		case "Description":
			u.description = val
		case "Type":
			u.kind = val
		case "ExecStart":
			if u.start, err = splitWords(strings.TrimLeft(val, "-+@:!")); err != nil {
				return nil, fmt.Errorf("%s: %w", at, err)
			}
		case "ExecStartPre":
			w, err := splitWords(strings.TrimLeft(val, "-"))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", at, err)
			}
			u.pre = append(u.pre, w)
		case "EnvironmentFile":
			u.envFiles = append(u.envFiles, val)
		case "Environment":
			words, err := splitWords(val)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", at, err)
			}
			for _, w := range words {
				k, x, _ := strings.Cut(w, "=")
				u.env[k] = x
			}
		case "Restart":
			u.restart = val
		case "RestartSec":
			if n, err := strconv.Atoi(val); err == nil {
				u.restartWait = time.Duration(n) * time.Second
			} else if u.restartWait, err = time.ParseDuration(val); err != nil {
				return nil, fmt.Errorf("%s: RestartSec: %w", at, err)
			}
		case "RemainAfterExit":
			u.remain = val == "yes" || val == "true" || val == "1"
		case "WantedBy":
			u.wantedBy = append(u.wantedBy, strings.Fields(val)...)
		case "ConditionPathExists":
			u.condition = append(u.condition, val)
		}
	}
	return u, sc.Err()
}

// splitWords splits a command line as systemd does: blanks, single and double
// quotes.
func splitWords(s string) ([]string, error) {
	var out []string
	var cur strings.Builder
	in, quote := false, byte(0)
	for i := 0; i < len(s); i++ {
		ch := s[i]
		switch {
		case quote != 0 && ch == quote:
			quote = 0
		case quote == 0 && (ch == '\'' || ch == '"'):
			quote, in = ch, true
		case quote == 0 && (ch == ' ' || ch == '\t'):
			if in {
				out = append(out, cur.String())
				cur.Reset()
				in = false
			}
		case ch == '\\' && i+1 < len(s) && quote != '\'':
			i++
			cur.WriteByte(s[i])
			in = true
		default:
			cur.WriteByte(ch)
			in = true
		}
	}
	if quote != 0 {
		return nil, errors.New("unbalanced quotes")
	}
	if in {
		out = append(out, cur.String())
	}
	return out, nil
}

// environment is what the unit's files and lines give.
func (u *unitFile) environment(v *tree.View) (map[string]string, error) {
	env := map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG": "C.UTF-8"}
	for k, x := range u.env {
		env[k] = x
	}
	for _, f := range u.envFiles {
		name, optional := strings.CutPrefix(f, "-")
		b, err := v.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) && optional {
			continue
		}
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(b)) {
			line = strings.TrimSpace(line)
			k, x, ok := strings.Cut(line, "=")
			if !ok || line[0] == '#' {
				continue
			}
			if len(x) >= 2 && (x[0] == '"' || x[0] == '\'') && x[len(x)-1] == x[0] {
				x = x[1 : len(x)-1]
			}
			env[k] = x
		}
	}
	return env, nil
}
