package guest_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/homeiac/homelab/agent/guest"
)

var update = flag.Bool("update", false, "write the golden files")

func TestUserData(t *testing.T) {
	key := guest.HostKey{Private: "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaA==\n-----END OPENSSH PRIVATE KEY-----\n", Public: "ssh-ed25519 AAAAhost"}
	for name, u := range map[string]guest.UserData{
		"k3s":   {Hostname: "k3s-1", User: "ubuntu", HostKey: key, K3s: true, AuthorizedKeys: []string{"ssh-ed25519 AAAAme me@laptop", "ssh-ed25519 AAAAagent hl-agent"}},
		"plain": {Hostname: "no", User: "debian", HostKey: key, AuthorizedKeys: []string{"ssh-ed25519 AAAAagent hl-agent"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := u.Render()
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", "userdata-"+name+".yaml")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Error(diff)
			}
			if !strings.HasPrefix(string(got), "#cloud-config\n") {
				t.Error("cloud-init knows it by its first line")
			}
			again, _ := u.Render()
			if string(again) != string(got) {
				t.Error("the same input gave other bytes: cloud-init would run everything again")
			}
		})
	}
}
