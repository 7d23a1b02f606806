// Package guesttest is what a guest for tests answers, as far as a shell in it is
// concerned; its SSH server is sshtest's.
package guesttest

import (
	"bytes"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/internal/sshexec/sshtest"
)

// Script gives the script of `sudo -n sh -c 'SCRIPT'` and whether it is one.
func Script(c sshtest.Command) (string, bool) {
	quoted, ok := strings.CutPrefix(c.Line, "sudo -n sh -c '")
	if !ok || !strings.HasSuffix(quoted, "'") {
		return "", false
	}
	return strings.ReplaceAll(strings.TrimSuffix(quoted, "'"), `'\''`, "'"), true
}

// Sections prints what a script of internal/k3s prints for the named sections.
type Sections struct{ bytes.Buffer }

// Add adds a section with its text and exit code.
func (s *Sections) Add(name, text string, exit string) {
	s.WriteString("@@hl begin " + name + "\n" + text + "\n@@hl end " + name + " " + exit + "\n")
}

// Parse reads a private key in PEM.
func Parse(t testing.TB, private string) ssh.Signer {
	t.Helper()
	signer, err := ssh.ParsePrivateKey([]byte(private))
	if err != nil {
		t.Fatal(err)
	}
	return signer
}
