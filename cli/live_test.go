package cli

import (
	"context"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/google/go-cmp/cmp"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// screen is as much of a terminal as hlctl needs: it moves the cursor up, clears
// from there, and prints.
type screen struct {
	mu      sync.Mutex
	lines   [][]rune
	row     int
	column  int
	pending string
	raw     strings.Builder
}

var control = regexp.MustCompile(`^\x1b\[([0-9;?]*)([A-Za-z])`)

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.raw.Write(p)
	text := s.pending + string(p)
	s.pending = ""
	for text != "" {
		if text[0] == '\x1b' {
			m := control.FindStringSubmatch(text)
			if m == nil {
				s.pending = text
				return len(p), nil
			}
			s.control(m[1], m[2])
			text = text[len(m[0]):]
			continue
		}
		r := []rune(text)[0]
		text = text[len(string(r)):]
		switch r {
		case '\n':
			s.row++
		case '\r':
			s.column = 0
		default:
			s.put(r)
		}
	}
	return len(p), nil
}

func (s *screen) put(r rune) {
	for len(s.lines) <= s.row {
		s.lines = append(s.lines, nil)
	}
	for len(s.lines[s.row]) <= s.column {
		s.lines[s.row] = append(s.lines[s.row], ' ')
	}
	s.lines[s.row][s.column] = r
	s.column++
}

func (s *screen) control(number, what string) {
	n, _ := strconv.Atoi(number)
	switch what {
	case "A":
		s.row = max(0, s.row-max(1, n))
	case "J":
		if s.row < len(s.lines) {
			s.lines = s.lines[:s.row+1]
			s.lines[s.row] = s.lines[s.row][:min(s.column, len(s.lines[s.row]))]
		}
	case "K":
		if s.row < len(s.lines) {
			s.lines[s.row] = s.lines[s.row][:min(s.column, len(s.lines[s.row]))]
		}
	}
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, line := range s.lines {
		b.WriteString(strings.TrimRight(string(line), " ") + "\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// until waits until the screen shows the text that often.
func (s *screen) until(t *testing.T, what string, times int) {
	t.Helper()
	if !eventually(func() bool { return strings.Count(s.String(), what) >= times }) {
		t.Fatalf("%q does not come:\n%s", what, s)
	}
}

// eventually waits, as a person does, until what is drawn by other goroutines is
// there.
func eventually(seen func() bool) bool {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if seen() {
			return true
		}
	}
	return seen()
}

// terminal is hlctl on a terminal of the given size.
type terminal struct {
	screen
	keys *os.File
	done chan int
}

func (r *rig) onTerminal(ctx context.Context, rows, columns uint16, args ...string) *terminal {
	r.t.Helper()
	r.t.Chdir(r.dir)
	r.t.Setenv("TERM", "xterm-256color")
	master, tty, err := pty.Open()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := pty.Setsize(tty, &pty.Winsize{Rows: rows, Cols: columns}); err != nil {
		r.t.Fatal(err)
	}
	term := &terminal{keys: master, done: make(chan int, 1)}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			_, _ = term.Write(buf[:n])
			if err != nil {
				return // the other end was closed
			}
		}
	}()
	a := newApp(tty, tty, tty)
	a.now = r.clock.now
	go func() {
		code := a.main(ctx, append([]string{"--config", r.path("hlctl.yaml")}, args...))
		_ = tty.Close()
		<-drained
		_ = master.Close()
		term.done <- code
	}()
	return term
}

func (t *terminal) same(tt *testing.T, what, want string) {
	tt.Helper()
	want = strings.TrimPrefix(want, "\n")
	if !eventually(func() bool { return t.String() == want }) {
		tt.Fatalf("%s, -want +got:\n%s", what, cmp.Diff(want, t.String()))
	}
}

// held stops a run before an event until it is released.
func (r *rig) held(kind homelabv1.EventKind, steps ...string) (release func()) {
	gates := map[string]chan struct{}{}
	for _, s := range steps {
		gates[s] = make(chan struct{})
	}
	r.hold = func(ctx context.Context, part *controllerv1.ApplyResponse) {
		e := part.GetEvent()
		if gate := gates[e.GetStep()]; gate != nil && e.GetKind() == kind {
			select {
			case <-gate:
			case <-ctx.Done():
			}
		}
	}
	return func() {
		close(gates[steps[0]])
		steps = steps[1:]
	}
}

const livePlan = `
image noble
  + fetch       on pve1 and pve2: the host does not hold it
k3s-1  on pve1
  + create      VMID 201, 2 CPUs, 2 GiB, 10 GiB on local
      start       so that it boots
      boot        wait until it has booted
      new cluster no cluster is remembered and no server was seen: it is the
                  first
k3s-2  on pve1
  + create      VMID 201, 2 CPUs, 2 GiB, 10 GiB on local
      start       so that it boots
      boot        wait until it has booted
      join        as server, through k3s-1
k3s-3  on pve2
  + create      VMID 201, 2 CPUs, 2 GiB, 10 GiB on local
      start       so that it boots
      boot        wait until it has booted
      join        as server, through k3s-1
k3s-5  on pve5
  - skipped     host silent since 13:58 (4 min)

3 to create, 1 image to fetch, 1 skipped.
Do it? [y/N] y
`

