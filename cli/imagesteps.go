package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// What is done to images is shown by image and not by guest: five hosts that get
// one image are one entry of a plan, and of the end of a run.

// onImage says whether a step is about an image, and so about no guest.
func onImage(s *homelabv1.Step) bool {
	switch s.GetAction() {
	case homelabv1.Action_ACTION_FETCH, homelabv1.Action_ACTION_TEMPLATE, homelabv1.Action_ACTION_PRUNE:
		return true
	}
	return false
}

// imageName is what the image of a step is called: by its name in the Spec, or by
// its digest when the Spec has forgotten it.
func imageName(s *homelabv1.Step) string {
	return cmp.Or(s.GetImage(), shortDigest(s.GetImageSha256()))
}

// shortDigest is as much of a digest as tells it from others.
func shortDigest(sha256 string) string { return sha256[:min(12, len(sha256))] }

// imageObject is what a step about an image makes or takes away.
func imageObject(s *homelabv1.Step) string {
	switch {
	case s.GetAction() == homelabv1.Action_ACTION_FETCH:
		return imageName(s)
	case s.GetVmid() != 0:
		return fmt.Sprintf("template %d of %s", s.GetVmid(), imageName(s))
	case s.GetAction() == homelabv1.Action_ACTION_TEMPLATE:
		return "template of " + imageName(s)
	}
	return strings.TrimSuffix(imageName(s)+" from "+s.GetStorage(), " from ")
}

// loses names what a step that destroys something takes, for people.
func loses(s *homelabv1.Step) string {
	switch {
	case s.GetGuest() != "" || !onImage(s):
		return s.GetGuest()
	case s.GetVmid() != 0:
		return imageObject(s) + " on " + s.GetHost()
	}
	return "image " + imageName(s) + " on " + s.GetHost()
}

// imageGroups gathers the steps about images by image, in the order of the plan.
func imageGroups(p *homelabv1.Plan) [][]*homelabv1.Step {
	var groups [][]*homelabv1.Step
	at := map[string]int{}
	for _, s := range p.GetSteps() {
		if !onImage(s) {
			continue
		}
		i, ok := at[imageName(s)]
		if !ok {
			i = len(groups)
			at[imageName(s)] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], s)
	}
	return groups
}

// showImages prints what a plan does to images: one line for all hosts on which
// the same is done for the same reason.
func (a *app) showImages(p *homelabv1.Plan) {
	for _, steps := range imageGroups(p) {
		fmt.Fprintf(a.out, "image %s\n", imageName(steps[0]))
		var lines []imageLine
		for _, s := range steps {
			l := imageLineOf(s)
			i := slices.IndexFunc(lines, func(o imageLine) bool {
				return o.action == l.action && o.about == l.about && o.reason == l.reason && o.subject == l.subject
			})
			if i < 0 {
				lines = append(lines, l)
				continue
			}
			lines[i].hosts = append(lines[i].hosts, l.hosts...)
		}
		for _, l := range lines {
			d := deedOf([]*homelabv1.Step{{Action: l.action}})
			a.sentence(d.mark, actions[l.action].word, d.colour, l.text(), "")
		}
	}
}

// imageLine is one line about an image in a plan.
type imageLine struct {
	action homelabv1.Action
	about  string // as template 9000, or its file in local
	hosts  []string
	reason string
	// subject says that the reason is a sentence about the host.
	subject bool
}

func imageLineOf(s *homelabv1.Step) imageLine {
	l := imageLine{action: s.GetAction(), hosts: []string{s.GetHost()}}
	l.reason, l.subject = strings.CutPrefix(s.GetReason(), s.GetHost()+" ")
	switch {
	case s.GetAction() == homelabv1.Action_ACTION_FETCH:
	case s.GetVmid() != 0 && s.GetAction() == homelabv1.Action_ACTION_TEMPLATE:
		l.about = fmt.Sprintf("%d of %s", s.GetVmid(), imageName(s))
	case s.GetVmid() != 0:
		l.about = fmt.Sprintf("template %d", s.GetVmid())
	case s.GetAction() == homelabv1.Action_ACTION_PRUNE:
		l.about = "its file"
		if s.GetImage() != "" && s.GetImageSha256() != "" {
			l.about = "file " + shortDigest(s.GetImageSha256())
		}
		if s.GetStorage() != "" {
			l.about += " in " + s.GetStorage()
		}
	}
	return l
}

