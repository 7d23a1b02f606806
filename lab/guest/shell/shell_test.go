package shell

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/homeiac/homelab/lab/guest/tree"
)

// image gives a shell in a small tree inside dir.
func image(t interface {
	Helper()
	Fatal(...any)
}, dir string) *Shell {
	t.Helper()
	tr, err := tree.Open(filepath.Join(dir, "tree"))
	if err != nil {
		t.Fatal(err)
	}
	s := New(tr)
	v := tr.Super()
	for _, d := range []string{"/usr/bin", "/etc", "/tmp", "/root", "/home/joe"} {
		if err := v.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		v.Chmod("/tmp", 0o777|fs.ModeSticky), v.Symlink("usr/bin", "/bin"), v.Chown("/home/joe", 1000, 1000),
		v.Put("/etc/passwd", []byte("root:x:0:0:root:/root:/bin/bash\njoe:x:1000:1000::/home/joe:/bin/bash\n"), 0o644),
		v.Put("/etc/group", []byte("root:x:0:\njoe:x:1000:\n"), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	for _, n := range s.Tools() {
		if err := v.Put("/usr/bin/"+n, StandIn(n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

var joe = User{Name: "joe", UID: 1000, GID: 1000, Home: "/home/joe"}

func runAs(u User, s *Shell, script, stdin string) (out string, code int) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var b bytes.Buffer
	p := Login(u)
	p.Args = []string{"sh"}
	p.Stdin, p.Stdout, p.Stderr = strings.NewReader(stdin), &b, &b
	code = s.Run(ctx, p, script)
	return b.String(), code
}

func TestScripts(t *testing.T) {
	s := image(t, t.TempDir())
	for _, c := range []struct {
		name, script, in, want string
		code                   int
	}{
		{"unknown command", "frobnicate -x", "", "sh: 1: frobnicate: not found\n", 127},
		{"no execute permission", "echo hi > /tmp/f; /tmp/f", "", "sh: 1: /tmp/f: Permission denied\n", 126},
		{"a script of the tree", "printf '#!/bin/sh\\necho \"$0 $1\"; exit 4\\n' > /tmp/s; chmod +x /tmp/s; /tmp/s a", "", "/tmp/s a\n", 4},
		{"a binary", "printf 'x\\0y' > /tmp/b; chmod 755 /tmp/b; /tmp/b", "", "sh: 1: /tmp/b: Exec format error\n", 126},
		{"set -e stops", "set -e\nfalse\necho no", "", "", 1},
		{"pipes", "printf 'b\\na\\nb\\n' | sort | uniq -c | sed 's/^ *//' | tr '\\n' ';'", "", "1 a;2 b;", 0},
		{"here document", "cat <<EOF | grep -v two\none\ntwo\nEOF", "", "one\n", 0},
		{"functions are found by command -v", "f() { :; }; command -v f; command -v cat; command -v nothing || echo none", "", "f\n/usr/bin/cat\nnone\n", 0},
		{"dot", "echo X=5 > /tmp/env; . /tmp/env; echo $X; . /tmp/none", "", "5\nsh: 1: .: cannot open /tmp/none: No such file or directory\n", 2},
		{"stdin", "cat; read x || echo end", "given\n", "given\nend\n", 0},
		{"sh -s takes the script from stdin", "sh -s - one two", "echo $# $2\n", "2 two\n", 0},
		{"timeout", "timeout 0.05 sleep 30", "", "", 124},
		{"trap on exit", "trap 'echo bye' EXIT; trap : INT; exit 3", "", "bye\n", 3},
		{"sed -i", "printf 'a=1\\nb=2\\n' > /tmp/k; sed -i -e 's/^a=.*/a=9/' -e '/^b/d' /tmp/k; cat /tmp/k", "", "a=9\n", 0},
		{"sed refuses what it does not know", "echo x | sed 'y/x/y/'", "", "sed: not simulated by hl-lab: command \"y\"\n", 2},
		{"awk", "printf 'a b c\\nd e f\\n' | awk 'NR==2 {print $3, $1}'", "", "f d\n", 0},
		{"mode and owner", "install -m 600 /dev/null /tmp/m; stat -c '%a %U' /tmp/m; chmod u=r /tmp/m; stat -c %a /tmp/m", "", "600 root\n400\n", 0},
		{"checksums", "printf abc | sha256sum | cut -c1-8; printf abc | base64", "", "ba7816bf\nYWJj\n", 0},
		{"globs", "mkdir /tmp/g; touch /tmp/g/a.yaml /tmp/g/b.yaml; echo /tmp/g/*.yaml", "", "/tmp/g/a.yaml /tmp/g/b.yaml\n", 0},
		{"substitution of the environment", "A=1 env | grep ^A; env -i sh -c 'echo ${HOME:-}'", "", "A=1\n/root\n", 0},
		{"tilde of a user of the guest", "echo ~joe ~nobodyhere", "", "/home/joe ~nobodyhere\n", 0},
		{"arithmetic and loops", "i=0; while [ $i -lt 3 ]; do i=$((i+1)); done; echo $i", "", "3\n", 0},
		{"and a pipe that closes early", "yes | head -n 2", "", "y\ny\n", 0},
		{"background and wait", "(sleep 0.01; echo late) & wait; echo done", "", "late\ndone\n", 0},
		{"xargs", "printf '1 2\\n3' | xargs -n 2 echo n", "", "n 1 2\nn 3\n", 0},
		{"mktemp and rm", "f=$(mktemp); test -f $f && rm $f && test ! -e $f && echo ok", "", "ok\n", 0},
		{"syntax errors are 2", "if then", "", "", 2},
		{"dev null", "echo x > /dev/null 2>&1; cat /dev/null; test -c /dev/null && echo dev", "", "dev\n", 0},
		{"readlink and ln", "ln -s k3s /tmp/kubectl; readlink /tmp/kubectl; test -L /tmp/kubectl && echo link", "", "k3s\nlink\n", 0},
		{"find", "mkdir -p /tmp/t/u; touch /tmp/t/u/x.tar; find /tmp/t -name '*.tar' -type f", "", "/tmp/t/u/x.tar\n", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, code := runAs(Root, s, c.script, c.in)
			if code != c.code || c.name != "syntax errors are 2" && got != c.want {
				t.Errorf("exit %d, want %d\n got %q\nwant %q", code, c.code, got, c.want)
			}
		})
	}
}

func TestAUserMayOnlyDoWhatModesAllow(t *testing.T) {
	s := image(t, t.TempDir())
	if out, code := runAs(Root, s, "umask 077; echo s > /etc/secret; chmod 600 /etc/secret; mkdir -m 700 /root/d", ""); code != 0 {
		t.Fatal(out)
	}
	for script, want := range map[string]string{
		"cat /etc/secret":                    "cat: /etc/secret: Permission denied\n",
		"echo x > /etc/new":                  "open /etc/new: permission denied\n",
		"ls /root/d":                         "Permission denied\n",
		"rm -f /etc/secret":                  "rm: cannot remove '/etc/secret': Permission denied\n",
		"chown joe /etc/secret":              "Operation not permitted\n",
		"test -r /etc/secret || echo no":     "no\n",
		"echo mine > ~/f; cat ~/f; id -un":   "mine\njoe\n",
		"echo t > /tmp/j; stat -c %U /tmp/j": "joe\n",
	} {
		if got, _ := runAs(joe, s, script, ""); !strings.HasSuffix(got, want) {
			t.Errorf("%q: %q, want %q", script, got, want)
		}
	}
	if got, code := runAs(joe, s, "rm /tmp/../etc/passwd", ""); code == 0 {
		t.Errorf("a user removed /etc/passwd: %s", got)
	}
}

// Whatever paths and links a script makes up, it reads and changes nothing
// outside the tree, runs no real program and sees no real variable.
func TestNothingOfTheRealMachineIsReached(t *testing.T) {
	t.Setenv("HL_CANARY", "canary-in-the-environment")
	dir := t.TempDir()
	secret := filepath.Join(dir, "outside")
	if err := os.MkdirAll(filepath.Join(secret, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	const canary = "canary-of-the-real-machine"
	for _, f := range []string{"file", "sub/run.sh"} {
		if err := os.WriteFile(filepath.Join(secret, f), []byte("#!/bin/sh\necho "+canary+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	snapshot := func() string {
		var b strings.Builder
		err := filepath.WalkDir(secret, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			b.WriteString(p)
			if !d.IsDir() {
				c, err := os.ReadFile(p)
				if err != nil {
					return err
				}
				b.Write(c)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	before := snapshot()
	s := image(t, dir)
	up := strings.Repeat("../", 30)
	targets := []string{
		secret, secret + "/file", secret + "/sub/run.sh", up + secret, "../outside", "/../outside/file", "/proc/self/root" + secret,
		"/proc/self/cwd", "/proc/self/exe", "/proc/self/environ", "/dev/../" + secret, "link/../outside", "/tmp/link/file", "/tmp/link", "/.lab/meta.json",
	}
	rapid.Check(t, func(rt *rapid.T) {
		target := rapid.SampledFrom(targets)
		var script strings.Builder
		for range rapid.IntRange(1, 6).Draw(rt, "steps") {
			a, b := target.Draw(rt, "a"), target.Draw(rt, "b")
			script.WriteString(strings.NewReplacer("A", a, "B", b).Replace(rapid.SampledFrom([]string{
				"ln -sfn A /tmp/link", "ln -sf A B", "cat A", "cat < A", "echo x > A", "echo x >> A/new", "cp -r A /tmp/copy", "cp /etc/passwd A",
				"mv A B", "rm -rf A", "mkdir -p A/made", "chmod 777 A", "touch A", ". A", "sh A", "A", "sed -i s/c/d/ A", "tee A < /dev/null",
				"ls -la A", "find A", "cd A && cat file", "echo A/*", "install -m 755 /etc/passwd A", "dd if=A of=B", "eval 'cat A'", "cat <(cat A)",
				"echo $(<A)", "test -r A && echo readable", "command -v A", "type A", "PATH=A run.sh", "PATH=A command -v run.sh", "source A", "exec A",
				"env", "echo $HL_CANARY", "printenv", "readlink -f A", "pwd -P", "builtin source A", "command . A", "bash -c 'cat A'", "hash A",
				"HOME=A; cd; cat file", "TMPDIR=A mktemp", "cat A | sh", "sha256sum A", "head A", "export TMPDIR=A; cat <(echo hi)",
			}).Draw(rt, "step")) + "\n")
		}
		out, _ := runAs(Root, s, script.String(), "")
		if strings.Contains(out, canary) || strings.Contains(out, "canary-in-the-environment") || strings.Contains(out, "HL_CANARY=") {
			rt.Fatalf("leak:\n%s\n-> %s", script.String(), out)
		}
		if after := snapshot(); after != before {
			rt.Fatalf("the real machine was changed by\n%s", script.String())
		}
	})
}

// No real program runs, even by its full path or when the tree has no file of
// that name.
func TestRealProgramsDoNotRun(t *testing.T) {
	s := image(t, t.TempDir())
	for _, p := range []string{"/bin/true-real", "/usr/sbin/useradd", "/bin/mount", "gcc", "/proc/self/exe", "go"} {
		if out, code := runAs(Root, s, p, ""); code != 127 && code != 126 {
			t.Errorf("%s: exit %d, %s", p, code, out)
		}
	}
	if out, code := runAs(Root, s, "rm /usr/bin/cat; cat /etc/passwd", ""); code != 127 {
		t.Errorf("a removed tool still runs: %d %s", code, out)
	}
}

func TestAKilledScriptEnds(t *testing.T) {
	s := image(t, t.TempDir())
	for _, script := range []string{"sleep 1000", "cat", "while :; do :; done", "yes > /dev/null", "read x", "sleep 1000 & wait"} {
		ctx, cancel := context.WithCancelCause(context.Background())
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p := Login(Root)
		p.Stdin = r
		out, in, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p.Stdout = in
		done := make(chan int)
		go func() { done <- s.Run(ctx, p, "echo started\n"+script) }()
		if _, err := io.ReadFull(out, make([]byte, len("started\n"))); err != nil {
			t.Fatal(err)
		}
		cancel(Killed(9))
		select {
		case code := <-done:
			if code != 137 {
				t.Errorf("%q: exit %d", script, code)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%q goes on", script)
		}
		for _, f := range []*os.File{r, w, out, in} {
			f.Close()
		}
	}
}