func TestLivePicture(t *testing.T) {
	t.Setenv("NO_COLOR", "")
	r := newRig(t)
	scenes["fresh"](r.fake)
	r.plan.Notes = append(r.plan.Notes, silentNote("k3s-5", "pve5"))
	done := homelabv1.EventKind_EVENT_KIND_STEP_DONE
	release := r.held(done, "fetch/pve1/noble", "boot/pve1/k3s-1", "join/pve1/k3s-2")
	term := r.onTerminal(t.Context(), 60, 80, "apply")
	term.until(t, "[y/N]", 1)
	if _, err := term.keys.WriteString("y\n"); err != nil {
		t.Fatal(err)
	}

	term.until(t, "fetching   48 MiB", 2)
	r.clock.add(3 * time.Second)
	term.same(t, "while images are fetched", livePlan+`noble  pve1  fetching   48 MiB of 96 MiB, 16 MiB/s, 0:03 left, from pve2   0:03
noble  pve2  fetching   48 MiB of 96 MiB, 16 MiB/s, 0:03 left, from pve2   0:03
k3s-1  pve1  waiting    until image noble is fetched
k3s-2  pve1  waiting    until image noble is fetched
k3s-3  pve2  waiting    until image noble is fetched
k3s-5  pve5  skipped    host silent since 13:58 (4 min)
-- 0 of 14 steps, 0:03
`)
	release()
	term.until(t, "cloud-init running", 3)
	r.clock.add(12 * time.Second)
	term.same(t, "while guests boot", livePlan+`k3s-1  pve1  booting    guest agent answers, cloud-init running    0:12 / ~1:02
k3s-2  pve1  booting    guest agent answers, cloud-init running    0:12 / ~1:02
k3s-3  pve2  booting    guest agent answers, cloud-init running    0:12 / ~1:02
k3s-5  pve5  skipped    host silent since 13:58 (4 min)
-- 8 of 14 steps, 0:15
`)
	release()
	term.until(t, "promoted", 1)
	r.clock.add(9 * time.Second)
	term.same(t, "while one joins", livePlan+`k3s-1  pve1  created, new cluster                                          0:50
k3s-2  pve1  joining    waiting to be promoted from learner        0:09 / ~0:44
k3s-3  pve2  waiting    until k3s-2 has joined
k3s-5  pve5  skipped    host silent since 13:58 (4 min)
-- 12 of 14 steps, 0:24
`)
	release()
	if code := <-term.done; code != exitPartial {
		t.Errorf("exit %d", code)
	}
	term.same(t, "at the end", livePlan+`image noble  fetched on 2 hosts    0:06
k3s-1        created, new cluster  0:50   (boot 0:31, new cluster 0:14)
k3s-2        created and joined    1:12   (boot 0:31, join 0:22)
k3s-3        created and joined    1:34   (boot 0:31, join 0:22)
k3s-5        skipped                      host silent since 13:58 (4 min)
3 done, 1 skipped in 2:04.  Partial: run it again when pve5 is back.
`)
	if !strings.Contains(term.raw.String(), "\x1b["+green+"m") {
		t.Error("no colour on a terminal")
	}
}

