package mark_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/homeiac/homelab/internal/mark"
)

const uuid = "4c4c4544-0042-3510-8051-b4c04f564433"

func key(t testing.TB, fill byte) mark.Key {
	t.Helper()
	k, err := mark.NewKey(bytes.Repeat([]byte{fill}, mark.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestMarkIsStable(t *testing.T) {
	// Marks stand in descriptions for years: the text must never change.
	got := mark.Make(key(t, 7), "homelab", "k3s-1", 201, uuid, 1)
	if want := "hl1:homelab:k3s-1:1:07763146170885089039fa7da642ce60"; got != want {
		t.Errorf("mark %s, want %s", got, want)
	}
}

func TestOnlyTheVerySameVMVerifies(t *testing.T) {
	k := key(t, 7)
	text := mark.Make(k, "homelab", "k3s-1", 201, uuid, 3)
	for _, c := range []struct {
		name, fleet, guest, uuid, text string
		key                            mark.Key
		vmid                           int32
		fault                          string // "" verifies
	}{
		{"itself", "homelab", "k3s-1", uuid, text, k, 201, ""},
		{"uuid in upper case", "homelab", "k3s-1", strings.ToUpper(uuid), text, k, 201, ""},
		{"white space around", "homelab", "k3s-1", uuid, " " + text + "\n", k, 201, ""},
		{"another VMID", "homelab", "k3s-1", uuid, text, k, 202, "does not agree"},
		{"a clone", "homelab", "k3s-1", "5" + uuid[1:], text, k, 201, "does not agree"},
		{"no uuid", "homelab", "k3s-1", "", text, k, 201, "does not agree"},
		{"another guest", "homelab", "k3s-2", uuid, text, k, 201, "guest k3s-1"},
		{"another fleet", "attic", "k3s-1", uuid, text, k, 201, "fleet homelab"},
		{"another key", "homelab", "k3s-1", uuid, text, key(t, 8), 201, "does not agree"},
		{"no key", "homelab", "k3s-1", uuid, text, mark.Key{}, 201, "without the fleet key"},
		{"generation changed by hand", "homelab", "k3s-1", uuid, strings.Replace(text, ":3:", ":4:", 1), k, 201, "does not agree"},
		{"no mark", "homelab", "k3s-1", uuid, "", k, 201, "no mark"},
		{"somebody's notes", "homelab", "k3s-1", uuid, "my router: do not touch", k, 201, "not a mark"},
		{"generation below 0", "homelab", "k3s-1", uuid, strings.Replace(text, ":3:", ":-1:", 1), k, 201, "generation"},
		{"generation of an adopted VM, by hand", "homelab", "k3s-1", uuid, strings.Replace(text, ":3:", ":0:", 1), k, 201, "does not agree"},
		{"generation with a zero before", "homelab", "k3s-1", uuid, strings.Replace(text, ":3:", ":03:", 1), k, 201, "generation"},
		{"cut short", "homelab", "k3s-1", uuid, text[:len(text)-2], k, 201, "cut short"},
	} {
		t.Run(c.name, func(t *testing.T) {
			generation, err := mark.Verify(c.key, c.fleet, c.guest, c.vmid, c.uuid, c.text)
			if c.fault == "" {
				if err != nil || generation != 3 {
					t.Errorf("generation %d, %v", generation, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.fault) || generation != 0 {
				t.Errorf("generation %d, error %v, want one with %q", generation, err, c.fault)
			}
		})
	}
}

func TestEveryMarkMadeVerifies(t *testing.T) {
	k := key(t, 1)
	rapid.Check(t, func(t *rapid.T) {
		guest := rapid.StringMatching(`[a-z][a-z0-9-]{0,30}`).Draw(t, "guest")
		vmid := rapid.Int32Range(100, 999999999).Draw(t, "vmid")
		generation := rapid.Int32Range(0, 1<<30).Draw(t, "generation") // 0: adopted
		got, err := mark.Verify(k, "f", guest, vmid, uuid, mark.Make(k, "f", guest, vmid, uuid, generation))
		if err != nil || got != generation {
			t.Fatalf("generation %d, %v", got, err)
		}
	})
}

func TestParseNeverPanics(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, err := mark.Parse(rapid.String().Draw(t, "text"))
		if err == nil && m.Guest == "" {
			t.Fatal("a mark without a guest")
		}
	})
}

func TestKeysDoNotPrint(t *testing.T) {
	raw := bytes.Repeat([]byte{'K'}, mark.KeySize)
	k, err := mark.ParseKey([]byte(base64.StdEncoding.EncodeToString(raw) + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("key", "key", k)
	for _, s := range []string{fmt.Sprint(k), fmt.Sprintf("%v %+v %#v %s %x %q %d", k, k, k, k, k, k, k), fmt.Sprintf("%+v", struct{ K mark.Key }{k}), log.String()} {
		if strings.Contains(s, "KK") || strings.Contains(s, "4b4b") || strings.Contains(s, "75 75") {
			t.Errorf("the key is printed: %s", s)
		}
	}
	_, err = mark.ParseKey([]byte("c2VjcmV0!"))
	if err == nil || strings.Contains(err.Error(), "c2Vj") {
		t.Errorf("error %v", err)
	}
	if _, err = mark.ParseKey([]byte("c2VjcmV0")); err == nil {
		t.Error("a key of 6 bytes was taken")
	}
}
