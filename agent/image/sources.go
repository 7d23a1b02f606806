package image

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
)

// fruitless is how often in a row a source may be asked that gives nothing new.
const fruitless = 5

// itsSource is who sends when no host does.
const itsSource = "its source"

// fromSources reads the file from its address and its mirrors, the first that
// gives it.
func (f *fetch) fromSources(ctx context.Context) (Image, error) {
	var why reasons
	for _, address := range addresses(f.Source) {
		img, err := f.fromSource(ctx, address)
		if err == nil {
			return img, nil
		}
		if ctx.Err() != nil {
			return Image{}, ctx.Err()
		}
		var checked errChecked
		if errors.As(err, &checked) {
			return Image{}, err
		}
		why.add(Masked(address), err)
	}
	kind, hint := why.kind(), ""
	for _, one := range why {
		var wrong *wrongDigest
		if errors.As(one.err, &wrong) {
			hint = f.hint()
		}
	}
	if len(why) == 1 && !strings.Contains(why[0].err.Error(), why[0].who) {
		return Image{}, rpc.Errorf(kind, "from %s: %w%s", why[0].who, why[0].err, hint)
	}
	if len(why) == 1 {
		return Image{}, rpc.Errorf(kind, "%w%s", why[0].err, hint)
	}
	return Image{}, rpc.Errorf(kind, "no source gives it: %s%s", why, hint)
}

// hint is what to type when the source has another file than it had.
func (f *fetch) hint() string {
	if f.Source.GetSha256() == "" && f.Source.GetSha512() == "" || f.proof == verificationSpec {
		return ""
	}
	return "\n  its source has another file now; to take that: hlctl images fetch " + f.Source.GetName() + " --newest"
}

// wrongDigest: the file that came is another one.
type wrongDigest struct{ text string }

func (e *wrongDigest) Error() string { return e.text }
func (e *wrongDigest) Unwrap() error { return rpc.ErrRefused }

// fromSource reads the file from one address, and goes on where a connection broke
// off, as long as each brings something.
func (f *fetch) fromSource(ctx context.Context, address string) (Image, error) {
	if f.alone {
		if err := f.p.restart(); err != nil {
			return Image{}, err
		}
	}
	furthest, again, once := int64(0), 0, false
	if f.mayGoOn(address) {
		furthest, _ = f.p.size()
	}
	for {
		err := f.attempt(ctx, address)
		if err == nil {
			f.url = address
			img, differs, err := f.judge()
			if differs == "" {
				return img, err
			}
			// It may be several files, one end put to the other's beginning.
			several := f.p.pieces > 1
			if err := f.p.restart(); err != nil {
				return Image{}, err
			}
			if !several || once {
				return Image{}, &wrongDigest{differs}
			}
			furthest, again, once = 0, 0, true
			continue
		}
		var final *statusError
		if ctx.Err() != nil || !errors.Is(err, rpc.ErrUnavailable) || errors.As(err, &final) {
			return Image{}, f.dropRefused(err)
		}
		if done, _ := f.p.size(); done > furthest {
			furthest, again = done, 0
		}
		if again++; again >= fruitless {
			return Image{}, f.short(err)
		}
		if !pause.For(ctx, f.s.retry) {
			return Image{}, ctx.Err()
		}
	}
}

// dropRefused drops what a source sent that was no image: the next one must not
// go on from there.
func (f *fetch) dropRefused(err error) error {
	if errors.Is(err, rpc.ErrRefused) {
		return errors.Join(err, f.p.restart())
	}
	return err
}

// short is the error of a source that gave only a part.
func (f *fetch) short(err error) error {
	done, total := f.p.size()
	if done == 0 {
		return err
	}
	return rpc.Errorf(rpc.ErrUnavailable, "%s came: %w", ofTotal(done, total), err)
}

// mayGoOn says whether that address may go on from the part that is there: when a
// checksum will tell whether it was right, or the server that it is the same file.
func (f *fetch) mayGoOn(address string) bool {
	done, _ := f.p.size()
	return done > 0 && (f.p.want.Known() || f.p.etag != "" && f.p.origin == hashText(address))
}

