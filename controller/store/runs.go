package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

const (
	// keepRuns is how many runs are kept with their events, keepAudit how many
	// with their changing calls.
	keepRuns  = 100
	keepAudit = 1000
	// batch bounds the operations of one transaction; etcd takes 128.
	batch = 100
)

// The states of a run.
const (
	StateRunning     = "running"
	StateDone        = "done"
	StatePartial     = "partial"
	StateFailed      = "failed"
	StateInterrupted = "interrupted"
)

func runKey(run int64) string       { return fmt.Sprintf("runs/%012d", run) }
func eventsPrefix(run int64) string { return fmt.Sprintf("events/%012d/", run) }
func auditPrefix(run int64) string  { return fmt.Sprintf("audit/%012d/", run) }

// BeginRun gives the run its number, which only ever rises, and writes its
// record. Runs that still say running are marked interrupted, as the lock's
// holder is the only one who may run. Old runs are dropped.
func (s *Store) BeginRun(ctx context.Context, lock *Lock, by string, now time.Time) (*controllerv1.RunRecord, error) {
	if err := s.interrupt(ctx, lock, now); err != nil {
		return nil, err
	}
	for range changeAttempts {
		last, err := s.get(ctx, "run")
		if err != nil {
			return nil, err
		}
		var n int64
		if last.rev != 0 {
			if n, err = parseInt(last); err != nil {
				return nil, err
			}
		}
		record := &controllerv1.RunRecord{Run: n + 1, By: by, Started: timestamppb.New(now), State: StateRunning}
		data, err := marshal(record)
		if err != nil {
			return nil, err
		}
		ops := []clientv3.Op{
			s.put("run", []byte(strconv.FormatInt(record.GetRun(), 10))),
			s.put(runKey(record.GetRun()), data),
		}
		ops = append(ops, s.dropBefore("runs/", record.GetRun()-keepRuns+1)...)
		ops = append(ops, s.dropBefore("events/", record.GetRun()-keepRuns+1)...)
		ops = append(ops, s.dropBefore("audit/", record.GetRun()-keepAudit+1)...)
		ok, err := s.commit(ctx, "begin a run", lock.guard(s.unchanged(last)), ops...)
		if err != nil {
			return nil, err
		}
		if ok {
			return record, nil
		}
		if lock.gone() {
			break
		}
	}
	return nil, ErrLockLost
}

func (s *Store) dropBefore(prefix string, run int64) []clientv3.Op {
	if run <= 1 {
		return nil
	}
	return []clientv3.Op{deleteOp(s.key(prefix), clientv3.WithRange(s.key(fmt.Sprintf("%s%012d", prefix, run))))}
}

// Interrupt marks runs that still say running although nobody holds the lock:
// their controller died. It does nothing while somebody holds it.
func (s *Store) Interrupt(ctx context.Context, now time.Time) error {
	if _, held, err := s.Held(ctx); err != nil || held {
		return err
	}
	return s.interrupt(ctx, nil, now)
}

func (s *Store) interrupt(ctx context.Context, lock *Lock, now time.Time) error {
	values, _, err := s.list(ctx, "runs/")
	if err != nil {
		return err
	}
	for _, v := range values {
		record := new(controllerv1.RunRecord)
		if err := unmarshal(v.data, record); err != nil {
			return err
		}
		if record.GetState() != StateRunning {
			continue
		}
		record.State, record.Ended = StateInterrupted, timestamppb.New(now)
		if err := s.PutRun(ctx, lock, record); err != nil {
			return err
		}
	}
	return nil
}

// PutRun writes a run's record.
func (s *Store) PutRun(ctx context.Context, lock *Lock, record *controllerv1.RunRecord) error {
	return s.putMessage(ctx, lock, runKey(record.GetRun()), record)
}

// LastRun is the highest number given to a run; 0 is none.
func (s *Store) LastRun(ctx context.Context) (int64, error) {
	v, err := s.get(ctx, "run")
	if err != nil || v.rev == 0 {
		return 0, err
	}
	return parseInt(v)
}

// RaiseRun makes sure that the next run's number is above n: agents may have
// seen higher ones than a store that was lost and begun anew.
func (s *Store) RaiseRun(ctx context.Context, n int64) error {
	_, err := changeJSON(ctx, s, "run", func(v *int64, _ bool) error {
		*v = max(*v, n)
		return nil
	})
	return err
}

// Runs are the latest runs, latest first, limit at most.
func (s *Store) Runs(ctx context.Context, limit int) ([]*controllerv1.RunRecord, error) {
	values, _, err := s.list(ctx, "runs/",
		clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(int64(limit)))
	if err != nil {
		return nil, err
	}
	records := make([]*controllerv1.RunRecord, 0, len(values))
	for _, v := range values {
		record := new(controllerv1.RunRecord)
		if err := unmarshal(v.data, record); err != nil {
			return nil, err
		}
		records = append(records, record)
	}
	return records, nil
}

