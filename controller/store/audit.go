package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homeiac/homelab/internal/rpc"
)

// keepTrail is how many entries of the audit are kept. A number and not an age: a
// clock that is wrong for a moment would take everything.
const keepTrail = 10_000

// The results of an audited call beside the kinds of errors.
const (
	ResultRunning     = "running"
	ResultOK          = "ok"
	ResultInterrupted = "interrupted"
)

// Act is one entry of the audit: one call that changes something or reveals a
// secret, or several that were denied.
type Act struct {
	Time time.Time `json:"time"`
	// Ended is the zero time while it runs and when it is not known.
	Ended      time.Time `json:"ended"`
	Who        string    `json:"who"`
	Method     string    `json:"method"`
	What       string    `json:"what,omitempty"`
	On         []string  `json:"on,omitempty"`
	Result     string    `json:"result"`
	Text       string    `json:"text,omitempty"`
	Count      int       `json:"count"`
	Controller string    `json:"controller"`
}

const (
	trailPrefix = "trail/"
	// openPrefix has an entry for each act that runs, so that those of a controller
	// that was killed are found without reading them all.
	openPrefix = "trail-open/"
)

func trailKey(n int64) string { return fmt.Sprintf("%s%012d", trailPrefix, n) }
func openKey(n int64) string  { return fmt.Sprintf("%s%012d", openPrefix, n) }

// AppendAct adds an entry to the audit and gives its number; the oldest go. One that
// runs is to be ended by EndAct.
func (s *Store) AppendAct(ctx context.Context, a Act) (int64, error) {
	a.Controller = s.name
	data, err := json.Marshal(a)
	if err != nil {
		return 0, fmt.Errorf("store: audit: %w", err)
	}
	s.auditing.Lock()
	defer s.auditing.Unlock()
	for range changeAttempts {
		last, _, err := s.list(ctx, trailPrefix, clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(1), clientv3.WithKeysOnly())
		if err != nil {
			return 0, err
		}
		n := int64(1)
		if len(last) > 0 {
			before, err := numberOf(last[0].key)
			if err != nil {
				return 0, err
			}
			n = before + 1
		}
		key := trailKey(n)
		ops := []clientv3.Op{s.put(key, data)}
		if a.Result == ResultRunning {
			ops = append(ops, s.put(openKey(n), []byte(s.name)))
		}
		if n > keepTrail {
			ops = append(ops,
				deleteOp(s.key(trailPrefix), clientv3.WithRange(s.key(trailKey(n-keepTrail+1)))),
				deleteOp(s.key(openPrefix), clientv3.WithRange(s.key(openKey(n-keepTrail+1)))))
		}
		ok, err := s.commit(ctx, "write "+key, []clientv3.Cmp{s.unchanged(value{key: key})}, ops...)
		if err != nil {
			return 0, err
		}
		if ok {
			return n, nil
		}
	}
	return 0, rpc.Errorf(rpc.ErrBusy, "store: the audit keeps being written by other controllers")
}

// EndAct writes how an act ended. One that was dropped meanwhile stays so.
func (s *Store) EndAct(ctx context.Context, n int64, a Act) error {
	a.Controller = s.name
	data, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("store: audit: %w", err)
	}
	there := clientv3.Compare(clientv3.ModRevision(s.key(openKey(n))), ">", 0)
	_, err = s.commit(ctx, "write "+trailKey(n), []clientv3.Cmp{there}, s.put(trailKey(n), data), deleteOp(s.key(openKey(n))))
	return err
}

// InterruptActs marks what earlier lives of this controller left running.
func (s *Store) InterruptActs(ctx context.Context) error {
	open, _, err := s.list(ctx, openPrefix)
	if err != nil {
		return err
	}
	for _, v := range open {
		n, err := numberOf(v.key)
		if err != nil {
			return err
		}
		if string(v.data) != s.name {
			continue
		}
		old, err := s.get(ctx, trailKey(n))
		if err != nil {
			return err
		}
		var a Act
		if old.rev != 0 {
			if err := json.Unmarshal(old.data, &a); err != nil {
				return fmt.Errorf("store: %s: %w", old.key, err)
			}
		}
		a.Result, a.Text = ResultInterrupted, "its controller ended first"
		if err := s.EndAct(ctx, n, a); err != nil {
			return err
		}
	}
	return nil
}

// Acts are the latest entries of the audit, latest first: at most limit, since a
// time, and by somebody (a name, or role@name) where these are given.
func (s *Store) Acts(ctx context.Context, limit int, since time.Time, by string) ([]Act, error) {
	values, _, err := s.list(ctx, trailPrefix, clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend))
	if err != nil {
		return nil, err
	}
	var acts []Act
	for _, v := range values {
		if len(acts) >= limit {
			break
		}
		var a Act
		if err := json.Unmarshal(v.data, &a); err != nil {
			return nil, fmt.Errorf("store: %s: %w", v.key, err)
		}
		_, name, _ := strings.Cut(a.Who, "@")
		// Not the first that is older ends it: controllers' clocks differ.
		if a.Time.Before(since) || by != "" && by != a.Who && by != name {
			continue
		}
		acts = append(acts, a)
	}
	return acts, nil
}

// numberOf reads the number at a key's end.
func numberOf(key string) (int64, error) {
	n, err := strconv.ParseInt(key[strings.LastIndexByte(key, '/')+1:], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("store: %s: %w", key, err)
	}
	return n, nil
}
