// Package system is the guest OS of the lab: a tree of files, a boot with
// cloud-init, services as systemd runs them, a shell, SSH, a guest agent. It
// simulates what an installer and an administrator over SSH can see of an
// Ubuntu server, and refuses the rest.
package system

import (
	"net/netip"

	"github.com/homeiac/homelab/lab/disk"
)

// Machine is the virtual machine that the OS finds itself in.
type Machine struct {
	Host   string // the lab's host
	LabDir string // "": no lab around it, nothing is logged there
	// OwnHost is a host that is a machine by itself, whose network is not the one of the
	// machine that the lab is on.
	OwnHost bool
	VMID    int
	Name    string
	UUID    string
	CPUs    int
	Memory  int64 // bytes
	Tree    string
	NICs    []NIC
	// CloudInit is what the cloud-init drive says, nil without one.
	CloudInit *disk.CloudInit
	Settings  Settings
}

// NIC is a network card.
type NIC struct {
	MAC    string
	Bridge string
	// Net is the network behind the bridge; not valid when the bridge is down or
	// leads nowhere.
	Net netip.Prefix
}

// Reason is why a guest stopped.
type Reason int

// The reasons.
const (
	Killed   Reason = iota // power lost
	PowerOff               // shut down
	Reboot                 // to be started again
)
