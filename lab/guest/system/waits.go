package system

import (
	"encoding/json"
	"os"
	"path/filepath"
	"time"
)

// Wait is a line of DIR/waits.jsonl: an interval in which a guest did nothing
// but take the time that the real thing would.
type Wait struct {
	Host  string    `json:"host"`
	What  string    `json:"what"`
	Guest string    `json:"guest"`
	Start time.Time `json:"start"`
	End   time.Time `json:"end"`
}

// LogWait notes that something simulated took from start until now. A lab
// without a folder (a test) keeps no log.
func (o *OS) LogWait(what string, start time.Time) {
	if o.m.LabDir == "" {
		return
	}
	b, err := json.Marshal(Wait{Host: o.m.Host, What: what, Guest: o.m.Name, Start: start.UTC(), End: time.Now().UTC()})
	if err != nil {
		o.Console("waits: " + err.Error())
		return
	}
	// One write of less than a page to a file opened for appending does not mix
	// with those of other processes.
	f, err := os.OpenFile(filepath.Join(o.m.LabDir, "waits.jsonl"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		o.Console("waits: " + err.Error())
		return
	}
	_, werr := f.Write(append(b, '\n'))
	if cerr := f.Close(); werr != nil || cerr != nil {
		o.Console("waits: cannot write")
	}
}
