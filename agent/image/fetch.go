package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/rpc"
)

// Seen is what is known of a file before most of it is there.
type Seen struct {
	Head
	// Bytes is its size as published, 0 when not known; Done is how much is there.
	Bytes, Done int64
}

// Told is how far a fetch is.
type Told struct {
	// Done and Total are in bytes; Total is 0 when not known.
	Done, Total int64
	// From is who sends: "its source", or a host's name.
	From string
}

// Job is a file to fetch.
type Job struct {
	Source *homelabv1.ImageSource
	To     Folder
	// Peers have the file or are getting it, best first. Without a digest none is
	// asked: nothing could be told of what they send.
	Peers []Peer
	// WAN is whether the file may be read from its source.
	WAN bool
	// Anew is whether the source is read although a file of its address is there, when
	// nothing is known of the one that it has now.
	Anew bool
	// Check judges what is known of the file before it is fetched, and says how many
	// bytes it may have (negative: what is free on the file system); its error ends
	// the fetch. Nil is a check of what is free there.
	Check func(Seen) (allowed int64, err error)
	// Progress is told often how far it is; nil is nobody.
	Progress func(Told)
	// Wrong is told that a peer sent bytes that are not the file's, and why; nil is
	// nobody. It is not to be asked again in this run.
	Wrong func(peer, text string)
}

// readsAnew says whether the source is read whatever is there.
func (j Job) readsAnew() bool {
	return j.Anew && j.Source.GetSha256() == "" && j.Source.GetSha512() == ""
}

// fetch is one Fetch at work.
type fetch struct {
	Job
	s     *Store
	p     *part
	proof homelabv1.Verification
	url   string // who gave the file, for its record
	alone bool   // each source gives the whole file or nothing: one of them lies
	out   map[string]bool
	why   reasons
}

// Fetch makes sure that the file is in the folder, and gives it. changed is whether
// anything had to be written, from whom its bytes come. What is not what its
// checksum says, or no image, is not kept: Refused. After Unavailable the part that
// is there stays when it can be gone on from.
func (s *Store) Fetch(ctx context.Context, job Job) (img Image, changed bool, from string, err error) {
	src := job.Source
	if !nameRE.MatchString(src.GetName()) {
		return Image{}, false, "", rpc.Errorf(rpc.ErrInvalid, "image name %q", src.GetName())
	}
	if img, ok := Find(src, job.To); ok && !job.readsAnew() {
		return img, false, "", nil
	}
	want, proof, err := s.expected(ctx, job)
	if err != nil {
		return Image{}, false, "", err
	}
	made, err := madeFolder(job.To.Local)
	if err != nil {
		return Image{}, false, "", err
	}
	s.sweep(job.To)
	if err := s.dropParts(job.To, src.GetName(), false); err != nil {
		return Image{}, false, "", err
	}
	p, err := s.openPart(ctx, src, want, job.To)
	for other := (errElsewhere{}); errors.As(err, &other); p, err = s.openPart(ctx, src, want, job.To) {
		if err := s.elsewhere(ctx, job, other.path); err != nil {
			return Image{}, false, "", err
		}
	}
	if err != nil {
		return Image{}, false, "", err
	}
	if img, ok := Find(src, job.To); ok && !job.readsAnew() {
		s.closePart(p, false, false) // another host of its storage brought it
		return img, false, "", nil
	}
	f := &fetch{Job: job, s: s, p: p, proof: proof, out: make(map[string]bool)}
	if f.Progress == nil {
		f.Progress = func(Told) {}
	}
	img, err = f.run(ctx)
	keep := err != nil && p.resumable() && (rpc.KindOf(err) == rpc.ErrUnavailable || ctx.Err() != nil)
	if keep && p.save() != nil {
		keep = false
	}
	s.closePart(p, err == nil, keep)
	if err != nil {
		if !keep && made {
			_ = os.Remove(job.To.Local) // only when it is empty
		}
		return Image{}, true, "", fmt.Errorf("image %s: %w", src.GetName(), err)
	}
	_ = s.dropParts(job.To, src.GetName(), true) // else they are dropped next time
	return img, true, strings.Join(p.from, ", "), nil
}

// madeFolder makes a folder and says whether it had to.
func madeFolder(dir string) (bool, error) {
	if _, err := os.Stat(dir); err == nil {
		return false, nil
	}
	return true, os.MkdirAll(dir, 0o755)
}

// expected is what the file must have, and what stands behind that.
func (s *Store) expected(ctx context.Context, job Job) (Digests, homelabv1.Verification, error) {
	src := job.Source
	want, err := digestsOf(src)
	if err != nil {
		return want, 0, fmt.Errorf("image %s: %w", src.GetName(), err)
	}
	if want.Known() {
		if v := src.GetVerification(); v != homelabv1.Verification_VERIFICATION_UNSPECIFIED {
			return want, v, nil
		}
		return want, homelabv1.Verification_VERIFICATION_SPEC, nil
	}
	if !job.WAN {
		return want, 0, rpc.Errorf(rpc.ErrUnavailable, "image %s: its digest is not known yet, and this host may not read its source", src.GetName())
	}
	if src.GetChecksumsUrl() == "" {
		return want, homelabv1.Verification_VERIFICATION_NO, nil
	}
	want, err = s.Resolve(ctx, src)
	return want, homelabv1.Verification_VERIFICATION_LIST, err
}

