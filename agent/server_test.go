package agent

import "testing"

func TestAnExistingServerIsUserAtAddressWithOrWithoutPort(t *testing.T) {
	for _, c := range []struct {
		in, user, address string
		port              int
		ok                bool
	}{
		{"ubuntu@192.0.2.7", "ubuntu", "192.0.2.7", 22, true},
		{"ubuntu@192.0.2.7:2222", "ubuntu", "192.0.2.7", 2222, true},
		{"ubuntu@[2001:db8::7]:2222", "ubuntu", "2001:db8::7", 2222, true},
		{"ubuntu@2001:db8::7", "ubuntu", "2001:db8::7", 22, true},
		{"192.0.2.7", "", "", 0, false},
		{"@192.0.2.7:22", "", "", 0, false},
		{"ubuntu@k3s.example", "", "", 0, false},
		{"", "", "", 0, false},
	} {
		user, address, port, err := splitServer(c.in)
		if (err == nil) != c.ok || user != c.user || address != c.address || port != c.port {
			t.Errorf("splitServer(%q) = %q, %q, %d, %v", c.in, user, address, port, err)
		}
	}
}
