package system

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/homeiac/homelab/lab/guest/tree"
)

// entry is one line of the guest's journal.
type entry struct {
	Time  time.Time `json:"t"`
	Boot  string    `json:"b"`
	Unit  string    `json:"u,omitempty"`
	Ident string    `json:"i"`
	PID   int       `json:"p"`
	Text  string    `json:"m"`
}

const (
	journalFile = "/var/log/journal/journal.jsonl"
	// journalLimit is where the file is cut to its newer half.
	journalLimit = 4 << 20
)

// journal is what journald keeps. It lies in the tree, so it outlives the boot.
type journal struct {
	mu   sync.Mutex
	v    *tree.View
	boot string
	f    *os.File
	size int64
}

func openJournal(v *tree.View, boot string) (*journal, error) {
	if err := v.MkdirAll("/var/log/journal", 0o755); err != nil {
		return nil, err
	}
	j := &journal{v: v, boot: boot}
	return j, j.open()
}

func (j *journal) open() error {
	f, err := j.v.OpenFile(journalFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	j.f, j.size = f, fi.Size()
	return nil
}

func (j *journal) add(unit, ident string, pid int, text string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil {
		return
	}
	b, err := json.Marshal(entry{Time: time.Now().UTC(), Boot: j.boot, Unit: unit, Ident: ident, PID: pid, Text: text})
	if err != nil {
		return
	}
	n, err := j.f.Write(append(b, '\n'))
	j.size += int64(n)
	if err == nil && j.size > journalLimit {
		j.cut()
	}
}

// cut drops the older half. A journal that cannot be cut goes on growing.
func (j *journal) cut() {
	b, err := j.v.ReadFile(journalFile)
	if err != nil {
		return
	}
	half := b[len(b)/2:]
	if i := bytes.IndexByte(half, '\n'); i >= 0 {
		half = half[i+1:]
	}
	if j.v.WriteFile(journalFile, half, 0o640) == nil {
		j.size = int64(len(half))
	}
}

func (j *journal) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f != nil {
		j.f.Close()
		j.f = nil
	}
}

func (j *journal) read(keep func(entry) bool) ([]entry, error) {
	b, err := j.v.ReadFile(journalFile)
	if err != nil {
		return nil, err
	}
	var out []entry
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var e entry
		// The last line of a guest that lost its power may be half a line.
		if json.Unmarshal(sc.Bytes(), &e) != nil {
			continue
		}
		if keep(e) {
			out = append(out, e)
		}
	}
	return out, sc.Err()
}

// lineWriter turns what a service prints into journal entries.
type lineWriter struct {
	mu   sync.Mutex
	rest []byte
	line func(string)
}

// Write implements io.Writer.
func (w *lineWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, b...)
	for {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 {
			return len(b), nil
		}
		w.line(strings.TrimRight(string(w.rest[:i]), "\r"))
		w.rest = w.rest[i+1:]
	}
}

// flush gives out a last line without its end.
func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.rest) > 0 {
		w.line(string(w.rest))
		w.rest = nil
	}
}
