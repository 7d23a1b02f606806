package sh

import (
	"os/exec"
	"testing"
)

func TestAShellReadsEachWordAsItIs(t *testing.T) {
	argv := []string{"printf", "%s|", "", "a b", "it's", `$HOME "x" \n`, "`id`; rm -rf /", "two\nlines", "-n", "*"}
	out, err := exec.Command("sh", "-c", Line(argv)).Output()
	if want := "|a b|it's|" + `$HOME "x" \n` + "|`id`; rm -rf /|two\nlines|-n|*|"; err != nil || string(out) != want {
		t.Errorf("%q, %v", out, err)
	}
}