// attempt asks once, and takes what comes.
func (f *fetch) attempt(ctx context.Context, address string) error {
	done, total := f.p.size()
	if !f.mayGoOn(address) {
		if err := f.p.restart(); err != nil {
			return err
		}
		if done = 0; !f.p.want.Known() {
			total = 0
			f.p.setTotal(0)
		}
	}
	if total > 0 && done == total {
		return nil
	}
	in, err := f.open(ctx, address, done)
	if err != nil {
		if errors.Is(err, errOtherRange) {
			err = errors.Join(err, f.p.restart())
		}
		return err
	}
	defer in.body.Close()
	same := f.p.origin == hashText(address)
	if in.from != done || same && f.p.etag != "" && in.from > 0 && in.etag != f.p.etag {
		wrong := in.from > 0 // another file, and the end of it is of no use
		if err := f.p.restart(); err != nil {
			return err
		}
		if wrong {
			return rpc.Errorf(rpc.ErrUnavailable, "the file changed while it was read")
		}
	}
	f.p.origin, f.p.etag = hashText(address), in.etag
	f.p.pieces++
	return f.take(ctx, in, itsSource)
}

// open asks an address for the file from an offset on.
func (f *fetch) open(ctx context.Context, address string, offset int64) (*incoming, error) {
	p, ok := localPath(address)
	if !ok {
		etag := ""
		if f.p.origin == hashText(address) {
			etag = f.p.etag
		}
		return f.s.get(ctx, address, offset, etag)
	}
	file, size, err := f.s.openFile(p)
	if err != nil {
		return nil, err
	}
	if offset > size {
		offset = 0
	}
	if _, err := file.Seek(offset, io.SeekStart); err != nil {
		_ = file.Close()
		return nil, err
	}
	return &incoming{body: file, from: offset, total: size, goesOn: func() bool { return false }}, nil
}

// take adds what comes to the part, after its beginning was judged.
func (f *fetch) take(ctx context.Context, in *incoming, who string) error {
	if _, total := f.p.size(); in.total > 0 && in.total != total {
		f.p.setTotal(in.total)
	}
	done, total := f.p.size()
	body, limit, err := f.begin(in, done, total)
	if err != nil {
		return err
	}
	if err := f.receive(ctx, body, limit, who); err != nil {
		return err
	}
	done, total = f.p.size()
	switch {
	case total > 0 && done < total:
		return rpc.Errorf(rpc.ErrUnavailable, "it ends after %d of %d bytes", done, total)
	case in.goesOn():
		return errGoesOn(total)
	}
	f.p.setTotal(done)
	return nil
}

// begin judges the first 64 KiB and how much there will be, before the rest is
// read, and gives the whole of what comes again.
func (f *fetch) begin(in *incoming, done, total int64) (io.ReadCloser, int64, error) {
	head := make([]byte, headBytes)
	old := int(min(done, headBytes))
	if _, err := f.p.f.ReadAt(head[:old], 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, err
	}
	n, err := io.ReadFull(in.body, head[old:])
	ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	all := old + n
	body := putBack(head[old:all], err, in.body)
	if err != nil && !ended || ended && total > int64(all) {
		return body, int64(all), nil // it broke off; the next attempt will tell
	}
	if ended {
		total = max(total, int64(all)) // an empty one stays 0
	}
	h, err := readHead(head[:all], total, f.p.iso)
	if err != nil {
		return nil, 0, err
	}
	limit, err := f.allowed(Seen{Head: h, Bytes: total, Done: done})
	if err != nil {
		return nil, 0, err
	}
	return body, limit, nil
}

// putBack is a body of which the beginning was read already, with the error that
// reading it ended in.
func putBack(begin []byte, err error, rest io.ReadCloser) io.ReadCloser {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return again{io.MultiReader(strings.NewReader(string(begin)), rest), rest}
	}
	return again{io.MultiReader(strings.NewReader(string(begin)), failing{err}), rest}
}

type again struct {
	io.Reader
	io.Closer
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
