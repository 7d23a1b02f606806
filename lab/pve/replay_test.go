package pve

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/homeiac/homelab/lab/disk"
)

// record is one transcript of a real program.
type record struct {
	name   string
	Argv   []string `json:"argv"`
	Exit   *int     `json:"exit"`
	Stdout string   `json:"stdout"`
	Stderr string   `json:"stderr"`
	Stdin  string   `json:"stdin"`
	After  struct {
		Conf    *string         `json:"conf"`
		Conf2   *string         `json:"conf2"`
		Storage string          `json:"storage.cfg"`
		Images  json.RawMessage `json:"images"`
		Run     []string        `json:"run"`
		Tasks   []struct{ Line, Log string }
	} `json:"after"`
	hasConf bool
}

func (r record) number() int {
	n, _ := strconv.Atoi(r.name[:3])
	return n
}

// vmid is the VM that a record's configuration is of.
func (r record) vmid() string {
	if id, ok := map[int]string{301: "117", 559: "140"}[r.number()]; ok {
		return id
	}
	for _, a := range r.Argv {
		if m := regexp.MustCompile(`^(?:/nodes/[^/]+/qemu/)?(\d{3,9})(/|$)`).FindStringSubmatch(a); m != nil {
			if len(r.Argv) > 3 && r.Argv[1] == "clone" && m[1] == r.Argv[2] && !slices.Contains([]int{725, 726}, r.number()) {
				return r.Argv[3]
			}
			return m[1]
		}
	}
	return ""
}

func records(t *testing.T) []record {
	t.Helper()
	files, err := filepath.Glob("testdata/transcripts/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	var list []record
	for _, f := range files {
		a, err := txtar.ParseFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range a.Files {
			r := record{name: strings.TrimSuffix(e.Name, ".json")}
			if err := json.Unmarshal(e.Data, &r); err != nil {
				t.Fatal(e.Name, err)
			}
			var raw struct{ After map[string]json.RawMessage }
			_ = json.Unmarshal(e.Data, &raw)
			_, r.hasConf = raw.After["conf"]
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b record) int { return strings.Compare(a.name, b.name) })
	return list
}

// notReplayed reads the list of records that are not replayed, with reasons.
func notReplayed(t *testing.T) map[string]string {
	t.Helper()
	data, err := os.ReadFile("testdata/not-replayed.txt")
	if err != nil {
		t.Fatal(err)
	}
	list := map[string]string{}
	for line := range strings.Lines(string(data)) {
		if name, reason, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && !strings.HasPrefix(line, "#") {
			list[name] = reason
		}
	}
	return list
}

// TestTranscriptsAreReplayed walks the records of the real programs in their
// order. What a record stands on that no record made is in setups.
func TestTranscriptsAreReplayed(t *testing.T) {
	w := replayWorld(t)
	skip := notReplayed(t)
	all := records(t)
	for _, r := range all {
		if _, ok := skip[r.name]; ok {
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			w.T = t
			w.replay(r)
		})
	}
	for name, reason := range skip {
		if !slices.ContainsFunc(all, func(r record) bool { return r.name == name }) || reason == "" {
			t.Errorf("testdata/not-replayed.txt: %s: no such record, or no reason", name)
		}
	}
	t.Logf("%d of %d records replayed", len(all)-len(skip), len(all))
}

// replayer is the world the records are replayed in.
type replayer struct {
	*world
	release func()          // lets go of what a record's precondition holds
	ctx     context.Context // of the next program
	upid    string          // of the last task, for records that ask for one
	before  map[string]bool // index lines before the record
}

