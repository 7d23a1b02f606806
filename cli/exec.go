package cli

import (
	"errors"
	"fmt"
	"io"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/spf13/cobra"
)

// maxStdin bounds what exec -i sends, in bytes.
const maxStdin = 16 << 20

func (a *app) execCommand() *cobra.Command {
	var stdin bool
	cmd := &cobra.Command{
		Use: "exec GUEST -- CMD [ARG...]", Short: "Run a command in a guest", Args: cobra.MinimumNArgs(2),
		Long: `exec runs a command in a guest as the Spec's user. The arguments arrive as they were
typed, and hlctl ends with the command's exit code; 255 is a failure of ours.`,
		Example: "  hlctl exec k3s-1 -- sudo k3s kubectl get nodes\n  hlctl exec -i k3s-1 -- sh -s < script.sh",
		RunE: func(cmd *cobra.Command, args []string) error {
			ours := func(err error) error {
				if err == nil {
					return nil
				}
				return &ExitError{Code: exitExec, Err: err}
			}
			req := &controllerv1.ExecRequest{Guest: args[0], Argv: args[1:]}
			if stdin {
				data, err := io.ReadAll(io.LimitReader(a.in, maxStdin+1))
				if err != nil {
					return ours(err)
				}
				if len(data) > maxStdin {
					return ours(fmt.Errorf("more than %s of input; put it into a file in the guest instead", size(maxStdin)))
				}
				req.Stdin = data
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return ours(err)
			}
			defer c.close()
			stream, err := c.Exec(cmd.Context(), req)
			if err != nil {
				return ours(err)
			}
			for {
				resp, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					return ours(errors.New("the command's exit code did not arrive"))
				}
				if err != nil {
					return ours(err)
				}
				switch part := resp.GetPart().(type) {
				case *controllerv1.ExecResponse_Stdout:
					_, err = a.out.Write(part.Stdout)
				case *controllerv1.ExecResponse_Stderr:
					_, err = a.errw.Write(part.Stderr)
				case *controllerv1.ExecResponse_Exit:
					if part.Exit != 0 {
						return &ExitError{Code: int(part.Exit)}
					}
					return nil
				}
				if err != nil {
					return ours(err)
				}
			}
		},
	}
	// What follows GUEST is the guest's.
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&stdin, "stdin", "i", false, "send standard input to the command")
	return cmd
}
