package k3s

import (
	"strings"
	"testing"
)

// FuzzGuestTexts: a guest may say anything, and what is made of it must not do more
// than be wrong.
func FuzzGuestTexts(f *testing.F) {
	for _, s := range []string{
		"@@hl begin cloudinit\n{\"status\":\"error\",\"errors\":[\"x\"]}\n@@hl end cloudinit 1\n", "@@hl begin cloudinit\nstatus: running\n@@hl end cloudinit 0\n",
		`{"kind":"NodeList","items":[{"kind":"Node","metadata":{"name":"--all"}}]}`, "K10aaaa::server:x", "v1.35.0+k3s1", "k3s version v1.35.0+k3s1 (x)\ngo",
		"apiVersion: v1\nkind: Config\nclusters: [{name: default, cluster: {server: 'https://127.0.0.1:6443'}}]\n", "clusters: {a: *x}", "a'b", "\x00\n'",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		_, _ = ParseProbe([]byte(s))
		_, _ = ParseNodes([]byte(s))
		_, _ = ParseUnits([]byte(s), Server)
		_ = ParseWiped([]byte(s))
		_ = ParseStopped([]byte(s), true)
		_ = ParseInstall([]byte(s))
		_, _ = ParseEtcdFiles([]byte(s))
		_, _ = ParseToken(NewSecret(s))
		_, _ = ParseVersionOutput(s)
		_, _ = RewriteKubeconfig([]byte(s), "https://10.0.0.1:6443", "home")
		if v, err := ParseVersion(s); err == nil && strings.ContainsAny(v.String(), " '\"$`;\n") {
			t.Fatalf("version %q", v)
		}
		if got, ok := unquoted(quote(s)); !ok || got != s {
			t.Fatalf("%q is quoted as %s, which a shell reads as %q", s, quote(s), got)
		}
	})
}

// unquoted is what a POSIX shell makes of one word of single quotes and escaped quotes;
// ok is false for anything that it would look into or that is more than a word.
func unquoted(word string) (text string, ok bool) {
	var b strings.Builder
	for word != "" {
		switch {
		case word[0] == '\'':
			inside, rest, closed := strings.Cut(word[1:], "'")
			if !closed {
				return b.String(), false
			}
			b.WriteString(inside)
			word = rest
		case strings.HasPrefix(word, `\'`):
			b.WriteByte('\'')
			word = word[2:]
		default:
			return b.String(), false
		}
	}
	return b.String(), true
}
