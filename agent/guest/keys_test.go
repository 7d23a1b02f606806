package guest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/homeiac/homelab/agent/guest"
)

func TestKeysAreMadeOnceAndKept(t *testing.T) {
	state := t.TempDir()
	open := func() *guest.Keys {
		k, err := guest.OpenKeys(state, "pve1")
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	first := open()
	if first.AgentLine() != open().AgentLine() {
		t.Error("the agent's key changed with a restart")
	}
	if _, ok, err := first.HostKey("home", "k3s-1", 1); ok || err != nil {
		t.Errorf("a host key nobody made: %v %v", ok, err)
	}
	key, err := first.MakeHostKey("home", "k3s-1", 1)
	if err != nil {
		t.Fatal(err)
	}
	again, err := open().MakeHostKey("home", "k3s-1", 1)
	if err != nil || again != key {
		t.Errorf("the host key changed: %v", err)
	}
	next, err := first.MakeHostKey("home", "k3s-1", 2)
	if err != nil || next.Public == key.Public {
		t.Errorf("the next generation has the same host key: %v", err)
	}
	if !strings.HasPrefix(key.Public, "ssh-ed25519 ") || !strings.Contains(key.Private, "OPENSSH PRIVATE KEY") {
		t.Errorf("public %q", key.Public)
	}
	for _, f := range []string{"ssh_key", "hostkeys/home_k3s-1_1"} {
		st, err := os.Stat(filepath.Join(state, f))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, st, err)
		}
	}
	if _, err := first.MakeHostKey("home", "../../x", 1); err == nil {
		t.Error("a name that leads elsewhere was taken")
	}
}