// Run is one run's record, or ErrNotFound.
func (s *Store) Run(ctx context.Context, run int64) (*controllerv1.RunRecord, error) {
	v, err := s.get(ctx, runKey(run))
	if err != nil {
		return nil, err
	}
	if v.rev == 0 {
		return nil, rpc.Errorf(rpc.ErrNotFound, "run %d is not remembered (the last %d are); see: hlctl runs", run, keepRuns)
	}
	record := new(controllerv1.RunRecord)
	if err := unmarshal(v.data, record); err != nil {
		return nil, err
	}
	return record, nil
}

// Audited is one changing call for the audit log.
type Audited struct {
	Time    time.Time `json:"time"`
	Run     int64     `json:"run"`
	By      string    `json:"by"`
	Step    string    `json:"step"`
	Guest   string    `json:"guest,omitempty"`
	Host    string    `json:"host"`
	Program string    `json:"program"`
	Args    []string  `json:"args,omitempty"`
	Exit    int32     `json:"exit"`
	Error   string    `json:"error,omitempty"`
}

// AppendEvents writes events of a run in their order, the first as number from
// (counted from 0), and an audit entry for each changing call among them. Who
// asked for the run is by.
func (s *Store) AppendEvents(ctx context.Context, run, from int64, by string, events []*homelabv1.Event) error {
	var ops []clientv3.Op
	for i, e := range events {
		data, err := marshal(e)
		if err != nil {
			return err
		}
		number := fmt.Sprintf("%08d", from+int64(i))
		ops = append(ops, s.put(eventsPrefix(run)+number, data))
		if call := e.GetCall(); e.GetKind() == homelabv1.EventKind_EVENT_KIND_CALL && call.GetMutating() {
			entry, err := json.Marshal(Audited{
				Time: e.GetTime().AsTime(), Run: run, By: by, Step: e.GetStep(), Guest: e.GetGuest(), Host: e.GetHost(),
				Program: call.GetProgram(), Args: call.GetArgs(), Exit: call.GetExit(), Error: call.GetError(),
			})
			if err != nil {
				return fmt.Errorf("store: audit: %w", err)
			}
			ops = append(ops, s.put(auditPrefix(run)+number, entry))
		}
	}
	for len(ops) > 0 {
		n := min(len(ops), batch)
		if _, err := s.commit(ctx, "write events", nil, ops[:n]...); err != nil {
			return err
		}
		ops = ops[n:]
	}
	return nil
}

// Audit is the changing calls of the runs from first to last, both included, in
// their order.
func (s *Store) Audit(ctx context.Context, first, last int64) ([]Audited, error) {
	values, err := s.between(ctx, auditPrefix(first), auditPrefix(last+1))
	if err != nil {
		return nil, err
	}
	entries := make([]Audited, 0, len(values))
	for _, v := range values {
		var a Audited
		if err := json.Unmarshal(v.data, &a); err != nil {
			return nil, fmt.Errorf("store: %s: %w", v.key, err)
		}
		entries = append(entries, a)
	}
	return entries, nil
}

// Follow calls each for a run's events from the first, in order. With follow it
// goes on until the run has ended; without, it ends with what there is. It
// returns the record as it is then.
func (s *Store) Follow(ctx context.Context, run int64, follow bool, each func(*homelabv1.Event) error) (*controllerv1.RunRecord, error) {
	record, err := s.Run(ctx, run)
	if err != nil {
		return nil, err
	}
	values, rev, err := s.list(ctx, eventsPrefix(run))
	if err != nil {
		return nil, err
	}
	if err := tell(values, each); err != nil {
		return nil, err
	}
	if !follow || record.GetState() != StateRunning {
		return record, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// One watch over both prefixes, so that the end of the run is told after
	// the events that were written before it.
	watch := s.client.Watch(clientv3.WithRequireLeader(ctx), s.prefix, clientv3.WithPrefix(), clientv3.WithRev(rev+1), clientv3.WithFilterDelete())
	if record, err = s.Run(ctx, run); err != nil { // it may have ended between the two
		return nil, err
	}
	for {
		if record.GetState() != StateRunning {
			values, _, err := s.list(ctx, eventsPrefix(run), clientv3.WithMinModRev(rev+1))
			if err != nil {
				return nil, err
			}
			return record, tell(values, each)
		}
		resp, ok := <-watch
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !ok || resp.Err() != nil {
			return nil, unavailable(fmt.Sprintf("follow run %d", run), resp.Err())
		}
		for _, e := range resp.Events {
			v := value{key: strings.TrimPrefix(string(e.Kv.Key), s.prefix), data: e.Kv.Value}
			switch {
			case strings.HasPrefix(v.key, eventsPrefix(run)):
				if err := tell([]value{v}, each); err != nil {
					return nil, err
				}
				rev = e.Kv.ModRevision
			case v.key == runKey(run):
				if err := unmarshal(v.data, record); err != nil {
					return nil, err
				}
			}
		}
	}
}

func tell(values []value, each func(*homelabv1.Event) error) error {
	for _, v := range values {
		e := new(homelabv1.Event)
		if err := unmarshal(v.data, e); err != nil {
			return err
		}
		if err := each(e); err != nil {
			return err
		}
	}
	return nil
}
