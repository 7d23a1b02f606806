//go:build race

package pve

import (
	"runtime"
	"syscall"
)

// raced is the exit code that the race detector gives to a program with a race.
const raced = 66

// Exit ends a program of the lab. By os.Exit the race detector makes each of them a
// second longer, in which it looks for further races; a race that was seen must still
// be a failure.
func Exit(code int) {
	if runtime.RaceErrors() > 0 {
		code = raced
	}
	syscall.Exit(code)
}
