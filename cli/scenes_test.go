package cli

import (
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// scenes are the worlds that goldens name.
var scenes = map[string]func(*fake){
	"fresh":   func(f *fake) { f.plan, f.status = fresh(), new(controllerv1.StatusResponse) },
	"healthy": func(f *fake) { f.plan, f.status = healthyPlan(), well() },
	"mixed":   func(f *fake) { f.plan = mixed() },
	"partial": func(f *fake) { f.plan = partial() },
	"refused": func(f *fake) {
		p := mixed()
		f.plan = &homelabv1.Plan{Digest: "refused", Notes: p.GetNotes()[2:3]}
	},
	"failing": func(f *fake) {
		f.plan = fresh()
		f.fails = map[string]string{
			"create/pve1/k3s-1": "create k3s-1 on pve1: no space left on device\n  qm create 201: unable to create image: No space left on device\n  make room on storage local of pve1, then hlctl apply",
		}
	},
	"no image": func(f *fake) {
		f.plan = fresh()
		f.fails = map[string]string{"fetch/pve1/noble": "fetch image noble on pve1: it has another SHA-256 than the Spec gives; correct that, then hlctl plan"}
	},
	"api silent":  func(f *fake) { f.plan, f.silent, f.status = healthyPlan(), true, mute() },
	"changed":     func(f *fake) { f.plan, f.drifts = partial(), []*homelabv1.Plan{healthyPlan()} },
	"changed bad": func(f *fake) { f.plan, f.drifts = partial(), []*homelabv1.Plan{mixed()} },
	"recreation":  func(f *fake) { f.plan, f.status = recreation(), well() },
	"recreations": func(f *fake) { f.plan = recreations() },
	"recreation failed": func(f *fake) {
		f.plan = recreation()
		f.fails = map[string]string{"create/pve2/k3s-2": "create k3s-2 on pve2: storage local is not active\n  make it so, then hlctl apply"}
	},
	"trust":   trusting,
	"by name": func(f *fake) { f.plan = byName(recreation()) },
	"ripens": func(f *fake) {
		f.plan, f.drifts, f.before = ripening(), []*homelabv1.Plan{recreation()}, ripeningEvents()
	},
	"waits":    func(f *fake) { f.plan, f.before = ripening(), ripeningEvents() },
	"delete":   func(f *fake) { f.plan = deleted() },
	"adopt":    func(f *fake) { f.plan = adopted() },
	"stop":     func(f *fake) { f.plan = stopped() },
	"restart":  func(f *fake) { f.plan = restarted() },
	"remove":   func(f *fake) { f.plan = removed() },
	"rejoin":   func(f *fake) { f.plan = rejoined() },
	"foreign":  func(f *fake) { f.plan = foreign() },
	"snapshot": func(f *fake) { f.plan, f.snaps = snapshotPlan(), snapshots() },
	"orphans":  func(f *fake) { f.plan, f.left = clearing(), leftBehind() },
	"clean": func(f *fake) {
		f.left, f.snaps = new(controllerv1.OrphansResponse), new(controllerv1.ListSnapshotsResponse)
	},
	"images":  func(f *fake) { f.status, f.plan = heldImages(), fetchingImages() },
	"prune":   func(f *fake) { f.plan = pruning() },
	"cloning": func(f *fake) { f.plan = cloning() },
	"bad mirror": func(f *fake) {
		f.plan = fetchingImages()
		f.fails = map[string]string{"fetch/pve2/noble": "fetch image noble on pve2: 212 MiB of 512 MiB came from https://mirror.example.org/noble.img, then it ended"}
	},
	"sick":    func(f *fake) { f.status, f.why = sick(), tales() },
	"fleet":   func(f *fake) { f.status = fleet() },
	"nothing": func(*fake) {},
	"ran": func(f *fake) {
		f.plan = partial()
		events, sum := f.play(f.plan, noon)
		f.events = events
		f.kept = []*controllerv1.RunRecord{
			{Run: 2, By: "admin@laptop", State: "running", Started: stamped(time.Minute)},
			{Run: 1, By: "admin@laptop", State: "partial", Started: stamped(time.Hour), Ended: stamped(58 * time.Minute), Summary: sum},
		}
	},
}
