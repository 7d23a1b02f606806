package cli

import (
	"fmt"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
	"github.com/spf13/cobra"
)

// snapshotsDoc are the etcd snapshots in JSON, and the hosts that could not be
// asked for theirs.
type snapshotsDoc struct {
	Snapshots []snapshotDoc `json:"snapshots"`
	Unknown   []unknownDoc  `json:"unknown"`
}

type snapshotDoc struct {
	Name    string  `json:"name"`
	Host    string  `json:"host"`
	Guest   string  `json:"guest"`
	Taken   *string `json:"taken"`
	Bytes   *int64  `json:"bytes"`
	Version string  `json:"version"`
	SHA256  string  `json:"sha256"`
	Path    string  `json:"path"`
}

func snapshotsJSON(resp *controllerv1.ListSnapshotsResponse) snapshotsDoc {
	doc := snapshotsDoc{Snapshots: []snapshotDoc{}, Unknown: unknownJSON(resp.GetUnknown())}
	for _, s := range resp.GetSnapshots() {
		doc.Snapshots = append(doc.Snapshots, snapshotDoc{
			s.GetName(), s.GetHost(), s.GetGuest(), timeOrNull(timeOf(s.GetAt())), numberOrNull(s.GetBytes()), s.GetK3SVersion(), s.GetSha256(), s.GetPath(),
		})
	}
	return doc
}

func (a *app) snapshotListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "Show the etcd snapshots that the hosts keep", Args: cobra.NoArgs,
		Long: `ls lists the etcd snapshots on all hosts that answer, newest first. They are taken by
hlctl k3s snapshot and before a server is made anew. The server token that a restore
needs lies beside each of them. Where one lies and its SHA-256: -o json.

Exit code 0, whatever it shows.`,
		Example: "  hlctl k3s snapshot ls\n  hlctl k3s snapshot ls -o json | jq -r '.snapshots[0] | .host, .path'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.close()
			resp, err := ask(cmd.Context(), c.ListSnapshots, &controllerv1.ListSnapshotsRequest{})
			if err != nil {
				return err
			}
			return a.print(snapshotsJSON(resp), func() {
				a.showUnknown(resp.GetUnknown())
				a.showSnapshots(resp.GetSnapshots())
			})
		},
	}
}

func (a *app) showSnapshots(snapshots []*homelabv1.Snapshot) {
	if len(snapshots) == 0 {
		fmt.Fprintln(a.out, "No snapshot is kept.  hlctl k3s snapshot")
		return
	}
	var rows [][]cell
	for _, s := range snapshots {
		size := "-"
		if s.GetBytes() > 0 {
			size = human.Size(s.GetBytes())
		}
		rows = append(rows, []cell{
			plain(s.GetName()), plain(s.GetHost()), plain(s.GetGuest()), plain(onClock(timeOf(s.GetAt()), a.now())), plain(size), plain(s.GetK3SVersion()),
		})
	}
	a.table([]string{"NAME", "HOST", "GUEST", "TAKEN", "SIZE", "VERSION"}, rows)
}
