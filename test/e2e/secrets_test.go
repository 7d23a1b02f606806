//go:build e2e

package e2e

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// watchProcesses collects arguments and environments of all processes of the
// lab, until the function it gives is called.
func (l *lab) watchProcesses() (stop func() []string) {
	end, done := make(chan struct{}), make(chan struct{})
	seen := map[string]bool{}
	go func() {
		defer close(done)
		for {
			for _, kind := range []string{"cmdline", "environ"} {
				files, _ := filepath.Glob("/proc/[0-9]*/" + kind)
				for _, file := range files {
					exe, err := os.Readlink(filepath.Join(filepath.Dir(file), "exe"))
					if err != nil || !strings.HasPrefix(exe, bin+"/") {
						continue
					}
					if text, err := os.ReadFile(file); err == nil && len(text) > 0 {
						seen[string(text)] = true
					}
				}
			}
			select {
			case <-end:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() []string {
		close(end)
		<-done
		var list []string
		for s := range seen {
			list = append(list, s)
		}
		return list
	}
}

// secretUntold is the secret part of the join token, which no process had and
// which an apply did not print.
func secretUntold(l *lab, processes []string, a applied) string {
	l.t.Helper()
	text, err := written(filepath.Join(l.guestFiles("k3s-1"), "var/lib/rancher/k3s/server/token"))
	if err != nil {
		l.t.Fatal(err)
	}
	_, secret, ok := strings.Cut(strings.TrimSpace(string(text)), "::server:")
	if !ok || len(secret) < 20 {
		l.t.Fatal("the token has no secret part that could be looked for")
	}
	if len(processes) < 20 {
		l.t.Errorf("only %d processes were seen", len(processes))
	}
	for _, p := range processes {
		if strings.Contains(p, secret) {
			l.t.Errorf("a process had the token: %q", strings.ReplaceAll(p, secret, "SECRET"))
		}
	}
	if strings.Contains(a.String()+a.told(), secret) {
		l.t.Error("apply printed the token")
	}
	return secret
}

// tokenIsNowhere looks for the secret part of the join token in everything that
// the lab wrote and ran.
func tokenIsNowhere(l *lab, processes []string, a applied) {
	secret := secretUntold(l, processes, a)
	for _, e := range a.events {
		if e.Call != nil && strings.Contains(strings.Join(e.Call.Args, " ")+e.Call.Error, secret) || strings.Contains(e.Text, secret) {
			l.t.Errorf("the event of step %s holds the token", e.Step)
		}
	}
	guests := 0
	l.walk(func(path string, info fs.FileInfo) {
		data, err := written(path)
		if err != nil || !bytes.Contains(data, []byte(secret)) {
			return
		}
		_, inside, isGuest := strings.Cut(path, ".fs/")
		switch {
		case !isGuest:
			l.t.Errorf("the token lies in %s", path)
		case strings.HasPrefix(inside, "var/lib/rancher/k3s/server/"):
			guests++ // k3s's own data, in a folder of root's
		case info.Mode().Perm() != 0o600:
			l.t.Errorf("the token lies in %s with mode %v", path, info.Mode())
		default:
			guests++
		}
	})
	if guests < 5 {
		l.t.Errorf("the token was found in %d files of guests; this looks at the wrong thing", guests)
	}
}
