package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
)

const verificationSpec = homelabv1.Verification_VERIFICATION_SPEC

// Peer is another host that has a file, or is getting it.
type Peer interface {
	// Name is the host's.
	Name() string
	// Pull gives the file with that digest from an offset on, until ctx ends. The
	// bytes may be anybody's: only the digest of the whole tells.
	Pull(ctx context.Context, want Digests, offset int64) (Pulled, error)
}

// Pulled is a file as a peer sends it. Its Read ends in io.EOF only when the peer
// has sent the file to its end.
type Pulled struct {
	io.ReadCloser
	// Bytes is the size of the whole, 0 when not known.
	Bytes int64
	// Whole is whether the peer says that it holds all of it, verified.
	Whole bool
}

// fromPeers takes the file from the peers, as long as anybody gives anything. The
// second result is whether it is there now; without it and without an error it is
// to be had elsewhere.
func (f *fetch) fromPeers(ctx context.Context) (Image, bool, error) {
	// Who may read the source need not wait for those who have nothing yet.
	patience := f.s.patience
	if f.WAN {
		patience = 0
	}
	began, wait := time.Now(), f.s.retry/8
	last := began
	for {
		progress := false
		for i, peer := range f.Peers {
			if f.out[peer.Name()] {
				continue
			}
			together := !f.alone
			img, gave, ok, err := f.fromPeer(ctx, peer)
			if ok || err != nil {
				return img, ok, err
			}
			progress = progress || gave
			if together && f.alone {
				break // from the first one on, so that the liar is found
			}
			if i == 0 && f.mayBegin(peer, began) {
				break
			}
		}
		if ctx.Err() != nil {
			return Image{}, false, ctx.Err()
		}
		if progress {
			// From now on somebody who has more is soon found, or nobody is: then it is
			// for the controller to say who reads on.
			last, patience = time.Now(), min(patience, f.s.lull)
			continue
		}
		left := slices.ContainsFunc(f.Peers, func(p Peer) bool { return !f.out[p.Name()] })
		if !left || time.Since(last) >= patience {
			return Image{}, false, nil
		}
		// Whoever is to send first has usually just begun.
		if !pause.For(ctx, wait) {
			return Image{}, false, ctx.Err()
		}
		wait = min(2*wait, f.s.retry)
	}
}

// mayBegin says whether a peer has nothing yet because it is about to begin: all hosts
// of a run begin at once. The first is not given up for the others before it had a
// moment, else they would all take the file from the one that was the quickest.
func (f *fetch) mayBegin(peer Peer, began time.Time) bool {
	return !f.WAN && errors.Is(f.why.of(peer.Name()), rpc.ErrNotFound) && time.Since(began) < f.s.patience/5
}

// fromPeer takes from one peer what it gives, and judges the file when that was
// the last of it.
func (f *fetch) fromPeer(ctx context.Context, peer Peer) (img Image, gave, ok bool, err error) {
	if f.alone {
		if err := f.p.restart(); err != nil {
			return Image{}, false, false, err
		}
	}
	before, _ := f.p.size()
	whole, err := f.pull(ctx, peer)
	after, _ := f.p.size()
	gave = after > before
	if err != nil {
		var checked errChecked
		if errors.As(err, &checked) {
			return Image{}, gave, false, err
		}
		if ctx.Err() != nil {
			return Image{}, gave, false, ctx.Err()
		}
		f.why.add(peer.Name(), err)
		if errors.Is(err, rpc.ErrRefused) {
			// Its beginning was no image, or it was too long.
			f.out[peer.Name()] = true
			return Image{}, false, false, f.p.restart()
		}
		// With one source at a time what it gave is of no use to the next.
		return Image{}, gave && !f.alone, false, nil
	}
	f.url = f.Source.GetUrl()
	img, differs, err := f.judge()
	if err != nil {
		return Image{}, gave, false, err
	}
	if differs == "" {
		return img, gave, true, nil
	}
	return Image{}, true, false, f.blame(peer.Name(), whole, f.p.digests())
}

// pull asks a peer for what is missing. Whole is whether it says that it has all.
func (f *fetch) pull(ctx context.Context, peer Peer) (whole bool, err error) {
	done, total := f.p.size()
	if total > 0 && done == total {
		return false, nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watched{ctx: ctx, cancel: cancel, limit: f.s.stall}
	w.start()
	got, err := peer.Pull(ctx, f.p.want, done)
	w.timer.Stop()
	if err != nil {
		if c := context.Cause(ctx); c != nil {
			err = c
		}
		cancel(nil)
		return false, err
	}
	w.body = got
	defer w.Close()
	if total > 0 && got.Bytes > 0 && got.Bytes != total && done > 0 {
		return false, rpc.Errorf(rpc.ErrUnavailable, "it says that the file has %d bytes, and it has %d", got.Bytes, total)
	}
	f.p.pieces++
	in := &incoming{body: w, from: done, total: got.Bytes, goesOn: func() bool { return false }}
	return got.Whole, f.take(ctx, in, peer.Name())
}

// blame drops a file that was not the one, names who sent it, and takes it from one
// source at a time when there were several.
func (f *fetch) blame(last string, whole bool, got Digests) error {
	from := f.p.from
	if err := f.p.restart(); err != nil {
		return err
	}
	sum, should := got.SHA256, f.p.want.SHA256
	kind := "SHA-256"
	if should == "" || sum == should {
		kind, sum, should = "SHA-512", got.SHA512, f.p.want.SHA512
	}
	if len(from) > 1 {
		f.alone = true
		err := rpc.Errorf(rpc.ErrUnavailable, "what came from several was not the image: %s %s, should be %s", kind, sum, should)
		f.why.add("together", err)
		f.wrong("", fmt.Sprintf("%s together sent bytes that are not the image's: %s %s, should be %s; it is taken from one at a time now", list(from), kind, sum, should))
		return nil
	}
	text := fmt.Sprintf("%s sent bytes that are not the image's: %s %s, should be %s", last, kind, sum, should)
	f.out[last] = true
	f.why.add(last, rpc.Errorf(rpc.ErrRefused, "it sent bytes that are not the image's: %s %s, should be %s", kind, sum, should))
	if whole {
		f.wrong(last, text)
	} else {
		// It passed on what it got, and will find out by itself.
		f.wrong("", text+"; it passed on what it was getting itself")
	}
	return nil
}

func (f *fetch) wrong(peer, text string) {
	if f.Wrong != nil {
		f.Wrong(peer, text)
	}
}

// list is "a, b and c".
func list(names []string) string {
	out := ""
	for i, n := range names {
		switch {
		case i == 0:
		case i == len(names)-1:
			out += " and "
		default:
			out += ", "
		}
		out += n
	}
	return out
}
