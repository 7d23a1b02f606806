package k3s

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/lab/guest/shell"
	"github.com/homeiac/homelab/lab/guest/system"
)

// kube is one kubectl call.
type kube struct {
	c    *shell.Call
	o    *system.OS
	base string
	http *http.Client

	namespace, output, selector string
	field                       string
	all, wait, overwrite        bool
	ignoreMissing, noHeaders    bool
	timeout                     time.Duration // of the deletion; 0: for ever
	request                     time.Duration // of one request; 0: kubectl's own 30 s to connect
	raw                         string
}

// apiError is what the API answered; refused tells that nobody did.
type apiError struct {
	status
	refused bool
}

func (e *apiError) Error() string {
	switch {
	case e.refused:
		return e.Message
	case e.Reason == "":
		return "Error from server: " + e.Message
	}
	return fmt.Sprintf("Error from server (%s): %s", e.Reason, e.Message)
}

func kubectl(ctx context.Context, c *shell.Call, o *system.OS, args []string) int {
	k := &kube{c: c, o: o, namespace: "default", wait: true}
	config := c.Env["KUBECONFIG"]
	if config == "" {
		config = kubeconfigFile
	}
	var words []string
	for i := 0; i < len(args); i++ {
		a := args[i]
		name, v, eq := strings.Cut(a, "=")
		val := func() string {
			if !eq {
				if i++; i < len(args) {
					v = args[i]
				}
			}
			return v
		}
		var err error
		switch {
		case name == "--kubeconfig":
			config = val()
		case name == "-n" || name == "--namespace":
			k.namespace = val()
		case name == "-o" || name == "--output":
			k.output = val()
		case strings.HasPrefix(a, "-o") && len(a) > 2 && !strings.HasPrefix(a, "-o="):
			k.output = a[2:]
		case name == "-l" || name == "--selector":
			k.selector = val()
		case name == "--field-selector":
			k.field = val()
		case a == "-A" || a == "--all-namespaces":
			k.all = true
		case name == "--wait":
			k.wait = !eq || v == "true"
		case name == "--timeout":
			k.timeout, err = kubeDuration(val())
		case name == "--request-timeout":
			k.request, err = kubeDuration(val())
		case a == "--ignore-not-found" || a == "--ignore-not-found=true":
			k.ignoreMissing = true
		case a == "--no-headers" || a == "--no-headers=true":
			k.noHeaders = true
		case a == "--overwrite" || a == "--overwrite=true":
			k.overwrite = true
		case name == "--raw":
			k.raw = val()
		case name == "--grace-period":
			val()
		case a == "--ignore-daemonsets", a == "--ignore-daemonsets=true", a == "--delete-emptydir-data", a == "--delete-emptydir-data=true",
			a == "--force", a == "--force=true", a == "--client", a == "--client=true", a == "--disable-eviction", a == "--now":
			if a == "--client" || a == "--client=true" {
				words = append(words, "--client")
			}
		case strings.HasPrefix(a, "-") && len(a) > 1:
			return c.Refuse("option " + a)
		default:
			words = append(words, a)
		}
		if err != nil {
			return usage(c, "error: %v", err)
		}
	}
	if len(words) == 0 {
		return c.Refuse("no command")
	}
	if len(words) > 1 && words[0] == "version" && words[1] == "--client" {
		c.Printf("Client Version: %s\nKustomize Version: v5.7.1\n", c.Rest)
		return 0
	}
	if err := k.open(config); err != nil {
		return usage(c, "%v", err)
	}
	err := k.run(ctx, words)
	var ae *apiError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUnsupported):
		return c.Refuse(strings.Join(words, " "))
	case ctx.Err() != nil:
		return shell.Signal(ctx)
	case errors.As(err, &ae):
		return usage(c, "%v", ae)
	}
	return usage(c, "error: %v", err)
}

func kubeDuration(s string) (time.Duration, error) {
	if s == "0" {
		return 0, nil
	}
	if strings.Trim(s, "0123456789") == "" {
		s += "s"
	}
	return time.ParseDuration(s)
}

