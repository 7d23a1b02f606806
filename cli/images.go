package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
	"github.com/spf13/cobra"
)

// imageDoc is one image file on one host in JSON; its fields are a contract.
type imageDoc struct {
	Name      string `json:"name"`
	Host      string `json:"host"`
	Storage   string `json:"storage"`
	Type      string `json:"type"`
	Format    string `json:"format"`
	Bytes     *int64 `json:"bytes"`
	DoneBytes int64  `json:"doneBytes"`
	SHA256    string `json:"sha256"`
	Verified  string `json:"verified"`
	Template  *int32 `json:"template"`
}

func imagesJSON(images []*controllerv1.ImageStatus) []imageDoc {
	docs := []imageDoc{}
	for _, i := range images {
		docs = append(docs, imageDoc{
			Name: i.GetName(), Host: i.GetHost(), Storage: i.GetStorage(), Type: imageType(i.GetType()), Format: i.GetFormat(),
			Bytes: numberOrNull(i.GetBytes()), DoneBytes: i.GetDoneBytes(), SHA256: i.GetSha256(), Verified: verified(i.GetVerification()),
			Template: numberOrNull(i.GetTemplate()),
		})
	}
	return docs
}

func imageType(t homelabv1.ImageType) string {
	if t == homelabv1.ImageType_IMAGE_TYPE_ISO {
		return "iso"
	}
	return "disk"
}

// verified is what a file was compared with. What is not known was not compared.
func verified(v homelabv1.Verification) string {
	switch v {
	case homelabv1.Verification_VERIFICATION_SPEC:
		return "spec"
	case homelabv1.Verification_VERIFICATION_LIST:
		return "list"
	}
	return "no"
}

// sortedImages are in the order of their names, then of the hosts.
func sortedImages(resp *controllerv1.StatusResponse) []*controllerv1.ImageStatus {
	return slices.SortedStableFunc(slices.Values(resp.GetImages()), func(a, b *controllerv1.ImageStatus) int {
		return cmp.Or(cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetHost(), b.GetHost()), cmp.Compare(a.GetSha256(), b.GetSha256()))
	})
}

func (a *app) imagesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "images", Short: "Show the images on the hosts; fetch or prune them", Args: cobra.NoArgs,
		Long: `images lists the image files on all hosts that answer, one line for each host, also
those of which a part is there. A file is kept as it was published; hosts get it from
each other, so that the WAN is used once.

  DONE      how much of the file is there
  VERIFIED  spec  it has the SHA-256 or SHA-512 of the Spec
            list  it has the one that its list of checksums gives
            no    neither is stated: it is what the first fetch brought
  TEMPLATE  the VMID of the template made of it there, which guests are cloned from

What an image's name stands for is decided at its first fetch. It stays so until
hlctl images fetch NAME --newest.

Exit code 0, whatever it shows.`,
		Example: `  hlctl images
  hlctl images -o json | jq -r '.[] | select(.verified == "no") | .name'
  hlctl images fetch noble -f homelab.yaml    have it before it is needed
  hlctl images prune --dry-run                what could go`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := a.status(cmd.Context(), true, false)
			if err != nil {
				return err
			}
			images := sortedImages(resp)
			return a.print(imagesJSON(images), func() { a.showImageFiles(images, resp) })
		},
	}
	cmd.AddCommand(a.imagesFetchCommand(), a.imagesPruneCommand())
	return cmd
}

func (a *app) showImageFiles(images []*controllerv1.ImageStatus, resp *controllerv1.StatusResponse) {
	switch {
	case len(images) > 0:
		a.imageTable(images)
	case resp.GetFleet() == "":
		fmt.Fprintln(a.out, "No image was fetched yet, and no Spec was applied.  hlctl images fetch -f homelab.yaml")
	default:
		fmt.Fprintln(a.out, "No host that answers has an image.  hlctl images fetch")
	}
	for _, h := range resp.GetHosts() {
		// One that answers has none, unless it is degraded: its storages may not be known.
		has := slices.ContainsFunc(images, func(i *controllerv1.ImageStatus) bool { return i.GetHost() == h.GetName() })
		if state := hostState(h); state == "online" || state == "disabled" || state == "degraded" && has {
			continue
		}
		text := h.GetName() + " " + hostState(h)
		if t := troubledSince(h); !t.IsZero() {
			text += " since " + ago(t, a.now())
		}
		a.trouble(text, "its images are not shown")
	}
}

var verifiedColours = map[string]string{"spec": green, "list": green, "no": yellow}

func (a *app) imageTable(images []*controllerv1.ImageStatus) {
	var rows [][]cell
	for _, i := range images {
		size, template, how := "-", "-", verified(i.GetVerification())
		if i.GetBytes() > 0 {
			size = human.Size(i.GetBytes())
		}
		if i.GetTemplate() != 0 {
			template = strconv.Itoa(int(i.GetTemplate()))
		}
		done, note := doneText(i)
		whose := cell{how, verifiedColours[how]}
		if !whole(i) {
			whose = plain("-") // it is compared when it is all there
		}
		rows = append(rows, []cell{
			plain(i.GetName()), plain(i.GetHost()), plain(i.GetStorage()), plain(imageType(i.GetType())), plain(formatText(i)), plain(size),
			plain(done), plain(cmp.Or(shortDigest(i.GetSha256()), "-")), whose, plain(template), plain(note),
		})
	}
	a.table([]string{"NAME", "HOST", "STORAGE", "TYPE", "FORMAT", "SIZE", "DONE", "SHA256", "VERIFIED", "TEMPLATE", ""}, rows)
}

