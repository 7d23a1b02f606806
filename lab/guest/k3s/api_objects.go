package k3s

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

type list[T any] struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Meta       map[string]string `json:"metadata"`
	Items      []T               `json:"items"`
}

func listOf[T any](kind string, items []T, rev int64) list[T] {
	return list[T]{"v1", kind, map[string]string{"resourceVersion": version(rev)}, items}
}

// objects are the resources of the Kubernetes API that exist here.
func (s *server) objects(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/v1/nodes", s.authorized(s.listNodes))
	mux.HandleFunc("POST /api/v1/nodes", s.authorized(s.createNode))
	mux.HandleFunc("GET /api/v1/nodes/{name}", s.authorized(s.getNode))
	mux.HandleFunc("PATCH /api/v1/nodes/{name}", s.authorized(s.patchNode))
	mux.HandleFunc("DELETE /api/v1/nodes/{name}", s.authorized(s.deleteNode))
	mux.HandleFunc("GET /api/v1/secrets", s.authorized(s.listSecrets))
	mux.HandleFunc("GET /api/v1/namespaces/{ns}/secrets", s.authorized(s.listSecrets))
	mux.HandleFunc("GET /api/v1/namespaces/{ns}/secrets/{name}", s.authorized(s.getSecret))
	mux.HandleFunc("DELETE /api/v1/namespaces/{ns}/secrets/{name}", s.authorized(s.deleteSecret))
	mux.HandleFunc("PUT /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}", s.authorized(s.renewLease))
	empty := func(kind string) http.HandlerFunc {
		return s.authorized(func(w http.ResponseWriter, r *http.Request) {
			if may(w, r, "") {
				reply(w, listOf(kind, []any{}, 1))
			}
		})
	}
	mux.HandleFunc("GET /api/v1/pods", empty("PodList"))
	mux.HandleFunc("GET /api/v1/namespaces/{ns}/pods", empty("PodList"))
}

func (s *server) grace() time.Duration { return ms(s.o.Settings().NodeGraceMs) }

func (s *server) listNodes(w http.ResponseWriter, r *http.Request) {
	// The node authorizer lets a kubelet list its own Node, and only when it asks
	// for no other.
	only, byName := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name=")
	if !may(w, r, only) {
		return
	}
	nodes, rev, err := s.store().nodes(r.Context())
	if err != nil {
		failed(w, "nodes", "", err)
		return
	}
	leases, err := s.store().leases(r.Context())
	if err != nil {
		failed(w, "nodes", "", err)
		return
	}
	out := []node{}
	for _, n := range nodes {
		if !selected(n.Meta.Labels, r.URL.Query().Get("labelSelector")) || byName && n.Meta.Name != only {
			continue
		}
		out = append(out, withReady(n, leases[n.Meta.Name], time.Now(), s.grace()))
	}
	reply(w, listOf("NodeList", out, rev))
}

// selected answers a label selector of "key", "key=value", "key!=value" and
// "!key" parts.
func selected(labels map[string]string, selector string) bool {
	if selector == "" {
		return true
	}
	for part := range strings.SplitSeq(selector, ",") {
		k, want, eq := strings.Cut(strings.Replace(part, "==", "=", 1), "=")
		k, not := strings.CutSuffix(k, "!")
		if absent, ok := strings.CutPrefix(k, "!"); ok {
			if _, there := labels[absent]; there {
				return false
			}
			continue
		}
		got, there := labels[k]
		if !eq && !there || eq && (got == want && there) == not {
			return false
		}
	}
	return true
}

func (s *server) oneNode(ctx context.Context, name string) (node, error) {
	n, err := s.store().node(ctx, name)
	if err != nil {
		return n, err
	}
	leases, err := s.store().leases(ctx)
	if err != nil {
		return n, err
	}
	return withReady(n, leases[name], time.Now(), s.grace()), nil
}

func (s *server) getNode(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if !may(w, r, name) {
		return
	}
	n, err := s.oneNode(r.Context(), name)
	if err != nil {
		failed(w, "nodes", name, err)
		return
	}
	reply(w, n)
}

