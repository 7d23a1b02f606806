package k3s

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"strings"
	"time"
)

// requestLimit bounds what one request may wait for etcd.
const requestLimit = 15 * time.Second

// listen opens the supervisor's and API's port. Until the server is ready it
// answers 503. Stop closes it; failed tells that it ended by itself.
func (s *server) listen(ctx context.Context) (stop func(), failed <-chan error, err error) {
	cert, err1 := s.v.ReadFile(tlsDir + "/serving-kube-apiserver.crt")
	key, err2 := s.v.ReadFile(tlsDir + "/serving-kube-apiserver.key")
	clientCA, err3 := s.v.ReadFile(caFiles["ClientCA"])
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, nil, err
	}
	l, err := s.o.Listen(ctx, portAPI)
	if err != nil {
		return nil, nil, err
	}
	srv := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{pair}, ClientCAs: pool(clientCA), ClientAuth: tls.VerifyClientCertIfGiven,
		},
	}
	ch := make(chan error, 1)
	go func() {
		if err := srv.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			ch <- err
		}
	}()
	return func() { srv.Close() }, ch, nil
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ping", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, "pong")
	})
	mux.HandleFunc("GET /cacerts", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = w.Write(s.caPEM)
	})
	mux.HandleFunc("GET /v1-k3s/server-bootstrap", s.supervised("server", s.serverBootstrap))
	mux.HandleFunc("GET /db/info", s.supervised("server", func(w http.ResponseWriter, r *http.Request) { s.memberInfo(r.Context(), w) }))
	mux.HandleFunc("GET /v1-k3s/config", s.supervised("", s.agentConfig))
	mux.HandleFunc("GET /v1-k3s/apiservers", s.supervised("", s.apiservers))
	mux.HandleFunc("GET /v1-k3s/readyz", s.supervised("", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	mux.HandleFunc("GET /v1-k3s/client-kubelet.crt", s.supervised("", s.kubeletCert))
	mux.HandleFunc("GET /v1-k3s/{ca}", s.supervised("", s.caCert))
	for _, p := range []string{"/readyz", "/healthz", "/livez"} {
		mux.HandleFunc("GET "+p, s.authorized(s.health))
	}
	mux.HandleFunc("GET /version", s.authorized(s.versionInfo))
	s.objects(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), requestLimit)
		defer cancel()
		r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
		mux.ServeHTTP(w, r.WithContext(ctx))
	})
}

// supervised lets in who knows the token: any node, or only servers.
func (s *server) supervised(role string, fn http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !s.isReady() {
			http.Error(w, "starting", http.StatusServiceUnavailable)
			return
		}
		user, pass, _ := r.BasicAuth()
		ok := user == "server" && pass == s.pass || user == "node" && role == "" && (pass == s.agentPass || pass == s.pass)
		if !ok {
			http.Error(w, "401 Unauthorized", http.StatusUnauthorized)
			return
		}
		fn(w, r)
	}
}

// user is who a client certificate names.
type user struct {
	name  string
	admin bool
}

type userKey struct{}

// authorized lets in who has a certificate of the cluster's client CA.
func (s *server) authorized(fn http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
			refuse(w, http.StatusUnauthorized, "Unauthorized", "Unauthorized")
			return
		}
		c := r.TLS.PeerCertificates[0].Subject
		u := user{name: c.CommonName}
		for _, o := range c.Organization {
			u.admin = u.admin || o == "system:masters"
		}
		if !s.isReady() {
			refuse(w, http.StatusServiceUnavailable, "ServiceUnavailable", "apiserver not ready")
			return
		}
		fn(w, r.WithContext(context.WithValue(r.Context(), userKey{}, u)))
	}
}

// may answers 403 unless the user is an administrator or that node.
func may(w http.ResponseWriter, r *http.Request, nodeName string) bool {
	u, _ := r.Context().Value(userKey{}).(user)
	if u.admin || nodeName != "" && u.name == "system:node:"+nodeName {
		return true
	}
	refuse(w, http.StatusForbidden, "Forbidden", fmt.Sprintf("%s %q is forbidden: User %q cannot %s resource", strings.TrimPrefix(r.URL.Path, "/"), nodeName, u.name, strings.ToLower(r.Method)))
	return false
}

