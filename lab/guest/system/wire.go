package system

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"sync"
	"time"
)

// How a port of a guest is reached. The lab says so in a file (WireFile), because
// who may open a port on a network of this machine cannot be told to the kernel
// without root.
const (
	WireOpen   = ""
	WireDrop   = "drop"   // what is sent to it vanishes: connecting times out
	WireRefuse = "refuse" // nobody listens, and what was connected is cut
)

// WireFile is where the lab says how the ports of the VM of that name are reached:
// a JSON object from port to one of the modes.
func WireFile(labDir, host, name string) string {
	return filepath.Join(labDir, "hosts", host, "wire", name+".json")
}

// ReadWire reads a wire file; none is all ports open.
func ReadWire(file string) (map[int]string, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var text map[string]string
	if err := json.Unmarshal(b, &text); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	modes := map[int]string{}
	for port, mode := range text {
		n, err := strconv.Atoi(port)
		if err != nil || mode != WireDrop && mode != WireRefuse {
			return nil, fmt.Errorf("%s: %q: %q is no port and mode", file, port, mode)
		}
		modes[n] = mode
	}
	return modes, nil
}

// wirePoll is how often a guest looks at its wire file.
const wirePoll = 100 * time.Millisecond

// wire is how the guest's ports are reached at present.
type wire struct {
	mu      sync.Mutex
	modes   map[int]string
	changed chan struct{} // closed at the next change
}

func newWire() *wire { return &wire{changed: make(chan struct{})} }

// mode is a port's, and what is closed when any changes.
func (w *wire) mode(port int) (string, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.modes[port], w.changed
}

func (w *wire) set(modes map[int]string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.modes) == 0 && len(modes) == 0 || reflect.DeepEqual(w.modes, modes) {
		return
	}
	w.modes = modes
	close(w.changed)
	w.changed = make(chan struct{})
}

func (o *OS) readWire() {
	if o.m.LabDir == "" {
		return
	}
	modes, err := ReadWire(WireFile(o.m.LabDir, o.m.Host, o.m.Name))
	if err != nil {
		o.Console("wire: " + err.Error())
		return
	}
	o.wire.set(modes)
}

// watchWire follows the wire file until ctx ends.
func (o *OS) watchWire(ctx context.Context) {
	tick := time.NewTicker(wirePoll)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			o.readWire()
		case <-ctx.Done():
			return
		}
	}
}
