package cli

import (
	"fmt"

	"github.com/homeiac/homelab/internal/version"
	"github.com/spf13/cobra"
)

func (a *app) versionCommand() *cobra.Command {
	var client bool
	cmd := &cobra.Command{
		Use: "version", Short: "Show the versions of hlctl and the controller", Args: cobra.NoArgs,
		Long: `version shows the version of hlctl, and that of the controller that answers. Without
an answer it still shows its own, and ends with 1.`,
		Example: "  hlctl version\n  hlctl version --client",
		RunE: func(cmd *cobra.Command, _ []string) error {
			doc := struct {
				Client     string  `json:"client"`
				Controller *string `json:"controller"`
				Name       *string `json:"controllerName"`
			}{Client: version.String()}
			var why error
			if !client {
				c, err := a.connect(cmd.Context())
				if err == nil {
					defer c.close()
					v, n := c.version.GetVersion(), c.version.GetName()
					doc.Controller, doc.Name = &v, &n
				}
				why = err
			}
			err := a.print(doc, func() {
				fmt.Fprintln(a.out, "hlctl      ", doc.Client)
				if doc.Controller != nil {
					fmt.Fprintf(a.out, "controller  %s (%s)\n", *doc.Controller, *doc.Name)
				}
			})
			if err == nil {
				err = why
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&client, "client", false, "only hlctl's own; asks nobody")
	return cmd
}
