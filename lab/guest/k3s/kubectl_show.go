package k3s

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"go.yaml.in/yaml/v3"
)

// show prints what the API answered in the form that was asked for.
func (k *kube) show(res string, b []byte, many bool) error {
	switch {
	case k.output == "json":
		var out bytes.Buffer
		if err := json.Indent(&out, b, "", "    "); err != nil {
			return err
		}
		// kubectl calls every list a List.
		text := out.String()
		for _, kind := range []string{"NodeList", "SecretList", "PodList"} {
			text = strings.Replace(text, `"kind": "`+kind+`"`, `"kind": "List"`, 1)
		}
		k.c.Printf("%s\n", strings.TrimSpace(text))
		return nil
	case k.output == "yaml":
		var v any
		if err := json.Unmarshal(b, &v); err != nil {
			return err
		}
		y, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		k.c.Printf("%s", y)
		return nil
	case strings.HasPrefix(k.output, "jsonpath="):
		return k.jsonpath(b, strings.Trim(strings.TrimPrefix(k.output, "jsonpath="), "'"))
	case k.output == "name":
		return k.names(res, b, many)
	case k.output == "" || k.output == "wide":
		if res == "nodes" {
			return k.nodeTable(b, many)
		}
		return k.objectTable(b, many)
	}
	return errUnsupported
}

type named struct {
	Meta meta                       `json:"metadata"`
	Type string                     `json:"type"`
	Data map[string]json.RawMessage `json:"data"`
}

func items[T any](b []byte, many bool) ([]T, error) {
	if many {
		l, err := decode[list[T]](b)
		return l.Items, err
	}
	one, err := decode[T](b)
	return []T{one}, err
}

func (k *kube) names(res string, b []byte, many bool) error {
	objs, err := items[named](b, many)
	for _, o := range objs {
		k.c.Printf("%s/%s\n", strings.TrimSuffix(res, "s"), o.Meta.Name)
	}
	return err
}

func (k *kube) nodeTable(b []byte, many bool) error {
	nodes, err := items[node](b, many)
	if err != nil {
		return err
	}
	if len(nodes) == 0 {
		fmt.Fprintln(k.c.Stderr, "No resources found")
		return nil
	}
	w := tabwriter.NewWriter(k.c.Stdout, 0, 8, 3, ' ', 0)
	head := "NAME\tSTATUS\tROLES\tAGE\tVERSION"
	if k.output == "wide" {
		head += "\tINTERNAL-IP\tEXTERNAL-IP\tOS-IMAGE\tKERNEL-VERSION\tCONTAINER-RUNTIME"
	}
	if !k.noHeaders {
		fmt.Fprintln(w, head)
	}
	for _, n := range nodes {
		st := "NotReady"
		for _, c := range n.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" {
				st = "Ready"
			}
		}
		if n.Spec.Unschedulable {
			st += ",SchedulingDisabled"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s", n.Meta.Name, st, roles(n), age(time.Since(n.Meta.Created)), n.Status.Info.KubeletVersion)
		if k.output == "wide" {
			ip := "<none>"
			for _, a := range n.Status.Addresses {
				if a.Type == "InternalIP" {
					ip = a.Address
				}
			}
			fmt.Fprintf(w, "\t%s\t<none>\t%s\t%s\t%s", ip, n.Status.Info.OSImage, n.Status.Info.KernelVersion, n.Status.Info.ContainerRuntime)
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

func (k *kube) objectTable(b []byte, many bool) error {
	objs, err := items[named](b, many)
	if err != nil {
		return err
	}
	if len(objs) == 0 {
		fmt.Fprintf(k.c.Stderr, "No resources found in %s namespace.\n", k.namespace)
		return nil
	}
	w := tabwriter.NewWriter(k.c.Stdout, 0, 8, 3, ' ', 0)
	if !k.noHeaders {
		fmt.Fprintln(w, "NAME\tTYPE\tDATA\tAGE")
	}
	for _, o := range objs {
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", o.Meta.Name, o.Type, len(o.Data), age(time.Since(o.Meta.Created)))
	}
	return w.Flush()
}

// jsonpath answers plain paths of fields and indexes, {.a.b[0].c}, and
// {.items[*].a}.
func (k *kube) jsonpath(b []byte, expr string) error {
	expr, ok := strings.CutPrefix(expr, "{")
	expr, ok2 := strings.CutSuffix(expr, "}")
	if !ok || !ok2 || strings.ContainsAny(expr, "{}?()") {
		return errUnsupported
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	vals, err := walk([]any{v}, strings.ReplaceAll(strings.ReplaceAll(expr, `\.`, "\x00"), "[", ".["))
	if err != nil {
		return err
	}
	var out []string
	for _, v := range vals {
		switch v := v.(type) {
		case string:
			out = append(out, v)
		default:
			t, err := json.Marshal(v)
			if err != nil {
				return err
			}
			out = append(out, string(t))
		}
	}
	k.c.Printf("%s", strings.Join(out, " "))
	return nil
}

func walk(vals []any, path string) ([]any, error) {
	for part := range strings.SplitSeq(path, ".") {
		part = strings.ReplaceAll(part, "\x00", ".")
		if part == "" {
			continue
		}
		var next []any
		for _, v := range vals {
			if strings.HasPrefix(part, "[") {
				l, ok := v.([]any)
				idx := strings.Trim(part, "[]")
				var n int
				if idx == "*" {
					next = append(next, l...)
					continue
				}
				if _, err := fmt.Sscan(idx, &n); err != nil {
					return nil, errUnsupported
				}
				if !ok || n >= len(l) || n < 0 {
					return nil, errors.New("array index out of bounds")
				}
				next = append(next, l[n])
				continue
			}
			if m, ok := v.(map[string]any); ok {
				if x, there := m[part]; there {
					next = append(next, x)
				}
			}
		}
		vals = next
	}
	return vals, nil
}