// text is the sentence behind the mark and the word.
func (l imageLine) text() string {
	hosts, reason := enumerate(l.hosts), l.reason
	if l.subject && l.about == "" {
		if rest, ok := strings.CutPrefix(reason, "does not "); ok && len(l.hosts) > 1 {
			reason = "do not " + rest
		}
		return hosts + " " + reason
	}
	if l.subject {
		reason = "it " + reason
	}
	return strings.TrimSuffix(strings.TrimPrefix(l.about+" on "+hosts, " ")+": "+reason, ": ")
}

// imageSums are the parts of a plan's sum that are about images: what is taken
// away, and what is had.
func imageSums(p *homelabv1.Plan) (away, had []string) {
	fetched := map[string]bool{}
	var templates, gone, files int
	for _, s := range p.GetSteps() {
		switch {
		case s.GetAction() == homelabv1.Action_ACTION_FETCH:
			fetched[imageName(s)] = true
		case s.GetAction() == homelabv1.Action_ACTION_TEMPLATE:
			templates++
		case s.GetAction() == homelabv1.Action_ACTION_PRUNE && s.GetVmid() != 0:
			gone++
		case s.GetAction() == homelabv1.Action_ACTION_PRUNE:
			files++
		}
	}
	some := func(n int, one, many string) []string {
		if n == 0 {
			return nil
		}
		return []string{plural(n, one, many)}
	}
	return slices.Concat(some(gone, "template to remove", "templates to remove"), some(files, "image file to remove", "image files to remove")),
		slices.Concat(some(len(fetched), "image to fetch", "images to fetch"), some(templates, "template to make", "templates to make"))
}

// imageEnd is one line of the end of a run about an image: what was done on all
// hosts where it went well, or what went wrong on one.
type imageEnd struct {
	image, word, colour, rest string
	begun, end                time.Time
}

// imageDeeds are what may have been done to an image on a host, in their order.
var imageDeeds = []struct {
	action homelabv1.Action
	one    string // on the host that follows
	many   string // on as many hosts as follow
}{
	{homelabv1.Action_ACTION_FETCH, "fetched on ", "fetched on "},
	{homelabv1.Action_ACTION_TEMPLATE, "template on ", "templates on "},
	{homelabv1.Action_ACTION_PRUNE, "removed on ", "removed on "},
}

// imageEnds tells of all images of a run.
func (s *story) imageEnds() []imageEnd {
	var ends []imageEnd
	names := map[string]bool{}
	for _, key := range s.order {
		if g := s.guests[key]; g.image != "" && !names[g.image] {
			names[g.image] = true
			ends = append(ends, s.endsOf(g.image)...)
		}
	}
	return ends
}

func (s *story) endsOf(image string) []imageEnd {
	var ends []imageEnd
	for _, d := range imageDeeds {
		e := imageEnd{image: image, colour: green}
		var hosts []string
		for _, key := range s.order {
			g := s.guests[key]
			i := slices.IndexFunc(g.lasted, func(l lasted) bool { return l.action == d.action })
			if g.image != image || i < 0 {
				continue
			}
			hosts = append(hosts, g.host)
			end := g.lasted[i].end
			if begun := end.Add(-g.lasted[i].d); e.begun.IsZero() || begun.Before(e.begun) {
				e.begun = begun
			}
			if end.After(e.end) {
				e.end = end
			}
		}
		switch {
		case len(hosts) == 0:
			continue
		case len(hosts) == 1:
			e.word = d.one + hosts[0]
		default:
			e.word = d.many + plural(len(hosts), "host", "hosts")
		}
		ends = append(ends, e)
	}
	for _, key := range s.order {
		g := s.guests[key]
		if g.image != image {
			continue
		}
		e := imageEnd{image: image, word: "skipped on " + g.host, colour: yellow, rest: g.noteText, begun: g.begun, end: g.end}
		switch {
		case g.failed != "":
			e.word, e.colour, e.rest = "failed on "+g.host, red, g.failed
		case g.note == "":
			continue
		}
		ends = append(ends, e)
	}
	return ends
}
