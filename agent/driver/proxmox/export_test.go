package proxmox

import "time"

// SetExecWait changes how long one qm waits for a command in a guest.
func (d *Driver) SetExecWait(wait time.Duration) { d.execWait = wait }
