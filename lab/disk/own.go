package disk

// OwnHost is, on a machine that is by itself one host of a lab, a link to that host's
// folder. Its programs lie where Proxmox's do, and nothing in their paths says which
// host they are on.
const OwnHost = "/etc/hl-lab-host"
