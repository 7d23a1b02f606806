package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/homeiac/homelab/agent/guest"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/rpc"
)

// keptSnapshots is how many of them a host keeps, the newest.
const keptSnapshots = 10

// snapshots is the folder of etcd snapshots. A snapshot is three files: NAME.db,
// NAME.token with what a restore needs beside it, and NAME.json which describes it
// and is written last: without it there is no snapshot.
type snapshots struct {
	dir, host string
	mu        sync.Mutex
}

// snapshot copies etcd through a server into this host's state, with the server
// token beside it. It changes nothing in the cluster.
func (s *Service) snapshot(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	through := req.GetThrough()
	if o := s.host.Observe(s.now()); o.GetRootUsedPercent() > fullRoot {
		return nil, rpc.Errorf(rpc.ErrRefused, "its root file system is %.0f %% full (at most %d %%)", o.GetRootUsedPercent(), fullRoot)
	}
	sh, err := s.open(ctx, through)
	if err != nil {
		return nil, err
	}
	defer sh.Close()
	m, err := openEtcd(ctx, sh)
	if err != nil {
		return nil, err
	}
	defer m.close()
	if _, err := m.self(ctx); err != nil {
		return nil, err
	}
	token, err := serverToken(ctx, sh)
	if err != nil {
		return nil, err
	}
	snap := &homelabv1.Snapshot{Host: s.name, Guest: through.GetIdentity().GetGuest(), At: timestamppb.New(s.now()), K3SVersion: versionIn(ctx, sh)}
	snap.Name = fmt.Sprintf("etcd-%s-%s-%s", s.fleet, snap.GetGuest(), snap.GetAt().AsTime().UTC().Format("20060102T150405.000Z"))
	if !filepath.IsLocal(snap.GetName()) || strings.ContainsRune(snap.GetName(), filepath.Separator) {
		return nil, rpc.Errorf(rpc.ErrInvalid, "fleet %q, guest %q", s.fleet, snap.GetGuest())
	}
	e.progress("taking a snapshot", "copying etcd through "+snap.GetGuest())
	err = e.call(callEtcd, []string{"snapshot", snap.GetName() + ".db"}, func() (int, error) {
		from, err := m.client.Snapshot(ctx)
		if err != nil {
			return 0, rpc.Errorf(rpc.ErrUnavailable, "etcd gives no snapshot: %w", err)
		}
		defer from.Close()
		return 0, s.snapshots.keep(snap, from, token)
	})
	if err != nil {
		return nil, err
	}
	r := done(true, "etcd snapshot %s (%s) is on host %s", snap.GetName(), human.Size(snap.GetBytes()), s.name)
	r.Learned.Snapshot = snap
	return r, nil
}

// serverToken reads the full token, without which a snapshot cannot be restored:
// etcd holds the cluster's keys encrypted with it.
func serverToken(ctx context.Context, sh *guest.Shell) (k3s.Secret, error) {
	res, err := sh.Run(ctx, k3s.ReadFileScript(k3s.ServerToken), nil)
	if err != nil {
		return k3s.Secret{}, err
	}
	if res.Exit != 0 {
		return k3s.Secret{}, rpc.Errorf(rpc.ErrUnavailable, "the server token cannot be read, and a snapshot is worth nothing without: exit %d: %s", res.Exit, guest.Tail(res.Stderr, 1))
	}
	t, err := k3s.ParseToken(k3s.NewSecret(string(res.Stdout)))
	if err == nil && t.CAHash == "" {
		err = errors.New("it is a short one")
	}
	if err != nil {
		return k3s.Secret{}, rpc.Errorf(rpc.ErrUnavailable, "the server token: %w", err)
	}
	return t.Full(), nil
}

// versionIn is the guest's k3s version, "" when it is not told.
func versionIn(ctx context.Context, sh *guest.Shell) string {
	res, err := sh.Run(ctx, k3s.VersionScript, nil)
	if err != nil || res.Exit != 0 {
		return ""
	}
	v, err := k3s.ParseVersionOutput(string(res.Stdout))
	if err != nil {
		return ""
	}
	return v.String()
}