// open reads the kubeconfig.
func (k *kube) open(file string) error {
	b, err := k.c.FS().ReadFile(k.c.Abs(file))
	if err != nil {
		if strings.Contains(err.Error(), "permission denied") {
			return fmt.Errorf("time=%q level=warning msg=\"Unable to read %s, please start server with --write-kubeconfig-mode or --write-kubeconfig-group to modify kube config permissions\"\nerror: error loading config file %q: open %s: permission denied", time.Now().UTC().Format(time.RFC3339), file, file, file)
		}
		// Without a configuration kubectl turns to localhost:8080.
		return errors.New("The connection to the server localhost:8080 was refused - did you specify the right host or port?") //nolint:staticcheck // the real text
	}
	var doc struct {
		Clusters []struct {
			Cluster struct {
				CA     string `yaml:"certificate-authority-data"`
				CAFile string `yaml:"certificate-authority"`
				Server string `yaml:"server"`
			} `yaml:"cluster"`
		} `yaml:"clusters"`
		Users []struct {
			User struct {
				Cert     string `yaml:"client-certificate-data"`
				Key      string `yaml:"client-key-data"`
				CertFile string `yaml:"client-certificate"`
				KeyFile  string `yaml:"client-key"`
			} `yaml:"user"`
		} `yaml:"users"`
	}
	if err := yaml.Unmarshal(b, &doc); err != nil || len(doc.Clusters) == 0 || len(doc.Users) == 0 {
		return fmt.Errorf("error: error loading config file %q", file)
	}
	cluster, who := doc.Clusters[0].Cluster, doc.Users[0].User
	ca, err1 := k.inline(cluster.CA, cluster.CAFile)
	cert, err2 := k.inline(who.Cert, who.CertFile)
	key, err3 := k.inline(who.Key, who.KeyFile)
	if err := errors.Join(err1, err2, err3); err != nil {
		return fmt.Errorf("error: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("error: %w", err)
	}
	k.base = cluster.Server
	limit := 60 * time.Second
	if k.request > 0 {
		limit = k.request
	}
	k.http = k.o.HTTP(&tls.Config{RootCAs: pool(ca), Certificates: []tls.Certificate{pair}}, limit)
	return nil
}

// inline is what a kubeconfig holds itself or names by file.
func (k *kube) inline(data, file string) ([]byte, error) {
	if data == "" && file != "" {
		return k.c.FS().ReadFile(k.c.Abs(file))
	}
	return base64.StdEncoding.DecodeString(data)
}

// call asks the API.
func (k *kube) call(ctx context.Context, method, path string, body any) ([]byte, error) {
	c := &conn{base: k.base, http: k.http, head: http.Header{}}
	if method == http.MethodPatch {
		c.head.Set("Content-Type", "application/merge-patch+json")
	}
	b, code, err := c.do(ctx, method, path, body)
	if err != nil {
		host := strings.TrimPrefix(k.base, "https://")
		text := fmt.Sprintf("The connection to the server %s was refused - did you specify the right host or port?", host)
		switch s := err.Error(); {
		case strings.Contains(s, "x509") || strings.Contains(s, "certificate"):
			text = "Unable to connect to the server: " + s
		case strings.Contains(s, "dial tcp") && (strings.Contains(s, "timeout") || strings.Contains(s, "deadline")):
			text = fmt.Sprintf("Unable to connect to the server: dial tcp %s: i/o timeout", host)
		case strings.Contains(s, "Client.Timeout"):
			text = "Unable to connect to the server: net/http: request canceled (Client.Timeout exceeded while awaiting headers)"
		case strings.Contains(s, "deadline") || strings.Contains(s, "Timeout"):
			text = "Unable to connect to the server: net/http: TLS handshake timeout"
		}
		return nil, &apiError{refused: true, status: status{Message: text}}
	}
	if code >= 400 {
		e := &apiError{}
		if json.Unmarshal(b, &e.status) != nil || e.Message == "" {
			e.status = status{Message: strings.TrimSpace(string(b)), Reason: "InternalError", Code: code}
		}
		return nil, e
	}
	return b, nil
}

var errUnsupported = errors.New("not simulated")

func (k *kube) run(ctx context.Context, w []string) error {
	switch w[0] {
	case "get":
		return k.get(ctx, w[1:])
	case "delete":
		return k.delete(ctx, w[1:])
	case "label", "annotate":
		return k.label(ctx, w[0], w[1:])
	case "cordon", "uncordon", "drain":
		return k.cordon(ctx, w[0], w[1:])
	case "wait":
		return errUnsupported
	case "version":
		b, err := k.call(ctx, http.MethodGet, "/version", nil)
		if err != nil {
			return err
		}
		v, err := decode[map[string]string](b)
		if err != nil {
			return err
		}
		k.c.Printf("Client Version: %s\nKustomize Version: v5.7.1\nServer Version: %s\n", k.c.Rest, v["gitVersion"])
		return nil
	case "cluster-info":
		if _, err := k.call(ctx, http.MethodGet, "/healthz", nil); err != nil {
			return err
		}
		k.c.Printf("Kubernetes control plane is running at %s\n", k.base)
		return nil
	}
	return errUnsupported
}

// kind gives a resource's canonical name, and the object's name of "node/x".
func kind(w []string) (string, []string) {
	if len(w) == 0 {
		return "", nil
	}
	first, name, slash := strings.Cut(w[0], "/")
	names := w[1:]
	if slash {
		names = append([]string{name}, names...)
	}
	switch first {
	case "node", "nodes", "no":
		return "nodes", names
	case "secret", "secrets":
		return "secrets", names
	case "pod", "pods", "po":
		return "pods", names
	}
	return "", names
}

func (k *kube) get(ctx context.Context, w []string) error {
	if k.raw != "" {
		b, err := k.call(ctx, http.MethodGet, k.raw, nil)
		if err == nil {
			k.c.Printf("%s", b)
		}
		return err
	}
	res, names := kind(w)
	path := "/api/v1/" + res
	if res != "nodes" && !k.all {
		path = "/api/v1/namespaces/" + k.namespace + "/" + res
	}
	if res == "" {
		return errUnsupported
	}
	if len(names) == 0 {
		query := url.Values{}
		if k.selector != "" {
			query.Set("labelSelector", k.selector)
		}
		if k.field != "" {
			query.Set("fieldSelector", k.field)
		}
		if len(query) > 0 {
			path += "?" + query.Encode()
		}
		b, err := k.call(ctx, http.MethodGet, path, nil)
		if err != nil {
			return err
		}
		return k.show(res, b, true)
	}
	if len(names) > 1 {
		return errUnsupported
	}
	b, err := k.call(ctx, http.MethodGet, path+"/"+names[0], nil)
	var ae *apiError
	if k.ignoreMissing && errors.As(err, &ae) && ae.Code == http.StatusNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	return k.show(res, b, false)
}

func (k *kube) delete(ctx context.Context, w []string) error {
	res, names := kind(w)
	if res == "" || res == "pods" || len(names) == 0 {
		return errUnsupported
	}
	path := "/api/v1/" + res
	if res != "nodes" {
		path = "/api/v1/namespaces/" + k.namespace + "/" + res
	}
	deadline := time.Now().Add(365 * 24 * time.Hour)
	if k.timeout > 0 {
		deadline = time.Now().Add(k.timeout)
	}
	for _, n := range names {
		var ae *apiError
		_, err := k.call(ctx, http.MethodDelete, path+"/"+n, nil)
		if k.ignoreMissing && errors.As(err, &ae) && ae.Code == http.StatusNotFound {
			continue
		}
		if err != nil {
			return err
		}
		single := strings.TrimSuffix(res, "s")
		k.c.Printf("%s %q deleted\n", single, n)
		for k.wait {
			_, err := k.call(ctx, http.MethodGet, path+"/"+n, nil)
			if errors.As(err, &ae) && ae.Code == http.StatusNotFound {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("timed out waiting for the condition on %s/%s", res, n)
			}
			if !pause.For(ctx, 100*time.Millisecond) {
				return ctx.Err()
			}
		}
	}
	return nil
}

func (k *kube) label(ctx context.Context, verb string, w []string) error {
	res, rest := kind(w)
	if res != "nodes" || len(rest) < 2 {
		return errUnsupported
	}
	set := map[string]any{}
	for _, a := range rest[1:] {
		key, v, ok := strings.Cut(a, "=")
		switch {
		case ok:
			set[key] = v
		case strings.HasSuffix(a, "-"):
			set[strings.TrimSuffix(a, "-")] = nil
		default:
			return errUnsupported
		}
	}
	field := verb + "s"
	if verb == "annotate" {
		field = "annotations"
	}
	b, err := k.call(ctx, http.MethodGet, "/api/v1/nodes/"+rest[0], nil)
	if err != nil {
		return err
	}
	n, err := decode[node](b)
	if err != nil {
		return err
	}
	old := n.Meta.Labels
	if field == "annotations" {
		old = n.Meta.Annotations
	}
	for _, key := range slices.Sorted(maps.Keys(set)) {
		if v, there := old[key]; there && set[key] != nil && v != set[key] && !k.overwrite {
			return fmt.Errorf("'%s' already has a value (%s), and --overwrite is false", key, v)
		}
	}
	if _, err := k.call(ctx, http.MethodPatch, "/api/v1/nodes/"+rest[0], map[string]any{"metadata": map[string]any{field: set}}); err != nil {
		return err
	}
	k.c.Printf("node/%s %sed\n", rest[0], strings.TrimSuffix(verb, "e"))
	return nil
}

func (k *kube) cordon(ctx context.Context, verb string, names []string) error {
	if len(names) == 0 {
		return errUnsupported
	}
	for _, name := range names {
		_, name, _ = strings.Cut("/"+strings.TrimPrefix(name, "node/"), "/")
		patch := map[string]any{"spec": map[string]any{"unschedulable": true}}
		if verb == "uncordon" {
			patch = map[string]any{"spec": map[string]any{"unschedulable": nil}}
		}
		if _, err := k.call(ctx, http.MethodPatch, "/api/v1/nodes/"+name, patch); err != nil {
			return err
		}
		if verb == "uncordon" {
			k.c.Printf("node/%s uncordoned\n", name)
			continue
		}
		k.c.Printf("node/%s cordoned\n", name)
		if verb == "drain" {
			k.c.Printf("node/%s drained\n", name) // there are no pods
		}
	}
	return nil
}
