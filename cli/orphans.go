package cli

import (
	"errors"
	"fmt"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
	"github.com/spf13/cobra"
)

// orphansDoc is what no VM has, in JSON.
type orphansDoc struct {
	Orphans []orphanDoc  `json:"orphans"`
	Holders []holderDoc  `json:"holders"`
	Unknown []unknownDoc `json:"unknown"`
}

// orphanDoc is one volume; ours is null when it could not be told.
type orphanDoc struct {
	Host    string `json:"host"`
	Volume  string `json:"volume"`
	VMID    *int32 `json:"vmid"`
	Storage string `json:"storage"`
	Bytes   *int64 `json:"bytes"`
	Ours    *bool  `json:"ours"`
	Guest   string `json:"guest"`
	Reason  string `json:"reason"`
}

type holderDoc struct {
	Host  string    `json:"host"`
	VMID  int32     `json:"vmid"`
	Guest string    `json:"guest"`
	Disks []diskDoc `json:"disks"`
}

type diskDoc struct {
	Slot    string `json:"slot"`
	Storage string `json:"storage"`
	Bytes   *int64 `json:"bytes"`
}

// unknownDoc is a host that could not be asked, with why.
type unknownDoc struct {
	Host   string `json:"host"`
	Reason string `json:"reason"`
}

func unknownJSON(notes []*homelabv1.Note) []unknownDoc {
	docs := []unknownDoc{}
	for _, n := range notes {
		docs = append(docs, unknownDoc{n.GetHost(), n.GetText()})
	}
	return docs
}

// truthOrNull is null for what is not known.
func truthOrNull(f *homelabv1.Fact) *bool {
	switch f.GetTruth() {
	case homelabv1.Truth_TRUTH_YES, homelabv1.Truth_TRUTH_NO:
		yes := f.GetTruth() == homelabv1.Truth_TRUTH_YES
		return &yes
	}
	return nil
}

func orphansJSON(resp *controllerv1.OrphansResponse) orphansDoc {
	doc := orphansDoc{Orphans: []orphanDoc{}, Holders: []holderDoc{}, Unknown: unknownJSON(resp.GetUnknown())}
	for _, o := range resp.GetOrphans() {
		doc.Orphans = append(doc.Orphans, orphanDoc{
			Host: o.GetHost(), Volume: o.GetVolid(), VMID: numberOrNull(o.GetVmid()), Storage: o.GetStorage(), Bytes: numberOrNull(o.GetSizeBytes()),
			Ours: truthOrNull(o.GetOurs()), Guest: o.GetGuest(), Reason: o.GetOurs().GetReason(),
		})
	}
	for _, h := range resp.GetHolders() {
		holder := holderDoc{h.GetHost(), h.GetVmid(), h.GetGuest(), []diskDoc{}}
		for _, d := range h.GetDisks() {
			holder.Disks = append(holder.Disks, diskDoc{d.GetSlot(), d.GetStorage(), numberOrNull(d.GetSizeBytes())})
		}
		doc.Holders = append(doc.Holders, holder)
	}
	return doc
}

func (a *app) orphansCommand() *cobra.Command {
	var remove bool
	var o applyOptions
	cmd := &cobra.Command{
		Use: "orphans [--delete]", Short: "Show volumes without a VM, and holder VMs", Args: cobra.NoArgs,
		Long: `orphans lists the volumes on all hosts that answer which no configuration of a VM or
container names, and whether they are provably ours: left by a creation or a destroy
that we began and that was cut off. Below them it lists the holder VMs, which keep the
data disks of guests whose VM is gone for now or for good.

--delete removes volumes that are provably ours, and holder VMs that hold nothing. It
shows the plan and asks first. What is not ours is never touched; how to free it by
hand is said.

Exit code 0, whatever it shows; with --delete those of apply.`,
		Example: "  hlctl orphans\n  hlctl orphans -o json | jq '[.orphans[].bytes] | add'\n  hlctl orphans --delete",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if remove {
				op := &controllerv1.Operation{Kind: controllerv1.OperationKind_OPERATION_KIND_CLEAR_ORPHANS}
				return a.carry(cmd.Context(), askedByName(op, o), o)
			}
			if o.yes || len(o.destroy) > 0 {
				return errors.New("nothing was done: --yes and --destroy are for hlctl orphans --delete")
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.close()
			resp, err := ask(cmd.Context(), c.Orphans, &controllerv1.OrphansRequest{})
			if err != nil {
				return err
			}
			return a.print(orphansJSON(resp), func() { a.showOrphans(resp) })
		},
	}
	cmd.Flags().BoolVar(&remove, "delete", false, "remove those that are provably ours, and empty holder VMs")
	applyFlags(cmd, &o)
	return cmd
}

