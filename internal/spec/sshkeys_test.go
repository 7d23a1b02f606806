package spec

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	laptop = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ+++dUZezhIt/mfEeADjlBqzB5Be/6R75/PiIniHAc9 me@laptop"
	desk   = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDp528sU3vMhLf7t1cCJnwZNZjaDFhDqt45lkRhUBdXD me@desk"
)

func disk(files map[string]string) func(string) ([]byte, error) {
	return func(path string) ([]byte, error) {
		if text, ok := files[path]; ok {
			return []byte(text), nil
		}
		if strings.Contains(path, "denied") {
			return nil, fs.ErrPermission
		}
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
}

func TestKeyFilesArePutInTheirPlacesAndNoLineMoves(t *testing.T) {
	text := `# ñandú: a line with letters of several bytes
x-keys: &keys ["~/.ssh/me.pub", '/keys/it''s.pub'] # ~/.ssh/me.pub
defaults:
  sshKeys: [ ~/.ssh/me.pub , ./both.pub] # "ñ"
guests:
  a: {sshKeys: *keys}
  b:
    sshKeys:
      - &mine ~/.ssh/me.pub
      - ` + desk + `
      - *mine
`
	want := `# ñandú: a line with letters of several bytes
x-keys: &keys ["` + laptop + `", "` + desk + `"] # ~/.ssh/me.pub
defaults:
  sshKeys: [ "` + laptop + `" , "` + laptop + `\n` + desk + `"] # "ñ"
guests:
  a: {sshKeys: *keys}
  b:
    sshKeys:
      - &mine "` + laptop + `"
      - ` + desk + `
      - *mine
`
	got, missing, faults := InlineFiles("homelab.yaml", []byte(text), disk(map[string]string{
		"~/.ssh/me.pub":  laptop + "\n",
		"/keys/it's.pub": desk,
		"./both.pub":     "# mine\n" + laptop + "\n\n" + desk + "\n",
	}))
	if len(missing) > 0 || len(faults) > 0 {
		t.Error(missing, faults)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
}

func TestAKeyFileThatIsMissingIsNoFaultOfTheText(t *testing.T) {
	text := []byte("defaults:\n  sshKeys: [~/.ssh/gone.pub]\n")
	got, missing, faults := InlineFiles("homelab.yaml", text, disk(nil))
	if string(got) != string(text) || len(faults) > 0 {
		t.Error(string(got), faults)
	}
	want := []Fault{{File: "homelab.yaml", Line: 2, Column: 13, Path: "defaults.sshKeys[0]", Message: "the key file ~/.ssh/gone.pub does not exist"}}
	if diff := cmp.Diff(want, missing); diff != "" {
		t.Error(diff)
	}
}

func TestAPrivateKeyIsNeverPutIntoTheText(t *testing.T) {
	const private = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r\n-----END OPENSSH PRIVATE KEY-----\n"
	text := []byte("guests:\n  a: {sshKeys: [~/.ssh/id_ed25519, /denied, /words, /empty, /huge]}\n")
	got, missing, faults := InlineFiles("homelab.yaml", text, disk(map[string]string{
		"~/.ssh/id_ed25519": private, "/words": "hello world", "/empty": "# none\n", "/huge": strings.Repeat("x", maxKeyFile+1),
	}))
	if string(got) != string(text) || len(missing) > 0 {
		t.Error(string(got), missing)
	}
	want := `homelab.yaml:2:17: guests.a.sshKeys[0]: ~/.ssh/id_ed25519: is a private key: name its public half (.pub)
homelab.yaml:2:36: guests.a.sshKeys[1]: /denied: permission denied
homelab.yaml:2:45: guests.a.sshKeys[2]: /words: is not a public SSH key (as ssh-ed25519 AAAA…)
homelab.yaml:2:53: guests.a.sshKeys[3]: /empty: holds no key
homelab.yaml:2:61: guests.a.sshKeys[4]: /huge: 65537 bytes are more than a file of keys has
5 faults.`
	if diff := cmp.Diff(want, faults.String()); diff != "" {
		t.Error(diff)
	}
	if strings.Contains(faults.String(), "b3BlbnNzaC1r") {
		t.Error("a part of the key is shown")
	}
}

func TestWhatCannotBeReplacedIsSaid(t *testing.T) {
	text := []byte("defaults:\n  sshKeys:\n    - >-\n      ~/.ssh/me.pub\n")
	got, _, faults := InlineFiles("homelab.yaml", text, disk(map[string]string{"~/.ssh/me.pub": laptop}))
	if string(got) != string(text) || len(faults) != 1 || faults[0].Line != 3 {
		t.Error(string(got), faults)
	}
}

func TestTextThatIsNoYAMLIsLeftToParse(t *testing.T) {
	read := func(string) ([]byte, error) { return nil, errors.New("nothing is to be read") }
	for _, text := range []string{"", "{", "- a", "a: [", "guests: 3", "guests: {a: 3}", "defaults: {sshKeys: ~/x}", "guests: {a: {sshKeys: [{~/x: 1}, [~/x], 3, null]}}"} {
		got, missing, faults := InlineFiles("homelab.yaml", []byte(text), read)
		if string(got) != text || len(missing) > 0 || len(faults) > 0 {
			t.Errorf("%q: %q %v %v", text, got, missing, faults)
		}
	}
}

// The example, with its key inlined, has a key; without, it says which file.
func TestTheExampleGetsItsKey(t *testing.T) {
	s := example(t)
	unread := s.UnreadFiles()
	if len(unread) != 1 || unread[0].Path != "defaults.sshKeys" || !strings.Contains(unread[0].Message, "~/.ssh/id_ed25519.pub") || unread[0].Line == 0 {
		t.Error(unread)
	}
	inlined, missing, faults := InlineFiles("homelab.yaml", exampleText(t), disk(map[string]string{"~/.ssh/id_ed25519.pub": laptop}))
	if len(missing) > 0 || len(faults) > 0 {
		t.Fatal(missing, faults)
	}
	s, faults = Parse("homelab.yaml", inlined)
	if err := faults.Err(); err != nil {
		t.Fatal(err)
	}
	if len(s.UnreadFiles()) > 0 {
		t.Error(s.UnreadFiles())
	}
	for _, name := range s.GuestNames() {
		if diff := cmp.Diff([]string{laptop}, s.Guests[name].SSHKeys); diff != "" {
			t.Error(name, diff)
		}
	}
}
