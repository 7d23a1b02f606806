package cli

import (
	"fmt"
	"strings"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/spf13/cobra"
)

func (a *app) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "pause [REASON]", Short: "Stop all changes until resume",
		Long: `pause has the controllers change nothing more, in no run and not by themselves, until
hlctl resume. Steps at work finish; a run that goes on begins no new one. Looking goes
on: status, plan and why answer as always. The reason is shown to everybody.`,
		Example: "  hlctl pause\n  hlctl pause replacing the switch",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.close()
			resp, err := ask(cmd.Context(), c.Pause, &controllerv1.PauseRequest{Reason: strings.Join(args, " ")})
			if err != nil {
				return err
			}
			return a.print(map[string]string{"paused": resp.GetPaused()}, func() {
				fmt.Fprintln(a.out, a.wrap("Paused: "+withNext(resp.GetPaused(), "hlctl resume"), 0))
			})
		},
	}
}

func (a *app) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "resume [GUEST]", Short: "End a pause, or take a guest out of its park", Args: cobra.MaximumNArgs(1),
		Long: `resume ends what hlctl pause began. With GUEST it takes that guest out of its park
instead: a guest whose recreation failed again and again is parked, and nothing more
is tried with it until then.`,
		Example: "  hlctl resume\n  hlctl resume k3s-2",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.close()
			resp, err := ask(cmd.Context(), c.Resume, &controllerv1.ResumeRequest{Guest: strings.Join(args, "")})
			if err != nil {
				return err
			}
			return a.print(map[string]string{"text": resp.GetText()}, func() { fmt.Fprintln(a.out, a.wrap(resp.GetText(), 0)) })
		},
	}
}
