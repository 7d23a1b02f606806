// Package pve simulates one Proxmox VE host: the programs qm, pvesm, pvesh and
// pveversion, and the files that they and the daemons beside them keep (pmxcfs,
// tasks, locks, run files, storages). Programs that run real hosts cannot tell
// it from one; what it must agree with are the recorded transcripts in
// testdata/transcripts, and what none of them shows follows Proxmox's
// documentation. What it does not simulate it refuses, with a text that says
// so.
//
// The guests themselves are another program: qm start execs the host's
// usr/bin/kvm and talks to it through its sockets.
package pve