func (s *server) createNode(w http.ResponseWriter, r *http.Request) {
	var n node
	if err := json.NewDecoder(r.Body).Decode(&n); err != nil {
		refuse(w, http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	if !may(w, r, n.Meta.Name) {
		return
	}
	n.Meta.Version = ""
	n, err := s.store().putNode(r.Context(), n)
	if err != nil {
		failed(w, "nodes", n.Meta.Name, err)
		return
	}
	w.WriteHeader(http.StatusCreated)
	reply(w, n)
}

// patchNode is a JSON merge patch.
func (s *server) patchNode(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if !may(w, r, name) {
		return
	}
	var patch map[string]any
	if err := json.NewDecoder(r.Body).Decode(&patch); err != nil {
		refuse(w, http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	n, err := s.store().changeNode(r.Context(), name, func(n *node) error {
		rev, uid, created, deleted := n.Meta.Version, n.Meta.UID, n.Meta.Created, n.Meta.Deleted
		b, err := json.Marshal(n)
		if err != nil {
			return err
		}
		var doc map[string]any
		if err := json.Unmarshal(b, &doc); err != nil {
			return err
		}
		merge(doc, patch)
		if b, err = json.Marshal(doc); err != nil {
			return err
		}
		var out node
		if err := json.Unmarshal(b, &out); err != nil {
			return err
		}
		*n = out
		n.Meta.Name, n.Meta.Version, n.Meta.UID, n.Meta.Created, n.Meta.Deleted = name, rev, uid, created, deleted
		return nil
	})
	if err != nil {
		failed(w, "nodes", name, err)
		return
	}
	reply(w, n)
}

// merge is RFC 7396.
func merge(doc, patch map[string]any) {
	for k, v := range patch {
		p, isMap := v.(map[string]any)
		switch {
		case v == nil:
			delete(doc, k)
		case isMap:
			d, ok := doc[k].(map[string]any)
			if !ok {
				d = map[string]any{}
			}
			merge(d, p)
			doc[k] = d
		default:
			doc[k] = v
		}
	}
}

// deleteNode marks a node; the controllers do the rest and take it away.
func (s *server) deleteNode(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if !may(w, r, "") {
		return
	}
	n, err := s.store().changeNode(r.Context(), name, func(n *node) error {
		if n.Meta.Deleted == nil {
			now, zero := time.Now().UTC().Truncate(time.Second), 0
			n.Meta.Deleted, n.Meta.Grace = &now, &zero
		}
		return nil
	})
	if err != nil {
		failed(w, "nodes", name, err)
		return
	}
	reply(w, n)
}

func (s *server) listSecrets(w http.ResponseWriter, r *http.Request) {
	if !may(w, r, "") {
		return
	}
	list, rev, err := s.store().secrets(r.Context(), r.PathValue("ns"))
	if err != nil {
		failed(w, "secrets", "", err)
		return
	}
	reply(w, listOf("SecretList", list, rev))
}

func (s *server) getSecret(w http.ResponseWriter, r *http.Request) {
	if !may(w, r, "") {
		return
	}
	o, err := s.store().secret(r.Context(), r.PathValue("ns"), r.PathValue("name"))
	if err != nil {
		failed(w, "secrets", r.PathValue("name"), err)
		return
	}
	reply(w, o)
}

func (s *server) deleteSecret(w http.ResponseWriter, r *http.Request) {
	if !may(w, r, "") {
		return
	}
	if err := s.store().dropSecret(r.Context(), r.PathValue("ns"), r.PathValue("name")); err != nil {
		failed(w, "secrets", r.PathValue("name"), err)
		return
	}
	reply(w, status{"v1", "Status", "Success", "", "", http.StatusOK})
}

func (s *server) renewLease(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if !may(w, r, name) {
		return
	}
	if err := s.store().renew(r.Context(), name, s.grace()); err != nil {
		failed(w, "leases", name, err)
		return
	}
	reply(w, map[string]string{"kind": "Lease"})
}