// formatText is the format with the compression around it: raw.xz.
func formatText(i *controllerv1.ImageStatus) string {
	switch {
	case i.GetFormat() == "":
		return cmp.Or(i.GetCompression(), "-")
	case i.GetCompression() != "":
		return i.GetFormat() + "." + i.GetCompression()
	}
	return i.GetFormat()
}

// whole says whether all of a file is there.
func whole(i *controllerv1.ImageStatus) bool {
	return !i.GetActive() && i.GetBytes() > 0 && i.GetDoneBytes() >= i.GetBytes()
}

// doneText is how much of a file is there, and what more is to be said of it.
func doneText(i *controllerv1.ImageStatus) (done, note string) {
	switch {
	case whole(i) && !i.GetCurrent():
		return "100%", "older than what " + i.GetName() + " stands for now"
	case whole(i):
		return "100%", ""
	case i.GetActive():
		note = "being fetched"
	default:
		note = "a part; the next fetch goes on from there"
	}
	if i.GetBytes() == 0 {
		return human.Size(i.GetDoneBytes()), note
	}
	// Rounded down: 100 % is for what is whole.
	return fmt.Sprintf("%d%%", min(99, i.GetDoneBytes()*100/i.GetBytes())), note
}

func (a *app) imagesFetchCommand() *cobra.Command {
	var file string
	var o applyOptions
	op := &controllerv1.Operation{Kind: controllerv1.OperationKind_OPERATION_KIND_FETCH_IMAGES}
	cmd := &cobra.Command{
		Use: "fetch [NAME...]", Short: "Fetch images to the hosts before they are needed",
		Long: `fetch has the hosts get the images that are named, or all of the Spec, and verify
them: each host on which a guest of the image is wanted, or the one of --host. One
host reads the source, and the others take the bytes from it and from each other. What
a host holds already is not fetched, and a transfer that was cut off goes on.

An image's name stands for the same file until --newest, which reads its source again
and shows the old and the new digest. Guests that there are stay as they are.

It shows the plan and asks first, as apply does; --yes does not ask. It works with the
last Spec that was applied, or with that of -f.

Exit codes: 0 done or nothing to do, 1 failed or nothing was done, 3 partial.`,
		Example: `  hlctl images fetch -f homelab.yaml
  hlctl images fetch noble --host pve2 --yes
  hlctl images fetch noble --newest`,
		RunE: func(cmd *cobra.Command, names []string) error {
			op.Images = names
			q := askedByName(op, o)
			if file != "" {
				f, err := specForController(file)
				if err != nil {
					return err
				}
				q.spec, q.specName = f.text, f.name
			}
			return a.carry(cmd.Context(), q, o)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&file, "file", "f", "", "the Spec (default the last that was applied)")
	_ = cmd.MarkFlagFilename("file", "yaml", "yml")
	f.StringVar(&op.Host, "host", "", "fetch to this host only, also when no guest there is made of it")
	f.BoolVar(&op.Newest, "newest", false, "read the source again: the name then stands for what is there now")
	runFlags(cmd, &o)
	return cmd
}

func (a *app) imagesPruneCommand() *cobra.Command {
	var dry bool
	var o applyOptions
	op := &controllerv1.Operation{Kind: controllerv1.OperationKind_OPERATION_KIND_PRUNE_IMAGES}
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove image files and templates that nothing needs", Args: cobra.NoArgs,
		Long: `prune removes image files that no guest is made of and no name of the Spec stands for
any longer, what is left of their transfers that were cut off, and templates of ours
that no disk stands on. It lists them and asks first; --yes does not ask. What is not
provably ours, what is on a host that cannot be seen now, and what is in transfer is
left alone, and why is said.

--dry-run only lists, and exits with 0 whatever it lists. It works with the last Spec
that was applied, and nothing else is changed.

Exit codes: 0 done or nothing to do, 1 failed or nothing was done, 3 partial.`,
		Example: "  hlctl images prune --dry-run\n  hlctl images prune --yes\n  hlctl images prune --dry-run -o json | jq -r '.steps[].id'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := askedByName(op, o)
			if dry {
				return a.wouldPrune(cmd.Context(), q)
			}
			return a.carry(cmd.Context(), q, o)
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only show what would be removed")
	runFlags(cmd, &o)
	return cmd
}

// wouldPrune shows what a prune would remove, and why it leaves the rest.
func (a *app) wouldPrune(ctx context.Context, q *asked) error {
	c, resp, err := a.askPlan(ctx, q)
	if err != nil {
		return err
	}
	defer c.close()
	p := resp.GetPlan()
	return a.print(planJSON(p), func() {
		if n := countNotes(p); len(p.GetSteps())+n.skipped+n.refused+n.waiting > 0 {
			a.showPlan(p, "hlctl images prune")
			return
		}
		a.showTold(newStory(p))
		fmt.Fprintln(a.out, "Nothing to remove.")
	})
}
