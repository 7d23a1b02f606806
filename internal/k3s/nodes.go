package k3s

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Truth is the state of a condition; False and Unknown are not the same.
type Truth string

// The values of a Truth.
const (
	True    Truth = "true"
	False   Truth = "false"
	Unknown Truth = "unknown"
)

// A Node is a Kubernetes Node as far as it matters here.
type Node struct {
	Name        string
	UID         string
	Ready       Truth
	ReadyReason string // of the Ready condition; why it is unknown when it is
	Version     string // of the kubelet, v1.35.0+k3s1
	Server      bool   // by its control-plane label, never by the ROLES text
	Etcd        bool   // by its etcd label
	EtcdName    string // name of its etcd member, "" when it has none (annotation)
	EtcdAddress string // and that member's address
	EtcdRemoved string // name of the member that was removed from it
	InternalIP  string
	Hostname    string
	Cordoned    bool
	Deleting    bool // deleted and held by a finalizer
	Created     time.Time
}

const (
	labelControlPlane = "node-role.kubernetes.io/control-plane"
	labelEtcd         = "node-role.kubernetes.io/etcd"
	labelMaster       = "node-role.kubernetes.io/master" // releases before 1.34
	etcdAnnotation    = "etcd.k3s.cattle.io/"
)

// ParseNodes reads `kubectl get nodes -o json`, warnings around it allowed,
// sorted by name. An answer that is no list of nodes is an error, never an
// empty list.
func ParseNodes(data []byte) ([]Node, error) {
	var list struct {
		Kind  string `json:"kind"`
		Items *[]struct {
			Kind     string `json:"kind"`
			Metadata struct {
				Name        string            `json:"name"`
				UID         string            `json:"uid"`
				Created     time.Time         `json:"creationTimestamp"`
				Deleted     *time.Time        `json:"deletionTimestamp"`
				Labels      map[string]string `json:"labels"`
				Annotations map[string]string `json:"annotations"`
			} `json:"metadata"`
			Spec struct {
				Unschedulable bool `json:"unschedulable"`
			} `json:"spec"`
			Status struct {
				Conditions []struct {
					Type    string `json:"type"`
					Status  string `json:"status"`
					Reason  string `json:"reason"`
					Message string `json:"message"`
				} `json:"conditions"`
				Addresses []struct {
					Type    string `json:"type"`
					Address string `json:"address"`
				} `json:"addresses"`
				Info struct {
					Kubelet string `json:"kubeletVersion"`
				} `json:"nodeInfo"`
			} `json:"status"`
		} `json:"items"`
	}
	if err := decodeJSON(string(data), &list); err != nil {
		return nil, fmt.Errorf("list of nodes: %w", err)
	}
	if list.Items == nil || list.Kind != "List" && list.Kind != "NodeList" {
		return nil, errors.New("list of nodes: it is none")
	}
	nodes := make([]Node, 0, len(*list.Items))
	for _, item := range *list.Items {
		if item.Metadata.Name == "" || item.Kind != "" && item.Kind != "Node" {
			return nil, errors.New("list of nodes: one of them is not a Node")
		}
		labels, annotations := item.Metadata.Labels, item.Metadata.Annotations
		n := Node{
			Name: item.Metadata.Name, UID: item.Metadata.UID, Created: item.Metadata.Created,
			Ready: Unknown, ReadyReason: "it has no Ready condition",
			Version: item.Status.Info.Kubelet, Cordoned: item.Spec.Unschedulable,
			Deleting: item.Metadata.Deleted != nil,
			Server:   isSet(labels, labelControlPlane) || isSet(labels, labelMaster), Etcd: isSet(labels, labelEtcd),
			EtcdName: annotations[etcdAnnotation+"node-name"], EtcdAddress: annotations[etcdAnnotation+"node-address"],
			EtcdRemoved: annotations[etcdAnnotation+"removed-node-name"],
		}
		for _, c := range item.Status.Conditions {
			if c.Type != "Ready" {
				continue
			}
			switch c.Status {
			case "True":
				n.Ready = True
			case "False":
				n.Ready = False
			default:
				n.Ready = Unknown
			}
			n.ReadyReason = strings.TrimSuffix(c.Reason+": "+c.Message, ": ")
		}
		for _, a := range item.Status.Addresses {
			switch {
			case a.Type == "InternalIP" && n.InternalIP == "":
				n.InternalIP = a.Address
			case a.Type == "Hostname" && n.Hostname == "":
				n.Hostname = a.Address
			}
		}
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	return nodes, nil
}

// isSet: k3s writes "true", kubeadm nothing.
func isSet(labels map[string]string, key string) bool {
	value, ok := labels[key]
	return ok && value != "false"
}