// keep stores a snapshot and fills in what describes it. What is not whole is not kept.
func (k *snapshots) keep(snap *homelabv1.Snapshot, from io.Reader, token k3s.Secret) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return err
	}
	k.tidy()
	tmp, err := os.CreateTemp(k.dir, ".tmp-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // gone already when all went well
	sum := newTrailed()
	_, err = io.Copy(io.MultiWriter(tmp, sum), from)
	if err == nil {
		err = sum.check()
	}
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("etcd snapshot: %w", err)
	}
	snap.Path, snap.Bytes, snap.Sha256 = filepath.Join(k.dir, snap.GetName()+".db"), sum.n, hex.EncodeToString(sum.whole())
	about, err := protojson.MarshalOptions{Indent: "  "}.Marshal(snap)
	if err != nil {
		return err
	}
	if err := durable.Write(filepath.Join(k.dir, snap.GetName()+".token"), []byte(token.Reveal()+"\n")); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), snap.GetPath()); err != nil {
		return err
	}
	if err := durable.Write(filepath.Join(k.dir, snap.GetName()+".json"), about); err != nil {
		return err
	}
	return k.prune()
}

// list gives the snapshots, newest first. The description is believed as far as
// the file it describes is there in its size.
func (k *snapshots) list() ([]*homelabv1.Snapshot, error) {
	entries, err := os.ReadDir(k.dir)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []*homelabv1.Snapshot
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		data, err := os.ReadFile(filepath.Join(k.dir, e.Name()))
		if err != nil {
			return nil, err
		}
		one := new(homelabv1.Snapshot)
		st, statErr := os.Stat(filepath.Join(k.dir, name+".db"))
		if protojson.Unmarshal(data, one) != nil || one.GetName() != name || statErr != nil || st.Size() != one.GetBytes() {
			continue
		}
		one.Host, one.Path = k.host, filepath.Join(k.dir, name+".db")
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b *homelabv1.Snapshot) int {
		return cmp.Or(b.GetAt().AsTime().Compare(a.GetAt().AsTime()), cmp.Compare(a.GetName(), b.GetName()))
	})
	return out, nil
}

// prune removes all but the newest. The description goes first: what has none is
// no snapshot.
func (k *snapshots) prune() error {
	all, err := k.list()
	if err != nil || len(all) <= keptSnapshots {
		return err
	}
	for _, old := range all[keptSnapshots:] {
		for _, ext := range []string{".json", ".db", ".token"} {
			if err := durable.Remove(filepath.Join(k.dir, old.GetName()+ext)); err != nil {
				return err
			}
		}
	}
	return nil
}

// tidy removes what a snapshot that was cut off left: half a copy, or a file
// without the description that would make it one. Best effort.
func (k *snapshots) tidy() {
	entries, _ := os.ReadDir(k.dir)
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		half := strings.HasPrefix(e.Name(), ".tmp-")
		if ext == ".db" || ext == ".token" {
			_, err := os.Stat(filepath.Join(k.dir, strings.TrimSuffix(e.Name(), ext)+".json"))
			half = os.IsNotExist(err)
		}
		if half {
			_ = os.Remove(filepath.Join(k.dir, e.Name()))
		}
	}
}

// trailed sums a stream up that ends in the SHA-256 of all before, as an etcd
// snapshot does, without keeping more of it than its end.
type trailed struct {
	n    int64
	body hash.Hash // of all but the end
	end  []byte    // the last bytes, which may be the sum
}

func newTrailed() *trailed { return &trailed{body: sha256.New()} }

func (t *trailed) Write(p []byte) (int, error) {
	t.n += int64(len(p))
	t.end = append(t.end, p...)
	if over := len(t.end) - sha256.Size; over > 0 {
		_, _ = t.body.Write(t.end[:over])
		t.end = append(t.end[:0], t.end[over:]...)
	}
	return len(p), nil
}

// page is what etcd's database grows by; the sum comes after whole ones.
const page = 512

func (t *trailed) check() error {
	if len(t.end) != sha256.Size || (t.n-sha256.Size)%page != 0 || t.n == sha256.Size {
		return rpc.Errorf(rpc.ErrUnavailable, "%d bytes are no whole snapshot", t.n)
	}
	if !slices.Equal(t.body.Sum(nil), t.end) {
		return rpc.Errorf(rpc.ErrUnavailable, "its SHA-256 does not fit")
	}
	return nil
}

// whole is the SHA-256 of all that was written, its end too; it comes last.
func (t *trailed) whole() []byte {
	_, _ = t.body.Write(t.end)
	return t.body.Sum(nil)
}

// ListSnapshots lists the etcd snapshots that this host keeps.
func (s *Service) ListSnapshots(context.Context, *agentv1.ListSnapshotsRequest) (*agentv1.ListSnapshotsResponse, error) {
	list, err := s.snapshots.list()
	if err != nil {
		return nil, err
	}
	return &agentv1.ListSnapshotsResponse{Snapshots: list}, nil
}