func (a *app) showOrphans(resp *controllerv1.OrphansResponse) {
	a.showUnknown(resp.GetUnknown())
	if len(resp.GetOrphans()) == 0 {
		fmt.Fprintln(a.out, "No volume is without a VM.")
	} else {
		a.showVolumes(resp.GetOrphans())
	}
	if len(resp.GetHolders()) == 0 {
		return
	}
	fmt.Fprintln(a.out)
	var rows [][]cell
	for _, h := range resp.GetHolders() {
		text := "nothing, it can go: hlctl orphans --delete"
		for i, d := range h.GetDisks() {
			if i == 0 {
				text = ""
			} else {
				text += ", "
			}
			text += d.GetSlot() + " on " + d.GetStorage()
			if d.GetSizeBytes() > 0 {
				text += " " + human.Size(d.GetSizeBytes())
			}
		}
		rows = append(rows, []cell{plain("hl-holder-" + h.GetGuest()), plain(h.GetHost()), plain(fmt.Sprint(h.GetVmid())), plain(text)})
	}
	a.table([]string{"HOLDER", "HOST", "VMID", "HOLDS"}, rows)
}

func (a *app) showVolumes(orphans []*homelabv1.Orphan) {
	var rows [][]cell
	ours, foreign := 0, []*homelabv1.Orphan{}
	for _, o := range orphans {
		size, vmid, whose := "-", "-", cell{"unknown", yellow}
		if o.GetSizeBytes() > 0 {
			size = human.Size(o.GetSizeBytes())
		}
		if o.GetVmid() != 0 {
			vmid = fmt.Sprint(o.GetVmid())
		}
		switch o.GetOurs().GetTruth() {
		case homelabv1.Truth_TRUTH_YES:
			whose = cell{"yes", green}
			ours++
		case homelabv1.Truth_TRUTH_NO:
			whose = plain("no")
		}
		// One that may be somebody's data is not to be freed by a line that is copied.
		if o.GetOurs().GetTruth() != homelabv1.Truth_TRUTH_YES && o.GetGuest() == "" {
			foreign = append(foreign, o)
		}
		rows = append(rows, []cell{plain(o.GetHost()), plain(o.GetVolid()), plain(size), plain(vmid), whose, plain(o.GetOurs().GetReason())})
	}
	a.table([]string{"HOST", "VOLUME", "SIZE", "VMID", "OURS", "WHY"}, rows)
	if ours > 0 {
		fmt.Fprintf(a.out, "\n%s provably ours.   hlctl orphans --delete\n", plural(ours, "volume is", "volumes are"))
	}
	if len(foreign) == 0 {
		return
	}
	fmt.Fprintln(a.out, "\nThe rest is not provably ours and left alone. When nobody needs it, on its host:")
	for _, o := range foreign {
		fmt.Fprintf(a.out, "  %s  pvesm free %s\n", o.GetHost(), o.GetVolid())
	}
}

// showUnknown tells which hosts could not be asked.
func (a *app) showUnknown(notes []*homelabv1.Note) {
	for _, n := range notes {
		a.trouble(n.GetHost()+" could not be asked", n.GetText())
	}
}
