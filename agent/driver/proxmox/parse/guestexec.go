package parse

import (
	"encoding/json"
	"unicode/utf8"

	"github.com/homeiac/homelab/internal/rpc"
)

// GuestResult is what came of a command in a guest.
type GuestResult struct {
	// Running tells that it has not ended, with its process there; the rest is empty.
	Running bool
	// PID is its process in the guest; 0 when it is not told.
	PID int64
	// Stdout and Stderr are its output, as far as the guest agent kept it.
	Stdout, Stderr string
	// Exit is its exit code; 128 and the signal when one ended it, as shells say it.
	Exit int32
	// Truncated tells that output was cut.
	Truncated bool
}

// GuestExec reads the answer of qm guest exec and of qm guest exec-status. What does
// not read as one is Unavailable.
//
// The output of a command is in it byte for byte, as Perl prints it, so that the
// whole need not be UTF-8: it is read as Latin-1, which has a character for every
// byte.
func GuestExec(stdout string) (GuestResult, error) {
	var answer struct {
		Exited   int    `json:"exited"`
		ExitCode int32  `json:"exitcode"`
		Signal   int32  `json:"signal"`
		OutData  string `json:"out-data"`
		ErrData  string `json:"err-data"`
		OutCut   int    `json:"out-truncated"`
		ErrCut   int    `json:"err-truncated"`
		PID      int64  `json:"pid"`
	}
	if err := json.Unmarshal([]byte(fromLatin1(stdout)), &answer); err != nil {
		return GuestResult{}, rpc.Errorf(rpc.ErrUnavailable, "qm guest exec: its answer cannot be read: %w", err)
	}
	if answer.Exited == 0 {
		return GuestResult{Running: true, PID: answer.PID}, nil
	}
	if answer.Signal != 0 {
		answer.ExitCode = 128 + answer.Signal
	}
	return GuestResult{Stdout: toLatin1(answer.OutData), Stderr: toLatin1(answer.ErrData), Exit: answer.ExitCode,
		Truncated: answer.OutCut+answer.ErrCut > 0}, nil
}

func fromLatin1(s string) string {
	b := make([]byte, 0, len(s))
	for i := range len(s) {
		b = utf8.AppendRune(b, rune(s[i]))
	}
	return string(b)
}

// toLatin1 undoes fromLatin1. A character beyond Latin-1 can only have come as an
// escape (\u2019), and is kept as UTF-8.
func toLatin1(s string) string {
	b := make([]byte, 0, len(s))
	for _, r := range s {
		if r < 0x100 {
			b = append(b, byte(r))
		} else {
			b = utf8.AppendRune(b, r)
		}
	}
	return string(b)
}
