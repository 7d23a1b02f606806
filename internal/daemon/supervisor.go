package daemon

import (
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Supervisor is what started this process and watches it: systemd, for a unit of
// Type=notify. Without one (a terminal, the lab) nobody is told anything.
type Supervisor struct {
	tell  func(state string)
	every time.Duration // half of the watchdog's patience, 0 without a watchdog
}

// Supervised finds the supervisor by the environment (NOTIFY_SOCKET, WATCHDOG_USEC).
func Supervised(log *slog.Logger) *Supervisor {
	patience, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("watchdog", "error", err)
	}
	return NewSupervisor(patience, func(state string) {
		if _, err := daemon.SdNotify(false, state); err != nil {
			log.Warn("service manager", "error", err)
		}
	})
}

// NewSupervisor is one that hears what tell is given, in the words of sd_notify(3),
// and has a watchdog of that patience, or none with 0.
func NewSupervisor(patience time.Duration, tell func(state string)) *Supervisor {
	return &Supervisor{tell: tell, every: patience / 2}
}

// Ready says that the daemon does its work from now on, with a sentence for
// systemctl status.
func (s *Supervisor) Ready(status string) {
	s.say(daemon.SdNotifyReady + "\nSTATUS=" + status)
}

// Ending says that the daemon has begun to end, and what it still waits for.
func (s *Supervisor) Ending(status string) {
	s.say(daemon.SdNotifyStopping + "\nSTATUS=" + status)
}

// Alive tells the watchdog that the daemon's loop still turns.
func (s *Supervisor) Alive() { s.say(daemon.SdNotifyWatchdog) }

// Beat ticks when Alive is due, until stop is called; without a watchdog never. It
// belongs into the loop of the daemon itself: a goroutine of its own would tell that
// all is well of a daemon that is stuck.
func (s *Supervisor) Beat() (beat <-chan time.Time, stop func()) {
	if s == nil || s.every <= 0 {
		return nil, func() {}
	}
	t := time.NewTicker(s.every)
	return t.C, t.Stop
}

func (s *Supervisor) say(state string) {
	if s != nil {
		s.tell(state)
	}
}
