package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/rpc"
)

func (w *world) listed() []*homelabv1.Snapshot {
	w.t.Helper()
	r, err := w.svc.ListSnapshots(w.t.Context(), &agentv1.ListSnapshotsRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	return r.GetSnapshots()
}

func TestASnapshotIsKeptWithItsTokenOutsideTheGuest(t *testing.T) {
	w := newWorld(t)
	if got := w.listed(); len(got) != 0 {
		t.Errorf("listed %v", got)
	}
	c := newCluster(t, w, 1)
	req := w.request(snapshotStep)
	req.Through, req.Want, req.Step.Guest, req.Step.Through = w.want(), nil, "", "k3s-1"
	s, err := w.do(req)
	if err != nil {
		t.Fatal(err)
	}
	snap := s.result.GetLearned().GetSnapshot()
	data, err := os.ReadFile(snap.GetPath())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	if hex.EncodeToString(sum[:]) != snap.GetSha256() || int64(len(data)) != snap.GetBytes() || snap.GetHost() != "pve1" || snap.GetGuest() != "k3s-1" || snap.GetK3SVersion() != release {
		t.Errorf("snapshot %v, %d bytes", snap, len(data))
	}
	body := sha256.Sum256(data[:len(data)-sha256.Size])
	if !slices.Equal(body[:], data[len(data)-sha256.Size:]) {
		t.Error("its own sum does not fit")
	}
	token, err := os.ReadFile(strings.TrimSuffix(snap.GetPath(), ".db") + ".token")
	if err != nil || string(token) != fullToken+"\n" {
		t.Errorf("token file: %v", err)
	}
	err = filepath.WalkDir(w.cfg.State, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if st, err := d.Info(); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", path, st.Mode(), err)
		}
		if data, err := os.ReadFile(path); err == nil && strings.Contains(string(data), "hunter2") && filepath.Ext(path) != ".token" {
			t.Errorf("the token is in %s", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.calls()) != 0 || !slices.ContainsFunc(s.events, func(e *homelabv1.Event) bool {
		return e.GetCall().GetProgram() == "etcd" && e.GetCall().GetArgs()[0] == "snapshot"
	}) {
		t.Errorf("a copy changes nothing, and is told: %v", s.events)
	}
	for _, e := range s.events {
		if strings.Contains(e.String(), "hunter2") {
			t.Errorf("the token is in an event: %v", e)
		}
	}
	if got := w.listed(); len(got) != 1 || got[0].GetName() != snap.GetName() || got[0].GetSha256() != snap.GetSha256() || got[0].GetPath() != snap.GetPath() {
		t.Errorf("listed %v", got)
	}
	// A second one is a second one. A short token restores nothing.
	if s, err = w.do(req); err != nil || len(w.listed()) != 2 {
		t.Errorf("again: %v %v", s.result, err)
	}
	c.token = "hunter2"
	if _, err = w.do(req); !errors.Is(err, rpc.ErrUnavailable) || strings.Contains(err.Error(), "hunter2") || len(w.listed()) != 2 {
		t.Errorf("a short token: %v", err)
	}
	w.hyp.vms[201].Uuid = "other"
	if _, err = w.do(req); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("through another VM: %v", err)
	}
}

// whole is a snapshot of some content, its sum at its end.
func whole(content string) string {
	body := content + strings.Repeat("x", page-len(content))
	sum := sha256.Sum256([]byte(body))
	return body + string(sum[:])
}

func TestOnlyWholeSnapshotsAreKeptAndTheNewest(t *testing.T) {
	k := &snapshots{dir: filepath.Join(t.TempDir(), "snapshots"), host: "pve1"}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	keep := func(name, content string) error {
		at = at.Add(time.Minute)
		return k.keep(&homelabv1.Snapshot{Name: name, At: timestamppb.New(at)}, strings.NewReader(content), k3s.NewSecret("hunter2"))
	}
	for name, content := range map[string]string{
		"empty": "", "only a sum": whole("a")[page:], "cut off": whole("a")[:page], "cut off later": whole("a")[:page+31], "too long": whole("a") + "y",
		"another": "b" + whole("a")[1:],
	} {
		if err := keep("a", content); !errors.Is(err, rpc.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left, _ := os.ReadDir(k.dir); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	for i := range keptSnapshots + 3 {
		if err := keep("s"+string(rune('a'+i)), whole("a")); err != nil {
			t.Fatal(err)
		}
	}
	list, err := k.list()
	if err != nil || len(list) != keptSnapshots || list[0].GetName() != "sm" || list[keptSnapshots-1].GetName() != "sd" {
		t.Errorf("kept %v %v", list, err)
	}
	if files, _ := os.ReadDir(k.dir); len(files) != 3*keptSnapshots {
		t.Errorf("files %v", files)
	}
	// What a kill left is no snapshot, and is cleared away with the next one.
	for _, name := range []string{".tmp-1", "half.db", "half.token"} {
		if err := os.WriteFile(filepath.Join(k.dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(filepath.Join(k.dir, "sm.db"), 1); err != nil {
		t.Fatal(err)
	}
	if list, _ = k.list(); len(list) != keptSnapshots-1 || list[0].GetName() != "sl" {
		t.Errorf("a file that was cut is listed: %v", list)
	}
	if err := keep("z", whole("z")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".tmp-1", "half.db", "half.token"} {
		if _, err := os.Stat(filepath.Join(k.dir, name)); !os.IsNotExist(err) {
			t.Errorf("%s is still there", name)
		}
	}
}
