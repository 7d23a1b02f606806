package rpc_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/homeiac/homelab/internal/rpc"
)

func newToken(t *testing.T) rpc.Token {
	t.Helper()
	token, err := rpc.NewToken(rpc.Identity{Fleet: "home", Role: rpc.RoleAgent, Name: "pve1"}, strings.Repeat("ab", 32))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestATokenIsOneWordAndReadsBack(t *testing.T) {
	token := newToken(t)
	text := token.Text()
	if strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" {
		t.Errorf("%q needs quoting", text)
	}
	back, err := rpc.ParseToken("  " + text + "\n")
	if err != nil || back.Text() != text || back.Identity != token.Identity || back.Root != token.Root {
		t.Errorf("%v, %v", back, err)
	}
	for _, shown := range []string{fmt.Sprint(token), fmt.Sprintf("%+v", token), fmt.Sprintf("%#v", token)} {
		if strings.Contains(shown, text) || strings.Contains(shown, string(token.Secret)) || !strings.HasPrefix(shown, "token ") {
			t.Errorf("the secret is shown: %q", shown)
		}
	}
}

func TestWhatIsNoToken(t *testing.T) {
	text := newToken(t).Text()
	for i := range len(text) {
		for _, bad := range []string{text[:i], text[:i] + "A" + text[i+1:], text[i+1:]} {
			if bad == text {
				continue
			}
			if _, err := rpc.ParseToken(bad); !errors.Is(err, rpc.ErrInvalid) || len(bad) > 20 && strings.Contains(err.Error(), bad[10:]) {
				t.Fatalf("%q: %v", bad, err)
			}
		}
	}
	if _, err := rpc.NewToken(rpc.Identity{Fleet: "home", Role: rpc.RoleAgent, Name: "../x"}, strings.Repeat("ab", 32)); !errors.Is(err, rpc.ErrInvalid) {
		t.Error(err)
	}
	if _, err := rpc.NewToken(rpc.Identity{Fleet: "home", Role: rpc.RoleAgent, Name: "x"}, "ab"); !errors.Is(err, rpc.ErrInvalid) {
		t.Error(err)
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add("hl1_")
	f.Add("hl1_BGhvbWUFYWdlbnQEcHZlMQ")
	whole, err := rpc.NewToken(rpc.Identity{Fleet: "home", Role: rpc.RoleAgent, Name: "pve1"}, strings.Repeat("0f", 32))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole.Text())
	f.Add(whole.Text()[:20] + "\r\n" + whole.Text()[20:])
	f.Fuzz(func(t *testing.T, text string) {
		token, err := rpc.ParseToken(text)
		if err == nil && token.Text() != strings.TrimSpace(text) {
			t.Errorf("%q reads as %q", text, token.Text())
		}
	})
}
