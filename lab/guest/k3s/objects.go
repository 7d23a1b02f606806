package k3s

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// meta is the part of an object's metadata that is used here.
type meta struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace,omitempty"`
	UID         string            `json:"uid"`
	Version     string            `json:"resourceVersion,omitempty"`
	Created     time.Time         `json:"creationTimestamp"`
	Deleted     *time.Time        `json:"deletionTimestamp,omitempty"`
	Grace       *int              `json:"deletionGracePeriodSeconds,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Finalizers  []string          `json:"finalizers,omitempty"`
}

type taint struct {
	Key    string     `json:"key"`
	Value  string     `json:"value,omitempty"`
	Effect string     `json:"effect"`
	Added  *time.Time `json:"timeAdded,omitempty"`
}

type condition struct {
	Type       string    `json:"type"`
	Status     string    `json:"status"`
	Heartbeat  time.Time `json:"lastHeartbeatTime"`
	Transition time.Time `json:"lastTransitionTime"`
	Reason     string    `json:"reason"`
	Message    string    `json:"message"`
}

type nodeAddress struct {
	Type    string `json:"type"`
	Address string `json:"address"`
}

type nodeInfo struct {
	MachineID        string `json:"machineID"`
	SystemUUID       string `json:"systemUUID"`
	BootID           string `json:"bootID"`
	KernelVersion    string `json:"kernelVersion"`
	OSImage          string `json:"osImage"`
	ContainerRuntime string `json:"containerRuntimeVersion"`
	KubeletVersion   string `json:"kubeletVersion"`
	KubeProxyVersion string `json:"kubeProxyVersion"`
	OS               string `json:"operatingSystem"`
	Architecture     string `json:"architecture"`
}

// node is the Kubernetes object Node.
type node struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Meta       meta   `json:"metadata"`
	Spec       struct {
		PodCIDR       string  `json:"podCIDR,omitempty"`
		ProviderID    string  `json:"providerID,omitempty"`
		Taints        []taint `json:"taints,omitempty"`
		Unschedulable bool    `json:"unschedulable,omitempty"`
	} `json:"spec"`
	Status struct {
		Capacity    map[string]string `json:"capacity"`
		Allocatable map[string]string `json:"allocatable"`
		Conditions  []condition       `json:"conditions"`
		Addresses   []nodeAddress     `json:"addresses"`
		Info        nodeInfo          `json:"nodeInfo"`
	} `json:"status"`
}

const (
	annoEtcdName    = "etcd.k3s.cattle.io/node-name"
	annoEtcdAddress = "etcd.k3s.cattle.io/node-address"
	annoEtcdRemove  = "etcd.k3s.cattle.io/remove"
	annoEtcdRemoved = "etcd.k3s.cattle.io/removed-node-name"

	finalNode   = "wrangler.cattle.io/node"
	finalMember = "wrangler.cattle.io/managed-etcd-controller"

	labelControl = "node-role.kubernetes.io/control-plane"
	labelEtcd    = "node-role.kubernetes.io/etcd"
)

// lease is a node's heartbeat.
type lease struct {
	Renew time.Time `json:"renewTime"`
	Since time.Time `json:"since"` // since when it has come without a gap
}

// withReady gives the node with the conditions that follow from its heartbeat.
func withReady(n node, l *lease, now time.Time, grace time.Duration) node {
	c := condition{Type: "Ready", Status: "Unknown", Reason: "NodeStatusUnknown", Message: "Kubelet stopped posting node status."}
	c.Transition, c.Heartbeat = n.Meta.Created, n.Meta.Created
	if l != nil {
		c.Heartbeat = l.Renew
		c.Transition = l.Renew.Add(grace)
		if now.Sub(l.Renew) <= grace {
			c.Status, c.Reason, c.Message, c.Transition = "True", "KubeletReady", "kubelet is posting ready status", l.Since
		}
	}
	var taints []taint
	for _, t := range n.Spec.Taints {
		if !strings.HasPrefix(t.Key, "node.kubernetes.io/unreachable") {
			taints = append(taints, t)
		}
	}
	if c.Status != "True" {
		at := c.Transition
		taints = append(taints, taint{Key: "node.kubernetes.io/unreachable", Effect: "NoSchedule", Added: &at})
	}
	n.Spec.Taints = taints
	n.Status.Conditions = nil
	for _, t := range []string{"MemoryPressure", "DiskPressure", "PIDPressure"} {
		x := c
		x.Type = t
		if c.Status == "True" {
			x.Status, x.Reason, x.Message = "False", "KubeletHasSufficient"+strings.TrimSuffix(t, "Pressure"), "kubelet has sufficient resources available"
		}
		n.Status.Conditions = append(n.Status.Conditions, x)
	}
	n.Status.Conditions = append(n.Status.Conditions, c)
	return n
}

// secretObject is a Secret.
type secretObject struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Meta       meta              `json:"metadata"`
	Type       string            `json:"type"`
	Immutable  bool              `json:"immutable,omitempty"`
	Data       map[string][]byte `json:"data"`
}

// status is the object that the API answers failures with.
type status struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Status     string `json:"status"`
	Message    string `json:"message"`
	Reason     string `json:"reason"`
	Code       int    `json:"code"`
}

// roles is the ROLES column.
func roles(n node) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(n.Meta.Labels)) {
		if r, ok := strings.CutPrefix(k, "node-role.kubernetes.io/"); ok {
			out = append(out, r)
		}
	}
	if len(out) == 0 {
		return "<none>"
	}
	return strings.Join(out, ",")
}

// age is kubectl's short duration.
func age(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return strconv.Itoa(int(d.Seconds())) + "s"
	case d < 3*time.Hour:
		return strconv.Itoa(int(d.Minutes())) + "m"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d.Hours())) + "h"
	}
	return strconv.Itoa(int(d.Hours())/24) + "d"
}

func decode[T any](b []byte) (T, error) {
	var v T
	err := json.Unmarshal(b, &v)
	return v, err
}
