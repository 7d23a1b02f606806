package parse

import (
	"encoding/json"

	"github.com/homeiac/homelab/internal/rpc"
)

// GuestResult is what came of a command in a guest.
type GuestResult struct {
	// Stdout and Stderr are its output, as far as the guest agent kept it.
	Stdout, Stderr string
	// Exit is its exit code; 128 and the signal when one ended it, as shells say it.
	Exit int32
	// Truncated tells that output was cut.
	Truncated bool
}

// GuestExec reads the answer of qm guest exec. A command that still ran at qm's
// limit has no result; that is Unavailable.
func GuestExec(stdout string) (GuestResult, error) {
	var answer struct {
		Exited   int    `json:"exited"`
		ExitCode int32  `json:"exitcode"`
		Signal   int32  `json:"signal"`
		OutData  string `json:"out-data"`
		ErrData  string `json:"err-data"`
		OutCut   int    `json:"out-truncated"`
		ErrCut   int    `json:"err-truncated"`
		PID      int    `json:"pid"`
	}
	if err := json.Unmarshal([]byte(stdout), &answer); err != nil {
		return GuestResult{}, rpc.Errorf(rpc.ErrUnavailable, "qm guest exec: its answer cannot be read: %w", err)
	}
	if answer.Exited == 0 {
		return GuestResult{}, rpc.Errorf(rpc.ErrUnavailable, "the command in the guest did not end in time and still runs (process %d there)", answer.PID)
	}
	if answer.Signal != 0 {
		answer.ExitCode = 128 + answer.Signal
	}
	return GuestResult{Stdout: answer.OutData, Stderr: answer.ErrData, Exit: answer.ExitCode, Truncated: answer.OutCut+answer.ErrCut > 0}, nil
}
