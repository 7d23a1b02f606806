package config

import "net/netip"

// Daemon is what every daemon of a fleet is told: who it is, where it listens,
// and what it proves that with.
type Daemon struct {
	// Name is as in the certificate; an agent's is its host's name in the Spec.
	Name string `yaml:"name"`
	// Advertise is the address of gRPC and gossip: an IP, never guessed.
	Advertise string `yaml:"advertise"`
	// Port is gRPC's.
	Port int `yaml:"port"`
	// GossipPort is 7946 when not said.
	GossipPort int `yaml:"gossipPort"`
	// Seeds are gossip addresses of others, IP:PORT.
	Seeds []string `yaml:"seeds"`
	// CA, Cert and Key are PEM files.
	CA   string `yaml:"ca"`
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	// GossipKeys is a file with one base64 key a line, the first the primary.
	GossipKeys string `yaml:"gossipKeys"`
	// State is the daemon's own folder.
	State string `yaml:"state"`
}

// Check makes the paths absolute and adds what is missing or wrong to f.
func (d *Daemon) Check(f *File) {
	f.Paths(&d.CA, &d.Cert, &d.Key, &d.GossipKeys, &d.State)
	f.Need("name", d.Name)
	f.Need("advertise", d.Advertise)
	f.Need("ca", d.CA)
	f.Need("cert", d.Cert)
	f.Need("key", d.Key)
	f.Need("gossipKeys", d.GossipKeys)
	f.Need("state", d.State)
	if d.Advertise != "" {
		if a, err := netip.ParseAddr(d.Advertise); err != nil || a.IsUnspecified() {
			f.Fault("advertise", "%q is not the IP address of this machine", d.Advertise)
		}
	}
	f.Port("port", d.Port)
	f.Port("gossipPort", d.GossipPort)
	for _, s := range d.Seeds {
		if _, err := netip.ParseAddrPort(s); err != nil {
			f.Fault("seeds", "%q is not IP:PORT", s)
		}
	}
}

// Port adds a fault when the value of a key is no port.
func (f *File) Port(key string, port int) {
	if port < 1 || port > 65535 {
		f.Fault(key, "%d is not a port", port)
	}
}
