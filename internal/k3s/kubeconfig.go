package k3s

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"

	"go.yaml.in/yaml/v3"
)

// RewriteKubeconfig makes of the k3s.yaml of a server, which points at
// 127.0.0.1 and calls everything "default", one for elsewhere: it points at
// serverURL (https://IP:6443), and cluster, user and context are called name.
// Both data and result are secrets.
func RewriteKubeconfig(data []byte, serverURL, name string) ([]byte, error) {
	if u, err := url.Parse(serverURL); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("kubeconfig: %q is not an https URL", serverURL)
	}
	if name == "" {
		return nil, errors.New("kubeconfig: it needs a name")
	}
	var c map[string]any
	if err := yaml.Unmarshal(data, &c); err != nil {
		return nil, errors.New("kubeconfig: it is not YAML") // the parser's text may quote a key
	}
	item := func(section, key string) (body map[string]any, err error) {
		list, _ := c[section].([]any)
		if len(list) != 1 {
			return nil, fmt.Errorf("kubeconfig: %d %s where k3s writes one", len(list), section)
		}
		named, _ := list[0].(map[string]any)
		body, _ = named[key].(map[string]any)
		if body == nil {
			return nil, fmt.Errorf("kubeconfig: %s has no %s", section, key)
		}
		named["name"] = name
		return body, nil
	}
	cluster, err := item("clusters", "cluster")
	if err != nil {
		return nil, err
	}
	if _, err := item("users", "user"); err != nil {
		return nil, err
	}
	context, err := item("contexts", "context")
	if err != nil {
		return nil, err
	}
	cluster["server"] = serverURL
	context["cluster"], context["user"] = name, name
	c["current-context"] = name
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := encoder.Encode(c); err != nil {
		return nil, errors.New("kubeconfig: it cannot be written as YAML")
	}
	return out.Bytes(), nil
}
