package image

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/url"
	"path"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// Digests is what is known of a file's content; empty strings say nothing. They
// are in lower-case hex.
type Digests struct {
	SHA256, SHA512 string
}

// Known is whether there is one.
func (d Digests) Known() bool { return d.SHA256 != "" || d.SHA512 != "" }

// String is the digest as people read it.
func (d Digests) String() string {
	if d.SHA256 == "" {
		return "SHA-512 " + d.SHA512
	}
	return "SHA-256 " + d.SHA256
}

// differs says how what was got is not this, empty when it is.
func (d Digests) differs(got Digests) string {
	switch {
	case d.SHA256 != "" && d.SHA256 != got.SHA256:
		return fmt.Sprintf("its SHA-256 is %s and should be %s", got.SHA256, d.SHA256)
	case d.SHA512 != "" && d.SHA512 != got.SHA512:
		return fmt.Sprintf("its SHA-512 is %s and should be %s", got.SHA512, d.SHA512)
	}
	return ""
}

// digestsOf are those that a source gives.
func digestsOf(src *homelabv1.ImageSource) (Digests, error) {
	d := Digests{SHA256: strings.ToLower(src.GetSha256()), SHA512: strings.ToLower(src.GetSha512())}
	return d, d.check()
}

func (d Digests) check() error {
	if !hexOf(d.SHA256, 64) || !hexOf(d.SHA512, 128) {
		return rpc.Errorf(rpc.ErrInvalid, "a digest is no SHA-256 or SHA-512 in hex")
	}
	return nil
}

// hexOf says whether s is empty or that many hex digits in lower case.
func hexOf(s string, digits int) bool {
	return s == "" || len(s) == digits && strings.Trim(s, "0123456789abcdef") == ""
}

// maxList bounds a checksum list, in bytes.
const maxList = 1 << 20

// Resolve reads the list of checksums of a source and tells the digest that the
// file has there; neither without a list. The file's name is that in the source's
// own address, for its mirrors too.
func (s *Store) Resolve(ctx context.Context, src *homelabv1.ImageSource) (Digests, error) {
	if src.GetChecksumsUrl() == "" {
		return Digests{}, nil
	}
	u, err := url.Parse(src.GetUrl())
	if err != nil {
		return Digests{}, rpc.Errorf(rpc.ErrInvalid, "image %s: its address does not parse", src.GetName())
	}
	body, _, err := s.Open(ctx, src.GetChecksumsUrl())
	if err != nil {
		return Digests{}, fmt.Errorf("checksums of image %s: %w", src.GetName(), err)
	}
	defer body.Close()
	listed, err := fromList(io.LimitReader(body, maxList), path.Base(u.Path))
	if err != nil {
		return Digests{}, fmt.Errorf("checksums of image %s (%s): %w", src.GetName(), Masked(src.GetChecksumsUrl()), err)
	}
	return listed, nil
}

// fromList finds a file in a list of "DIGEST  NAME" or "DIGEST *NAME" lines, or
// of BSD's "SHA256 (NAME) = DIGEST" (as Fedora has it).
func fromList(r io.Reader, name string) (Digests, error) {
	var e Digests
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		digest, file, ok := strings.Cut(line, " ")
		file = strings.TrimPrefix(strings.TrimSpace(file), "*")
		if before, after, bsd := strings.Cut(line, ") = "); bsd {
			_, file, ok = strings.Cut(before, " (")
			digest = after
		}
		if !ok || path.Base(file) != name || strings.Trim(strings.ToLower(digest), "0123456789abcdef") != "" {
			continue
		}
		switch len(digest) {
		case 64:
			e.SHA256 = strings.ToLower(digest)
		case 128:
			e.SHA512 = strings.ToLower(digest)
		}
	}
	if err := lines.Err(); err != nil {
		return e, err
	}
	if !e.Known() {
		return e, rpc.Errorf(rpc.ErrRefused, "the list does not name %s", name)
	}
	return e, nil
}
