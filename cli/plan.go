package cli

import (
	"context"
	"strings"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/spf13/cobra"
)

func (a *app) planCommand() *cobra.Command {
	var file string
	var destroy []string
	cmd := &cobra.Command{
		Use: "plan -f homelab.yaml", Short: "Show what would be done, and why; changes nothing", Args: cobra.NoArgs,
		Long: `plan has the controller look at all hosts and tell what would make the fleet as the
Spec says, guest by guest, and why. It changes nothing.

  +  is made     ~  is started or waited for     !  destroys, or needs a person
  -  is left alone now: a host is silent, somebody works on it, or what was seen
     must last a while before anything follows from it

A guest that is made anew keeps its VMID, MAC and uuid; its system disk is lost, and
its data disks travel. What destroys is said at the guest and counted in the last
line.

Exit codes: 0 nothing to do, 2 there are steps, 3 something cannot be done now and
the rest is well, 1 failed.`,
		Example: "  hlctl plan -f homelab.yaml\n  hlctl plan -f homelab.yaml -o json | jq -r '.steps[] | select(.destroys) | .id'",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.plan(cmd.Context(), file, destroy) },
	}
	specFlag(cmd, &file)
	cmd.Flags().StringSliceVar(&destroy, "destroy", nil, "plan as with this guest's destruction confirmed by name")
	return cmd
}

func (a *app) plan(ctx context.Context, file string, destroy []string) error {
	q, err := askedBySpec(file, destroy)
	if err != nil {
		return err
	}
	c, resp, err := a.askPlan(ctx, q)
	if err != nil {
		return err
	}
	defer c.close()
	p := resp.GetPlan()
	if err := a.print(planJSON(p), func() { a.showPlan(p, "hlctl apply -f "+file) }); err != nil {
		return err
	}
	return planExit(p, resp.GetGuests())
}

// planExit is the contract's exit code of plan.
func planExit(p *homelabv1.Plan, guests []*controllerv1.GuestStatus) error {
	c := countNotes(p)
	healthy := c.unchanged > 0
	for _, g := range guests {
		healthy = healthy || g.GetHealth() == controllerv1.Health_HEALTH_HEALTHY
	}
	switch {
	case len(p.GetSteps()) > 0:
		return &exitError{code: exitSteps}
	case c.skipped+c.refused+c.waiting == 0:
		return nil
	case healthy:
		return &exitError{code: exitPartial}
	}
	return &exitError{code: exitFailed}
}

// counts of a plan's notes.
type counts struct{ unchanged, waiting, skipped, refused int }

func countNotes(p *homelabv1.Plan) counts {
	var c counts
	for _, n := range p.GetNotes() {
		switch n.GetKind() {
		case homelabv1.NoteKind_NOTE_KIND_UNCHANGED:
			c.unchanged++
		case homelabv1.NoteKind_NOTE_KIND_SKIPPED, homelabv1.NoteKind_NOTE_KIND_BUSY:
			c.skipped++
		case homelabv1.NoteKind_NOTE_KIND_REFUSED:
			c.refused++
		case homelabv1.NoteKind_NOTE_KIND_WAITING:
			c.waiting++
		}
	}
	return c
}

// planDoc is a plan in JSON.
type planDoc struct {
	Digest string    `json:"digest"`
	Steps  []stepDoc `json:"steps"`
	Notes  []noteDoc `json:"notes"`
	// ByName are the guests whose destruction must be confirmed by name.
	ByName []string `json:"byName"`
}

type stepDoc struct {
	ID         string   `json:"id"`
	Action     string   `json:"action"`
	Guest      string   `json:"guest"`
	Host       string   `json:"host"`
	After      []string `json:"after"`
	Reason     string   `json:"reason"`
	VMID       *int32   `json:"vmid"`
	UUID       string   `json:"uuid"`
	Image      string   `json:"image"`
	Generation int32    `json:"generation"`
	Through    string   `json:"through"`
	Destroys   bool     `json:"destroys"`
	HolderVMID *int32   `json:"holderVmid"`
	Slots      []string `json:"slots"`
	// Of images:
	ImageSHA256  string `json:"imageSha256"`
	Storage      string `json:"storage"`
	Clone        string `json:"clone"`
	TemplateVMID *int32 `json:"templateVmid"`
}

type noteDoc struct {
	Kind  string  `json:"kind"`
	Guest string  `json:"guest"`
	Host  string  `json:"host"`
	Text  string  `json:"text"`
	Until *string `json:"until"`
}

// enumWord is an enum value's name as the contract writes it: lower case,
// without the type's prefix, dashes for blanks.
func enumWord(name, prefix string) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, prefix)), "_", "-")
}

func numberOrNull[N int32 | int64](n N) *N {
	if n == 0 {
		return nil
	}
	return &n
}

// cloneWord is how a system disk comes to be; empty for a step that makes none.
func cloneWord(c homelabv1.CloneKind) string {
	if c == homelabv1.CloneKind_CLONE_KIND_UNSPECIFIED {
		return ""
	}
	return enumWord(c.String(), "CLONE_KIND_")
}

func planJSON(p *homelabv1.Plan) planDoc {
	doc := planDoc{Digest: p.GetDigest(), Steps: []stepDoc{}, Notes: []noteDoc{}, ByName: list(p.GetByName())}
	for _, s := range p.GetSteps() {
		doc.Steps = append(doc.Steps, stepDoc{
			ID: s.GetId(), Action: enumWord(s.GetAction().String(), "ACTION_"), Guest: s.GetGuest(), Host: s.GetHost(),
			After: list(s.GetAfter()), Reason: s.GetReason(), VMID: numberOrNull(s.GetVmid()), UUID: s.GetUuid(),
			Image: s.GetImage(), Generation: s.GetGeneration(),
			Through: s.GetThrough(), Destroys: destroys(s), HolderVMID: numberOrNull(s.GetHolderVmid()), Slots: list(s.GetSlots()),
			ImageSHA256: s.GetImageSha256(), Storage: s.GetStorage(), Clone: cloneWord(s.GetClone()), TemplateVMID: numberOrNull(s.GetTemplateVmid()),
		})
	}
	for _, n := range p.GetNotes() {
		doc.Notes = append(doc.Notes, noteDoc{enumWord(n.GetKind().String(), "NOTE_KIND_"), n.GetGuest(), n.GetHost(), n.GetText(), timeOrNull(timeOf(n.GetUntil()))})
	}
	return doc
}
