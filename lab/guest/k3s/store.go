package k3s

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// store is the cluster's objects in its etcd.
type store struct{ c *clientv3.Client }

const (
	nodesKey   = "/registry/nodes/"
	secretsKey = "/registry/secrets/"
	leasesKey  = "/registry/leases/kube-node-lease/"
)

var (
	errMissing  = errors.New("not found")
	errExists   = errors.New("already exists")
	errConflict = errors.New("the object has been modified; please apply your changes to the latest version and try again")
)

func version(rev int64) string { return strconv.FormatInt(rev, 10) }

func (s *store) nodes(ctx context.Context) ([]node, int64, error) {
	r, err := s.c.Get(ctx, nodesKey, clientv3.WithPrefix())
	if err != nil {
		return nil, 0, err
	}
	out := []node{}
	for _, kv := range r.Kvs {
		n, err := decode[node](kv.Value)
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", kv.Key, err)
		}
		n.Meta.Version = version(kv.ModRevision)
		out = append(out, n)
	}
	return out, r.Header.Revision, nil
}

func (s *store) node(ctx context.Context, name string) (node, error) {
	r, err := s.c.Get(ctx, nodesKey+name)
	if err != nil {
		return node{}, err
	}
	if len(r.Kvs) == 0 {
		return node{}, errMissing
	}
	n, err := decode[node](r.Kvs[0].Value)
	n.Meta.Version = version(r.Kvs[0].ModRevision)
	return n, err
}

// putNode writes a node that was read at its Version; "" means that it must not
// be there yet.
func (s *store) putNode(ctx context.Context, n node) (node, error) {
	key := nodesKey + n.Meta.Name
	rev := int64(0)
	if n.Meta.Version != "" {
		var err error
		if rev, err = strconv.ParseInt(n.Meta.Version, 10, 64); err != nil {
			return n, err
		}
	} else {
		n.Meta.UID, n.Meta.Created = uuid.NewString(), time.Now().UTC().Truncate(time.Second)
	}
	n.Meta.Version = ""
	b, err := json.Marshal(n)
	if err != nil {
		return n, err
	}
	r, err := s.c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", rev)).Then(clientv3.OpPut(key, string(b))).Commit()
	switch {
	case err != nil:
		return n, err
	case !r.Succeeded && rev == 0:
		return n, errExists
	case !r.Succeeded:
		return n, errConflict
	}
	n.Meta.Version = version(r.Header.Revision)
	return n, nil
}

// changeNode applies a change to the newest version until nobody was faster.
func (s *store) changeNode(ctx context.Context, name string, fn func(*node) error) (node, error) {
	for {
		n, err := s.node(ctx, name)
		if err != nil {
			return n, err
		}
		if err := fn(&n); err != nil {
			return n, err
		}
		if n, err = s.putNode(ctx, n); !errors.Is(err, errConflict) {
			return n, err
		}
	}
}

// dropNode takes a node away with its heartbeat.
func (s *store) dropNode(ctx context.Context, name string) error {
	_, err := s.c.Txn(ctx).Then(clientv3.OpDelete(nodesKey+name), clientv3.OpDelete(leasesKey+name)).Commit()
	return err
}

func (s *store) leases(ctx context.Context) (map[string]*lease, error) {
	r, err := s.c.Get(ctx, leasesKey, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	out := map[string]*lease{}
	for _, kv := range r.Kvs {
		l, err := decode[lease](kv.Value)
		if err != nil {
			return nil, err
		}
		out[strings.TrimPrefix(string(kv.Key), leasesKey)] = &l
	}
	return out, nil
}

// renew notes a heartbeat.
func (s *store) renew(ctx context.Context, name string, grace time.Duration) error {
	now := time.Now().UTC()
	l := lease{Renew: now, Since: now}
	r, err := s.c.Get(ctx, leasesKey+name)
	if err != nil {
		return err
	}
	if len(r.Kvs) > 0 {
		if old, err := decode[lease](r.Kvs[0].Value); err == nil && now.Sub(old.Renew) <= grace {
			l.Since = old.Since
		}
	}
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	_, err = s.c.Put(ctx, leasesKey+name, string(b))
	return err
}

func (s *store) secrets(ctx context.Context, namespace string) ([]secretObject, int64, error) {
	prefix := secretsKey
	if namespace != "" {
		prefix += namespace + "/"
	}
	r, err := s.c.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, 0, err
	}
	out := []secretObject{}
	for _, kv := range r.Kvs {
		o, err := decode[secretObject](kv.Value)
		if err != nil {
			return nil, 0, err
		}
		o.Meta.Version = version(kv.ModRevision)
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b secretObject) int { return strings.Compare(a.Meta.Name, b.Meta.Name) })
	return out, r.Header.Revision, nil
}

func (s *store) secret(ctx context.Context, namespace, name string) (secretObject, error) {
	r, err := s.c.Get(ctx, secretsKey+namespace+"/"+name)
	if err != nil {
		return secretObject{}, err
	}
	if len(r.Kvs) == 0 {
		return secretObject{}, errMissing
	}
	o, err := decode[secretObject](r.Kvs[0].Value)
	o.Meta.Version = version(r.Kvs[0].ModRevision)
	return o, err
}

func (s *store) dropSecret(ctx context.Context, namespace, name string) error {
	r, err := s.c.Delete(ctx, secretsKey+namespace+"/"+name)
	if err == nil && r.Deleted == 0 {
		err = errMissing
	}
	return err
}

func passwordSecret(nodeName string) string { return nodeName + ".node-password.k3s" }

// errPassword is what a node with another password is told.
var errPassword = errors.New("Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match server node-passwd entry, try enabling a unique node name with the --with-node-id flag") //nolint:staticcheck // the real text

// checkPassword notes a new node's password, or compares a known one's.
func (s *store) checkPassword(ctx context.Context, nodeName, password string) error {
	name := passwordSecret(nodeName)
	hash := []byte("$1:" + hashCA([]byte(nodeName+":"+password)))
	o := secretObject{APIVersion: "v1", Kind: "Secret", Type: "Opaque", Immutable: true, Data: map[string][]byte{"hash": hash}}
	o.Meta = meta{Name: name, Namespace: "kube-system", UID: uuid.NewString(), Created: time.Now().UTC().Truncate(time.Second)}
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	key := secretsKey + "kube-system/" + name
	r, err := s.c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, string(b))).Else(clientv3.OpGet(key)).Commit()
	if err != nil || r.Succeeded {
		return err
	}
	old, err := decode[secretObject](r.Responses[0].GetResponseRange().Kvs[0].Value)
	if err != nil {
		return err
	}
	if string(old.Data["hash"]) != string(hash) {
		return errPassword
	}
	return nil
}