func replayWorld(t *testing.T) *replayer {
	w := &replayer{world: newWorld(t), release: func() {}, ctx: t.Context()}
	w.write("/root/src/notes.txt", "no key\n")
	w.image("/root/src/src.raw", 64<<20)
	for path, data := range map[string][]byte{
		"/root/src/garbage.bin": bytes.Repeat([]byte("garbage."), 12500), "/root/src/empty.raw": nil,
		"/root/src/rnd.raw":  bytes.Repeat([]byte("0123456789abcdef"), 2500000),
		"/root/src/src.vmdk": append([]byte("KDMV\x01\x00\x00\x00\x03\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00"), make([]byte, 1000)...),
	} {
		w.write(path, string(data))
	}
	qcow2 := w.path("/root/src/src.qcow2")
	if err := disk.Create(qcow2, "qcow2", 64<<20, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(qcow2, 19595264); err != nil {
		t.Fatal(err)
	}
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIP08ZD/mtwkkg/JBqUFjet6wnpFXXH1R7m4QFAkbgD9q k@lab\n"
	w.write("/root/src/k.pub", key)
	w.write("/root/src/two.pub", key+key)
	if err := os.WriteFile(w.path("/root/src/big.raw"), make([]byte, 4096), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(w.path("/root/src/big.raw"), 600000000); err != nil {
		t.Fatal(err)
	}
	return w
}

// replay runs one record and compares.
func (w *replayer) replay(r record) {
	w.Helper()
	w.prepare(r)
	// Every record has a second of its own, so that its tasks' UPIDs are new.
	_ = w.clock.Sleep(w.ctx, time.Second)
	defer func() { w.release(); w.release, w.ctx = func() {}, context.Background() }()
	w.before = w.index()
	got := w.perform(r)
	w.compare(r, got)
	for vmid, text := range map[string]*string{r.vmid(): r.After.Conf, second[r.number()]: r.After.Conf2} {
		if vmid == "" || text == nil {
			continue
		}
		if diff := cmp.Diff(norm(*text), norm(w.conf(vmid))); diff != "" {
			w.Errorf("configuration of %s afterwards (-real +simulated):\n%s", vmid, diff)
		}
		// The next record speaks of this one's MACs and uuids.
		w.place(vmid, *text)
	}
	if r.hasConf && r.After.Conf == nil && w.conf(r.vmid()) != "" {
		w.Errorf("the configuration of %s is still there", r.vmid())
	}
	if r.After.Storage != "" {
		data, _ := os.ReadFile(w.path("etc/pve/storage.cfg"))
		if diff := cmp.Diff(norm(r.After.Storage), norm(string(data))); diff != "" {
			w.Errorf("storage.cfg afterwards (-real +simulated):\n%s", diff)
		}
	}
	w.compareTasks(r)
}

// second is the other VM whose configuration a record shows.
var second = map[int]string{710: "172", 711: "172", 712: "172", 714: "172", 715: "172", 716: "172", 725: "177", 726: "178"}

// runsOutOfTime are the records in which something does not answer, or a lock
// stays busy.
var runsOutOfTime = []int{324, 337, 338, 352, 364, 422, 423, 424, 425, 426, 427, 428, 431, 472, 473, 475, 476, 477, 483, 484, 485, 487, 488, 708}

// perform runs what the record ran.
func (w *replayer) perform(r record) result {
	argv := slices.Clone(r.Argv)
	stdin := r.Stdin
	switch {
	case argv[0] == "cat":
		data, err := os.ReadFile(w.path(argv[1]))
		if err != nil {
			w.Fatal(err)
		}
		return result{0, string(data), ""}
	case r.number() == 585:
		data, _ := os.ReadFile(w.path("/root/src/k.pub"))
		stdin, argv = string(data), strings.Fields("qm set 143 --sshkeys /dev/stdin")
	}
	for i, a := range argv {
		if strings.Contains(a, "/tasks/UPID:pve1") {
			argv[i] = "/nodes/pve1/tasks/" + w.upid + a[strings.LastIndex(a, "/"):]
		}
	}
	h, err := Open(w.Host.dir)
	if err != nil {
		w.Fatal(err)
	}
	h.clock, h.times = w.clock, patient
	if slices.Contains(runsOutOfTime, r.number()) {
		h.times = hasty
		w.clock.(*fastClock).impatient = true
		defer func() { w.clock.(*fastClock).impatient = false }()
	}
	var out, stderr bytes.Buffer
	argv[0] = w.path(map[string]string{"qm": "usr/sbin/qm", "pvesm": "usr/sbin/pvesm", "pvesh": "usr/bin/pvesh", "pveversion": "usr/bin/pveversion"}[argv[0]])
	code := h.Run(w.ctx, argv, strings.NewReader(stdin), &out, &stderr)
	if r.number() == 354 {
		out.Truncate(min(out.Len(), 2000))
	}
	return result{code, out.String(), stderr.String()}
}

func (w *replayer) compare(r record, got result) {
	w.Helper()
	if r.Exit == nil || *r.Exit != got.code {
		w.Errorf("exit code: real %v, simulated %d", *r.Exit, got.code)
	}
	want, have := r.Stdout, got.out
	if strings.HasSuffix(strings.Join(r.Argv, " "), "--output-format json") {
		want, have = normJSON(w.T, want, r), normJSON(w.T, have, r)
	}
	if diff := cmp.Diff(norm(want), norm(have)); diff != "" {
		w.Errorf("stdout (-real +simulated):\n%s", diff)
	}
	if diff := cmp.Diff(norm(r.Stderr), norm(got.stderr)); diff != "" {
		w.Errorf("stderr (-real +simulated):\n%s", diff)
	}
}

func (w *replayer) index() map[string]bool {
	data, _ := os.ReadFile(w.path("var/log/pve/tasks/index"))
	lines := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		lines[line] = true
	}
	return lines
}

// compareTasks compares the tasks that a record left.
func (w *replayer) compareTasks(r record) {
	type task struct{ What, Status, Log string }
	read := func(line, log string) task {
		upid, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		_, status, _ := strings.Cut(rest, " ")
		f := strings.Split(upid, ":")
		return task{strings.Join(f[5:8], ":"), norm(status), norm(log)}
	}
	var want, have []task
	for _, t := range r.After.Tasks {
		want = append(want, read(t.Line, t.Log))
	}
	for line := range w.index() {
		upid, _, _ := strings.Cut(line, " ")
		if !w.before[line] {
			w.upid = upid
		}
		data, _ := os.ReadFile(w.taskLog(upid))
		if !w.before[line] && !strings.HasSuffix(line, " unexpected status\n") {
			have = append(have, read(line, string(data)))
		}
	}
	if len(want) == 0 || r.number() == 603 {
		return
	}
	byName := func(a, b task) int { return strings.Compare(a.What, b.What) }
	slices.SortFunc(want, byName)
	slices.SortFunc(have, byName)
	if diff := cmp.Diff(want, have); diff != "" {
		w.Errorf("tasks (-real +simulated):\n%s", diff)
	}
}

// place puts a configuration there.
func (w *replayer) place(vmid, text string) {
	w.Helper()
	if err := os.WriteFile(w.confPath(vmid), []byte(text), 0o640); err != nil {
		w.Fatal(err)
	}
	if err := Refresh(w.pmxcfs()); err != nil {
		w.Fatal(err)
	}
}

// put places a configuration, and the volumes it names that are not there.
func (w *replayer) put(vmid, text string) {
	w.Helper()
	w.place(vmid, text)
	c := parseConf(vmid, []byte(text))
	for _, s := range c.sections() {
		for _, d := range append(s.drives(), s.unused()...) {
			v, err := w.parseVolume(d.file)
			if err != nil || w.exists(v.path()) {
				continue
			}
			size, _ := parseSize(d.opts["size"])
			if d.cloudInit() {
				size = disk.CloudInitSize
			}
			_ = os.MkdirAll(filepath.Dir(w.path(v.path())), 0o755)
			if err := disk.Create(w.path(v.path()), v.format, size, ""); err != nil {
				w.Fatal(err)
			}
		}
	}
}

var normRules = []struct {
	find *regexp.Regexp
	put  string
}{
	{regexp.MustCompile(`(?m)^transferred .*\n`), ""},
	{regexp.MustCompile(`transferred [^\n]*\\n`), ""},
	{regexp.MustCompile(`UPID:pve1:[0-9A-F]{8}:[0-9A-F]{8}:[0-9A-F]{8}:`), "UPID:"},
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "UUID"},
	{regexp.MustCompile(`(?i)bc:24:11:[0-9a-f]{2}:[0-9a-f]{2}:[0-9a-f]{2}`), "MAC"},
	{regexp.MustCompile(`ctime=\d+`), "ctime=T"},
	{regexp.MustCompile(`conf\.tmp\.\d+`), "conf.tmp.P"},
	{regexp.MustCompile(`\$5\$[./A-Za-z0-9]{8}\$[./A-Za-z0-9]{43}`), "HASH"},
	{regexp.MustCompile(`(?m)^( +\d+ .* \d+\.\d\d) [1-9]\d* *$`), "$1 PID"},
	{regexp.MustCompile(`\(PID \d+\)`), "(PID)"},
	{regexp.MustCompile(`"pid" : \d+`), `"pid" : P`},
	{regexp.MustCompile(`(?m)^(local +dir +active +\d+) +\d+ +\d+ +[\d.]+%`), "$1 USED"},
	{regexp.MustCompile(`(?m)^(\t*)(mem|memhost|netin|netout|pid|pressure\w+|uptime): .*`), "$1$2: N"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`), "DATE"},
	{regexp.MustCompile(`snaptime: \d+`), "snaptime: T"},
	{regexp.MustCompile(`"version": \d+`), `"version": N`},
	{regexp.MustCompile(`(?m)^(\d\.\d+|\d+\.\d+) MiB in .*`), "STATE"},
	{regexp.MustCompile(`saved [\d.]+ MiB`), "saved N"},
	{regexp.MustCompile(`(?m)^instance-id: .*`), "instance-id: I"},
}

var contentLine = regexp.MustCompile(`(?m)^\tcontent (.*)$`)

// norm replaces what is random or of the moment.
func norm(s string) string {
	for _, r := range normRules {
		s = r.find.ReplaceAllString(s, r.put)
	}
	return contentLine.ReplaceAllStringFunc(s, func(line string) string {
		words := strings.Split(strings.TrimPrefix(line, "\tcontent "), ",")
		slices.Sort(words)
		return "\tcontent " + strings.Join(words, ",")
	})
}

// volatile are keys of JSON whose values are of the moment, or of the host.
var volatile = strings.Fields(`mem memhost netin netout pid pstart starttime endtime uptime cpu disk used avail used_fraction ctime
	pressurecpufull pressurecpusome pressureiofull pressureiosome pressurememoryfull pressurememorysome upid`)

// normJSON makes JSON comparable: lists sorted, volatile values gone.
func normJSON(t *testing.T, s string, r record) string {
	var v any
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return s
	}
	var walk func(v any) any
	walk = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			for k := range v {
				if v[k] = walk(v[k]); slices.Contains(volatile, k) {
					v[k] = "*"
				}
				if k == "content" {
					words := strings.Split(fmt.Sprint(v[k]), ",")
					slices.Sort(words)
					v[k] = strings.Join(words, ",")
				}
				if k == "digest" && strings.Contains(r.name, "storage") {
					v[k] = "*" // the order of content= is Perl's
				}
			}
		case []any:
			for i := range v {
				v[i] = walk(v[i])
			}
			slices.SortFunc(v, func(a, b any) int { return strings.Compare(compactJSON(a), compactJSON(b)) })
		}
		return v
	}
	return perlJSON(walk(v))
}
