package lab

import (
	"crypto/tls"
	"os"
	"testing"
	"time"

	"github.com/homeiac/homelab/internal/rpc"
)

func TestALabHasTwoLevelsOfCA(t *testing.T) {
	l := &Lab{Dir: t.TempDir(), Config: Config{Fleet: fleetName, Hosts: 1, Controllers: 2}}
	for range 2 { // what is there stays
		if err := l.makeTrust(time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name  string
		certs int
	}{{"admin", 1}, {"pve1", 2}, {"controller-1", 2}, {"controller-2", 2}} {
		certFile, keyFile := l.certFiles(c.name)
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil || len(pair.Certificate) != c.certs {
			t.Errorf("%s: %d certificates in its file, %v", c.name, len(pair.Certificate), err)
		}
		if _, err := rpc.LoadTLS(l.path("pki", "ca.pem"), certFile, keyFile); err != nil {
			t.Error(err)
		}
	}
	for _, name := range l.controllerNames() {
		_, key := l.issuingFiles(name)
		if fi, err := os.Stat(key); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", key, fi.Mode(), err)
		}
	}
}