func TestLivePictureOnASmallScreenWithoutColour(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	r := newRig(t)
	scenes["fresh"](r.fake)
	release := r.held(homelabv1.EventKind_EVENT_KIND_STEP_DONE, "boot/pve1/k3s-1")
	term := r.onTerminal(t.Context(), 4, 60, "apply", "--yes")
	term.until(t, "-- 8 of 14 steps, 0:00, 1 more guest", 1)
	for line := range strings.Lines(term.String()) {
		if n := len([]rune(line)); n > 61 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	release()
	if code := <-term.done; code != 0 {
		t.Errorf("exit %d", code)
	}
	if strings.Contains(term.String(), "-- ") {
		t.Errorf("left behind:\n%s", term)
	}
	if regexp.MustCompile(`\x1b\[[0-9;]*m`).MatchString(term.raw.String()) {
		t.Error("colour in spite of NO_COLOR")
	}
}

func TestLivePictureIsNotShownWhereNothingIsToDo(t *testing.T) {
	r := newRig(t)
	scenes["healthy"](r.fake)
	term := r.onTerminal(t.Context(), 24, 80, "apply")
	if code := <-term.done; code != 0 {
		t.Errorf("exit %d", code)
	}
	term.same(t, "all of it", "All 5 guests healthy, nothing to do.  (0.2 s)\n")
	if strings.Contains(term.raw.String(), "\x1b") {
		t.Error("the cursor was moved for nothing")
	}
}

func TestCtrlCLeavesNoPictureBehind(t *testing.T) {
	r := newRig(t)
	scenes["partial"](r.fake)
	r.held(homelabv1.EventKind_EVENT_KIND_STEP_DONE, "boot/pve4/k3s-4")
	ctx, cancel := context.WithCancel(t.Context())
	term := r.onTerminal(ctx, 24, 80, "apply", "--yes")
	term.until(t, "cloud-init running", 1)
	cancel()
	if code := <-term.done; code != exitFailed {
		t.Errorf("exit %d", code)
	}
	term.same(t, "all of it", `
k3s-4  on pve4
  ~ start       stopped since 14:02 (qm stop by root@pam)
      boot        wait until it has booted
k3s-5  on pve5
  - skipped     host silent since 13:58 (4 min)

1 to start, 1 unchanged, 1 skipped.
error: interrupted: nothing new is begun; these finish on their hosts: k3s-4 (booting)
  the same command goes on from there
`)
}

func TestLivePictureOfARecreationByName(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	r := newRig(t)
	scenes["by name"](r.fake)
	release := r.held(homelabv1.EventKind_EVENT_KIND_STEP_DONE, "destroy/pve2/k3s-2", "join/pve2/k3s-2")
	term := r.onTerminal(t.Context(), 60, 80, "guests", "recreate", "k3s-2")
	term.until(t, "to have it destroyed:", 1)
	if _, err := term.keys.WriteString("k3s-2\n"); err != nil {
		t.Fatal(err)
	}
	const shown = `
k3s-2  on pve2
  ! recreate    stopped since 14:02 (qmstop by root@pam)
                destroys its system disk; to be confirmed by its name
      snapshot etcd on k3s-1, drain, stop, leave the cluster
        3 voters, 3 healthy -> 2 of 2 stay healthy, 2 needed
      destroy VM 202, create it again with the same VMID, MAC and uuid
      start, boot, join again   as server, until it is a voter
k3s-5  on pve5
  - skipped     host silent since 13:58 (4 min)

1 to recreate, 3 unchanged, 1 skipped.
Do it? Type k3s-2 to have it destroyed: k3s-2
`
	term.until(t, "destroying", 1)
	term.same(t, "while it is destroyed", shown+`k3s-2  pve2  destroying                                                    0:00
k3s-5  pve5  skipped    host silent since 13:58 (4 min)
-- 5 of 10 steps, 0:00
`)
	release()
	term.until(t, "promoted", 1)
	term.same(t, "while it joins", shown+`k3s-2  pve2  joining    waiting to be promoted from learner        0:00 / ~0:44
k3s-5  pve5  skipped    host silent since 13:58 (4 min)
-- 9 of 10 steps, 0:00
`)
	release()
	if code := <-term.done; code != exitPartial {
		t.Errorf("exit %d", code)
	}
	term.same(t, "at the end", shown+`k3s-2  recreated and joined  1:07   (boot 0:31, join 0:22)
k3s-5  skipped                      host silent since 13:58 (4 min)
1 done, 3 unchanged, 1 skipped in 1:07.
Partial: run it again when pve5 is back.
`)
}

func TestLivePictureWhileEvidenceRipens(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	r := newRig(t)
	scenes["ripens"](r.fake)
	gate := make(chan struct{})
	r.hold = func(ctx context.Context, part *controllerv1.ApplyResponse) {
		if part.GetChangedPlan() != nil {
			select {
			case <-gate:
			case <-ctx.Done():
			}
		}
	}
	term := r.onTerminal(t.Context(), 60, 80, "apply")
	term.until(t, "-- waiting", 1)
	r.clock.add(70 * time.Second)
	term.same(t, "while it waits", `
k3s-2  pve2  waiting    until 14:05: guest agent and SSH silent since 14:00 ...
-- waiting: k3s-2 guest agent and SSH silent since 14:00 (2 min)  1:10 / ~3:00
`)
	close(gate)
	term.until(t, "[y/N]", 1)
	if _, err := term.keys.WriteString("n\n"); err != nil {
		t.Fatal(err)
	}
	if code := <-term.done; code != exitFailed {
		t.Errorf("exit %d", code)
	}
	if strings.Contains(term.String(), "-- ") {
		t.Errorf("left behind:\n%s", term)
	}
}

// TestATerminalWithoutASizeGetsLines, as a serial line is: nothing of a picture would be
// seen there, for as long as the run takes.
func TestATerminalWithoutASizeGetsLines(t *testing.T) {
	t.Setenv("TERM", "xterm")
	for size, picture := range map[pty.Winsize]bool{{}: false, {Cols: 80}: false, {Cols: 80, Rows: 24}: true} {
		keys, tty, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		if err := pty.Setsize(tty, &size); err != nil {
			t.Fatal(err)
		}
		if a := newApp(tty, tty, tty); a.outIsTerm != picture || !a.inIsTerm {
			t.Errorf("%v: picture %v, input from a terminal %v", size, a.outIsTerm, a.inIsTerm)
		}
		_, _ = tty.Close(), keys.Close()
	}
}
