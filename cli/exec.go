package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/human"
	"github.com/spf13/cobra"
)

// maxStdin bounds what exec -i sends, in bytes.
const maxStdin = 16 << 20

// execDoc is a command's end in JSON.
type execDoc struct {
	Exit   int32  `json:"exit"`
	Stdout string `json:"stdout"`
	Stderr string `json:"stderr"`
}

func (a *app) execCommand() *cobra.Command {
	var stdin bool
	cmd := &cobra.Command{
		Use: "exec GUEST -- CMD [ARG...]", Short: "Run a command in a guest",
		Long: `exec runs a command in a guest as root, by SSH from the guest's host, or
through the guest agent when SSH does not answer. The arguments arrive as they were
typed: no shell splits or expands them again. hlctl ends with the command's exit code;
255 is a failure of ours. Flags of hlctl stand before GUEST, everything after it is
the command's. Where another machine answers at the guest's address nothing is run.

With -o json or yaml both streams and the exit code are printed when it ends.`,
		Example: `  hlctl exec k3s-1 -- k3s kubectl get nodes
  hlctl exec k3s-1 -- sh -c 'df -h / | tail -1'
  hlctl exec -i k3s-1 -- sh -s < script.sh`,
		Args: func(_ *cobra.Command, args []string) error {
			_, err := guestArgv(args)
			return err
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			argv, err := guestArgv(args)
			if err != nil {
				return err
			}
			req := &controllerv1.ExecRequest{Guest: args[0], Argv: argv}
			if stdin {
				if req.Stdin, err = a.readStdin(cmd.Context()); err != nil {
					return err
				}
			}
			return a.exec(cmd.Context(), req)
		},
	}
	// What follows GUEST is the guest's.
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&stdin, "stdin", "i", false, "send standard input to the command")
	return cmd
}

// guestArgv is the command in GUEST -- CMD [ARG...]. The first -- is ours and
// any other the command's; without one CMD must not look like a flag of ours in
// the wrong place.
func guestArgv(args []string) ([]string, error) {
	switch {
	case len(args) == 0:
		return nil, errors.New("no guest and no command: hlctl exec GUEST -- CMD")
	case len(args) > 1 && args[1] == "--":
		args = args[1:]
	case len(args) > 1 && strings.HasPrefix(args[1], "-"):
		return nil, fmt.Errorf("%s stands after the guest, where the command is: hlctl exec %s %s -- CMD", args[1], args[1], args[0])
	}
	if len(args) < 2 {
		return nil, errors.New("no command: hlctl exec GUEST -- CMD")
	}
	return args[1:], nil
}

func (a *app) readStdin(ctx context.Context) ([]byte, error) {
	data, err := patiently(ctx, func() ([]byte, error) { return io.ReadAll(io.LimitReader(a.in, maxStdin+1)) })
	if err == nil && len(data) > maxStdin {
		err = fmt.Errorf("more than %s of input; put it into a file in the guest instead", human.Size(maxStdin))
	}
	return data, err
}

func (a *app) exec(ctx context.Context, req *controllerv1.ExecRequest) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	stream, err := c.Exec(ctx, req)
	if err != nil {
		return err
	}
	stdout, stderr := a.out, a.errw
	var kept [2]bytes.Buffer
	if a.format != "table" {
		stdout, stderr = &kept[0], &kept[1]
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("the command's exit code did not arrive; whether it ended is not known: hlctl exec %s -- ps -ef", req.GetGuest())
		}
		if err != nil {
			return err
		}
		switch part := resp.GetPart().(type) {
		case *controllerv1.ExecResponse_Stdout:
			_, err = stdout.Write(part.Stdout)
		case *controllerv1.ExecResponse_Stderr:
			_, err = stderr.Write(part.Stderr)
		case *controllerv1.ExecResponse_Exit:
			if err := a.print(execDoc{part.Exit, kept[0].String(), kept[1].String()}, func() {}); err != nil {
				return err
			}
			if part.Exit != 0 {
				return &exitError{code: int(part.Exit)}
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}