func (f *fetch) run(ctx context.Context) (Image, error) {
	if f.p.want.Known() && len(f.Peers) > 0 {
		if img, ok, err := f.fromPeers(ctx); ok || err != nil {
			return img, err
		}
	}
	if f.WAN {
		return f.fromSources(ctx)
	}
	done, total := f.p.size()
	if len(f.why) == 0 {
		return Image{}, rpc.Errorf(rpc.ErrUnavailable, "%s: nobody is there to give it", ofTotal(done, total))
	}
	return Image{}, rpc.Errorf(rpc.ErrUnavailable, "%s, no peer gives it: %s", ofTotal(done, total), f.why)
}

// ofTotal is how much of a file is there, as people read it.
func ofTotal(done, total int64) string {
	if total == 0 {
		return human.Size(done) + " of an unknown size"
	}
	return human.Size(done) + " of " + human.Size(total)
}

// reasons are why those who were asked did not give the file, each once.
type reasons []reason

type reason struct {
	who string
	err error
}

func (r *reasons) add(who string, err error) {
	for i := range *r {
		if (*r)[i].who == who {
			(*r)[i].err = err
			return
		}
	}
	*r = append(*r, reason{who, err})
}

// of is why who did not give it; nil when nobody asked.
func (r reasons) of(who string) error {
	for _, one := range r {
		if one.who == who {
			return one.err
		}
	}
	return nil
}

func (r reasons) String() string {
	var out []string
	for _, one := range r {
		out = append(out, one.who+": "+one.err.Error())
	}
	return strings.Join(out, "; ")
}

// kind is Refused when anybody refused, NotFound when nobody had it.
func (r reasons) kind() rpc.Kind {
	missing := 0
	for _, one := range r {
		switch {
		case errors.Is(one.err, rpc.ErrRefused):
			return rpc.ErrRefused
		case errors.Is(one.err, rpc.ErrNotFound):
			missing++
		}
	}
	if missing == len(r) && missing > 0 {
		return rpc.ErrNotFound
	}
	return rpc.ErrUnavailable
}

// errChecked is what Check says: nobody else will have another file.
type errChecked struct{ error }

func (e errChecked) Unwrap() error { return e.error }

// SourceFault says whether a fetch failed because of what its sources gave, so that
// another host would get no better from them. What lies in files is each host's own.
func SourceFault(src *homelabv1.ImageSource, err error) bool {
	if errors.As(err, new(errChecked)) {
		return false
	}
	for _, address := range append([]string{src.GetUrl()}, src.GetMirrors()...) {
		if _, file := FilePath(address); file {
			return false
		}
	}
	return errors.Is(err, rpc.ErrRefused)
}

// allowed is how many bytes the file may have.
func (f *fetch) allowed(seen Seen) (int64, error) {
	if f.Check == nil {
		free, err := freeIn(f.To)
		if err != nil || seen.Bytes-seen.Done <= free {
			return free + seen.Done, err
		}
		return 0, errChecked{rpc.Errorf(rpc.ErrRefused, "it has %s, storage %s has %s free", human.Size(seen.Bytes), f.To.Storage, human.Size(free))}
	}
	n, err := f.Check(seen)
	if err != nil {
		return 0, errChecked{err}
	}
	if n < 0 {
		n, err = freeIn(f.To)
		n += seen.Done
	}
	return n, err
}

// judge says whether what is there is the file, and gives it its name if so. The
// second result is how it is not what the digest says.
func (f *fetch) judge() (Image, string, error) {
	got := f.p.digests()
	if text := f.p.want.differs(got); text != "" {
		return Image{}, text, nil
	}
	size, _ := f.p.size()
	head, err := headOf(f.p.f, size, f.p.iso)
	if err != nil {
		return Image{}, "", err
	}
	// Only now is known for certain what a compressed file holds.
	if _, err := f.allowed(Seen{Head: head, Bytes: size, Done: size}); err != nil {
		return Image{}, "", err
	}
	img, err := f.keep(got, head, size)
	return img, "", err
}

// keep gives the file its name. The record is written first: a record without a
// file says nothing, but a file without a record would lie there for ever.
func (f *fetch) keep(got Digests, head Head, size int64) (Image, error) {
	f.p.settle()
	file := fmt.Sprintf("%s-%s.%s", f.p.name, got.SHA256[:12], head.Format)
	rec := Record{
		Name: f.p.name, URL: Masked(f.url), Query: queryOf(f.url), SHA256: got.SHA256, SHA512: got.SHA512,
		Verified: f.proof != homelabv1.Verification_VERIFICATION_NO, Verification: proofText(f.proof),
		Format: head.Format, Compression: head.Compression, Bytes: size, Virtual: head.VirtualBytes, Unpacked: head.UnpackedBytes, File: file,
	}
	if head.Compression != "" {
		rec.File += "." + head.Compression
	}
	if f.p.iso {
		rec.Type = typeISO
	}
	img := rec.image(f.To)
	if err := os.MkdirAll(filepath.Dir(img.local), 0o755); err != nil {
		return Image{}, err
	}
	if err := f.p.f.Chmod(0o644); err != nil {
		return Image{}, err
	}
	if err := f.p.f.Sync(); err != nil {
		return Image{}, err
	}
	st, err := f.p.f.Stat()
	if err != nil {
		return Image{}, err
	}
	rec.Changed = st.ModTime()
	if err := rec.write(f.To.Local); err != nil {
		return Image{}, err
	}
	if err := os.Rename(f.p.path, img.local); err != nil {
		return Image{}, err
	}
	_ = os.Remove(f.p.side) // one without a part says nothing
	img.Record = rec
	return img, errors.Join(durable.Sync(filepath.Dir(img.local)), durable.Sync(f.To.Local))
}
