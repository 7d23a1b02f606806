package plan

import homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"

// OperationKind is one thing that a person asks for by name.
type OperationKind string

// The operations.
const (
	OpRecreate     OperationKind = "recreate"
	OpDelete       OperationKind = "delete"
	OpAdopt        OperationKind = "adopt"
	OpStart        OperationKind = "start"
	OpStop         OperationKind = "stop"
	OpRestart      OperationKind = "restart"
	OpJoin         OperationKind = "join"
	OpRemove       OperationKind = "remove"
	OpRejoin       OperationKind = "rejoin"
	OpSnapshot     OperationKind = "snapshot"
	OpClearOrphans OperationKind = "clear-orphans"
)

// Operation is what a person asks for beside making the Spec so. The plan then
// holds its steps alone, under the same rules.
type Operation struct {
	Kind  OperationKind
	Guest string // empty for snapshot and clear-orphans
	Host  string // of the VM that is adopted; empty: the guest's in the Spec
	VMID  int32  // that is adopted; 0: the guest's in the Spec
}

// Finding is one thing that does not agree between the Spec, the Nodes and
// etcd's members.
type Finding struct {
	// Kind is ghost-node, ghost-member, learner, version, address, certificate,
	// config, not-ready, not-member, quorum, two-servers, stopped-voter or unknown.
	Kind  string
	Guest string
	Name  string // of the Node or member
	Text  string
	Bad   bool // more than a warning
}

// HolderState is a holder VM of ours with the data disks that it holds.
type HolderState struct {
	Guest, Host string
	VM          *homelabv1.VirtualMachine
}