func refuse(w http.ResponseWriter, code int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(status{"v1", "Status", "Failure", message, reason, code})
}

// failed answers an error of the store.
func failed(w http.ResponseWriter, kind, name string, err error) {
	switch {
	case errors.Is(err, errMissing):
		refuse(w, http.StatusNotFound, "NotFound", fmt.Sprintf("%s %q not found", kind, name))
	case errors.Is(err, errExists):
		refuse(w, http.StatusConflict, "AlreadyExists", fmt.Sprintf("%s %q already exists", kind, name))
	case errors.Is(err, errConflict):
		refuse(w, http.StatusConflict, "Conflict", err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		refuse(w, http.StatusInternalServerError, "", "etcdserver: request timed out")
	default:
		refuse(w, http.StatusInternalServerError, "", err.Error())
	}
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a client that is gone reads nothing
}

func (s *server) serverBootstrap(w http.ResponseWriter, _ *http.Request) {
	data := map[string][]byte{}
	for name, file := range caFiles {
		b, err := s.v.ReadFile(file)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		data[name] = b
	}
	reply(w, data)
}

func (s *server) agentConfig(w http.ResponseWriter, _ *http.Request) {
	reply(w, map[string]any{
		"ClusterDomain": "cluster.local", "ClusterDNS": "10.43.0.10", "FlannelBackend": "vxlan", "ServerHTTPSPort": portAPI,
		"HTTPSPort": portAPI, "Disables": s.cfg.list("disable"),
	})
}

// apiservers lists the servers that agents may turn to.
func (s *server) apiservers(w http.ResponseWriter, r *http.Request) {
	nodes, _, err := s.store().nodes(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	out := []string{}
	for _, n := range nodes {
		if n.Meta.Labels[labelControl] != "true" {
			continue
		}
		for _, a := range n.Status.Addresses {
			if a.Type == "InternalIP" {
				out = append(out, a.Address)
			}
		}
	}
	reply(w, out)
}

func (s *server) caCert(w http.ResponseWriter, r *http.Request) {
	name := map[string]string{"client-ca.crt": "ClientCA", "server-ca.crt": "ServerCA"}[base(r)]
	if name == "" {
		http.NotFound(w, r)
		return
	}
	b, err := s.v.ReadFile(caFiles[name])
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(b)
}

// kubeletCert gives a node its identity, once it has shown its password.
func (s *server) kubeletCert(w http.ResponseWriter, r *http.Request) {
	name, pass := r.Header.Get("K3s-Node-Name"), r.Header.Get("K3s-Node-Password")
	if name == "" || pass == "" {
		http.Error(w, "node name and password must be set", http.StatusBadRequest)
		return
	}
	if err := s.store().checkPassword(r.Context(), name, pass); err != nil {
		code := http.StatusInternalServerError
		if errors.Is(err, errPassword) {
			code = http.StatusForbidden
		}
		http.Error(w, err.Error(), code)
		return
	}
	ca, err := loadCA(s.v, "ClientCA")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	cert, key, err := ca.sign("system:node:"+name, []string{"system:nodes"}, nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(append(cert, key...))
}

// health is true only when etcd answers with a quorum.
func (s *server) health(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 3*time.Second)
	defer cancel()
	if _, err := s.client.Get(ctx, "/registry/health"); err != nil {
		http.Error(w, "[+]ping ok\n[-]etcd failed: reason withheld\n"+strings.TrimPrefix(r.URL.Path, "/")+" check failed", http.StatusInternalServerError)
		return
	}
	_, _ = io.WriteString(w, "ok")
}

func (s *server) versionInfo(w http.ResponseWriter, _ *http.Request) {
	v := strings.Split(strings.TrimPrefix(s.version, "v"), ".")
	if len(v) < 2 {
		v = append(v, "0")
	}
	reply(w, map[string]string{
		"major": v[0], "minor": v[1], "gitVersion": s.version, "gitCommit": commit, "gitTreeState": "clean", "platform": "linux/amd64", "goVersion": "go1.26", "compiler": "gc",
	})
}
