package controller

import (
	"path/filepath"
	"time"

	"github.com/homeiac/homelab/controller/store"
	"github.com/homeiac/homelab/internal/config"
)

// certificateLife is how long certificates last; shortestLife is for tests, each
// shorter one would be renewed all the time.
const (
	certificateLife = 90 * 24 * time.Hour
	shortestLife    = 5 * time.Second
)

// Config is the controller's configuration. In its file relative paths are
// relative to the file.
type Config struct {
	// Daemon's Port is 8401 when not said, its State /var/lib/hl-controller.
	config.Daemon `yaml:",inline"`

	// FleetKey is the file with the key of the marks, 32 bytes in base64.
	FleetKey string `yaml:"fleetKey"`
	// IssuingCA and IssuingKey are this controller's issuing CA, PEM files;
	// issuing-ca.pem and issuing-ca.key beside the certificate when not said. It
	// need not be there.
	IssuingCA  string `yaml:"issuingCA"`
	IssuingKey string `yaml:"issuingKey"`
	// EnrolPort is where those without a certificate come, 8402 when not said.
	EnrolPort int `yaml:"enrolPort"`
	// CertificateLife is how long certificates last that this controller issues, 90
	// days (2160h) when not said.
	CertificateLife time.Duration `yaml:"certificateLife"`
	// Etcd is an external store; without endpoints the store is embedded and
	// lies in State.
	Etcd EtcdConfig `yaml:"etcd"`
}

// EtcdConfig is an external etcd cluster.
type EtcdConfig struct {
	// Endpoints are https://IP:PORT.
	Endpoints []string `yaml:"endpoints"`
	// CA, Cert and Key are PEM files.
	CA   string `yaml:"ca"`
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

// LoadConfig reads a configuration file. All its faults come together, each with
// its line; an unknown key is one.
func LoadConfig(file string) (Config, error) {
	c := Config{
		Daemon:    config.Daemon{Port: 8401, GossipPort: 7946, State: "/var/lib/hl-controller"},
		EnrolPort: 8402, CertificateLife: certificateLife,
	}
	f, err := config.Read(file, &c)
	if err != nil {
		return Config{}, err
	}
	c.Check(f)
	f.Paths(&c.FleetKey, &c.IssuingCA, &c.IssuingKey, &c.Etcd.CA, &c.Etcd.Cert, &c.Etcd.Key)
	f.Need("fleetKey", c.FleetKey)
	f.Port("enrolPort", c.EnrolPort)
	if c.EnrolPort == c.Port {
		f.Fault("enrolPort", "%d is gRPC's port; it needs one of its own", c.EnrolPort)
	}
	if c.CertificateLife < shortestLife {
		f.Fault("certificateLife", "%s is too short, %s is the least", c.CertificateLife, shortestLife)
	}
	for file, name := range map[*string]string{&c.IssuingCA: "issuing-ca.pem", &c.IssuingKey: "issuing-ca.key"} {
		if *file == "" {
			*file = filepath.Join(filepath.Dir(c.Cert), name)
		}
	}
	if len(c.Etcd.Endpoints) > 0 {
		f.Need("etcd.ca", c.Etcd.CA)
		f.Need("etcd.cert", c.Etcd.Cert)
		f.Need("etcd.key", c.Etcd.Key)
	}
	for _, e := range c.Etcd.Endpoints {
		if err := store.CheckEndpoint(e); err != nil {
			f.Fault("etcd.endpoints", "%v", err)
		}
	}
	return c, f.Err()
}
