package image

import (
	"cmp"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"hash"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/durable"
)

// Record is what is remembered of an image, in a file in the folder for images. It
// is there before its file is, so that no file is without one; a record whose file
// is not there, or has another size, says nothing.
type Record struct {
	Name string `json:"name"`
	URL  string `json:"url"` // without user, password and query
	// Query stands for the query, which URL is without; empty when there was none. Two
	// files may differ in nothing else.
	Query  string `json:"query,omitempty"`
	SHA256 string `json:"sha256"`
	SHA512 string `json:"sha512,omitempty"` // only when it was asked for
	// Verified is whether it was compared with a checksum; Verification with which:
	// spec, list or no. Agents before templates wrote only the former.
	Verified     bool   `json:"verified"`
	Verification string `json:"verification,omitempty"`
	Type         string `json:"type,omitempty"` // iso; empty is a disk image
	Format       string `json:"format"`         // of what is in it
	Compression  string `json:"compression,omitempty"`
	Bytes        int64  `json:"bytes"`
	Virtual      int64  `json:"virtual,omitempty"`  // size of the disk in it
	Unpacked     int64  `json:"unpacked,omitempty"` // size of what is in it, when it is compressed
	// Proved is whether a compressed file was unpacked to its end, here.
	Proved bool `json:"proved,omitempty"`
	// File is its name, in the folder for images; an ISO file's is in the storage's
	// own folder for them.
	File    string    `json:"file"`
	Changed time.Time `json:"changed"` // the file's modification time when it was hashed
}

const (
	recordSuffix = ".json"
	typeISO      = "iso"
)

// Proof is what the digest was compared with.
func (r Record) Proof() homelabv1.Verification {
	switch {
	case r.Verification == "list":
		return homelabv1.Verification_VERIFICATION_LIST
	case r.Verification == "no", !r.Verified:
		return homelabv1.Verification_VERIFICATION_NO
	}
	return homelabv1.Verification_VERIFICATION_SPEC
}

func proofText(v homelabv1.Verification) string {
	switch v {
	case homelabv1.Verification_VERIFICATION_SPEC:
		return "spec"
	case homelabv1.Verification_VERIFICATION_LIST:
		return "list"
	}
	return "no"
}

// unpacked notes how large the file got when it was unpacked to its end.
func (r *Record) unpacked(size int64) {
	r.Unpacked, r.Proved = size, true
	if r.Format == formatRaw {
		r.Virtual = size
	}
}

func (r Record) write(dir string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return durable.Write(filepath.Join(dir, r.File+recordSuffix), data)
}

// Copy is the record as the protos have it.
func (r Record) Copy(storage string) *homelabv1.ImageCopy {
	c := &homelabv1.ImageCopy{
		Name: r.Name, Storage: storage, Sha256: r.SHA256, Sha512: r.SHA512, Bytes: r.Bytes, Verified: r.Verified, Url: r.URL,
		Format: r.Format, Compression: r.Compression, Verification: r.Proof(), Type: homelabv1.ImageType_IMAGE_TYPE_DISK,
		VirtualBytes: r.Virtual, UnpackedBytes: r.Unpacked,
	}
	if r.Query != "" {
		c.Url = "" // nobody else could tell by it which file this is
	}
	if r.Type == typeISO {
		c.Type = homelabv1.ImageType_IMAGE_TYPE_ISO
	}
	return c
}

// image is the file of a record.
func (r Record) image(in Folder) Image {
	dir := in.files(r.Type == typeISO)
	img := Image{Path: filepath.Join(dir.Host, r.File), Record: r, local: filepath.Join(dir.Local, r.File), in: in}
	if r.Type == typeISO {
		img.Volume = in.Storage + ":iso/" + r.File
	}
	return img
}

// records gives the records of whole files in a folder, by name.
func records(f Folder) []Record {
	entries, err := os.ReadDir(f.Local)
	if err != nil {
		return nil
	}
	var out []Record
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), recordSuffix) || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(f.Local, e.Name()))
		var r Record
		if err != nil || json.Unmarshal(data, &r) != nil || r.File != strings.TrimSuffix(e.Name(), recordSuffix) {
			continue
		}
		st, err := os.Stat(r.image(f).local)
		if err != nil || st.Size() != r.Bytes {
			continue
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Record) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.File, b.File)) })
	return out
}

// List tells the images in the folders. It reads no image.
func List(folders []Folder) []*homelabv1.ImageCopy {
	var out []*homelabv1.ImageCopy
	for _, f := range folders {
		for _, r := range records(f) {
			out = append(out, r.Copy(f.Storage))
		}
	}
	return out
}

// Find gives the image if the folder holds it as the source wants it. With a
// SHA-256 only that content counts, under whatever name it was fetched; without a
// checksum, what was fetched first from one of its addresses. A file that was touched since it was hashed is hashed again.
func Find(src *homelabv1.ImageSource, in Folder) (Image, bool) {
	for _, r := range records(in) {
		if r.answers(src, in) && r.intact(in) {
			return r.image(in), true
		}
	}
	return Image{}, false
}

// findDigest gives a file with that content, whatever its name is.
func findDigest(want Digests, folders []Folder) (Image, bool) {
	for _, f := range folders {
		for _, r := range records(f) {
			same := want.SHA256 != "" && r.SHA256 == want.SHA256 || want.SHA256 == "" && want.SHA512 != "" && r.SHA512 == want.SHA512
			if same && r.intact(f) {
				return r.image(f), true
			}
		}
	}
	return Image{}, false
}

func isISO(src *homelabv1.ImageSource) bool {
	return src.GetType() == homelabv1.ImageType_IMAGE_TYPE_ISO
}

func (r Record) answers(src *homelabv1.ImageSource, in Folder) bool {
	switch {
	case (r.Type == typeISO) != isISO(src):
		return false
	case src.GetSha256() != "":
		return strings.EqualFold(r.SHA256, src.GetSha256())
	case r.Name != src.GetName():
		return false
	case src.GetSha512() != "":
		return strings.EqualFold(r.sha512(in), src.GetSha512())
	}
	if src.GetChecksumsUrl() != "" && !r.Verified {
		return false
	}
	for _, address := range addresses(src) {
		if r.URL == Masked(address) && r.Query == queryOf(address) {
			return true
		}
	}
	return false
}

// addresses are those that a source has, in order.
func addresses(src *homelabv1.ImageSource) []string {
	return append([]string{src.GetUrl()}, src.GetMirrors()...)
}

// queryOf stands for the query of an address, which may hold a signature; empty when
// it has none.
func queryOf(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.RawQuery == "" {
		return ""
	}
	return hashText(u.RawQuery)
}

// sha512 is computed now when nobody asked for it before.
func (r *Record) sha512(in Folder) string {
	if r.SHA512 != "" {
		return r.SHA512
	}
	if sum, err := hashFile(r.image(in).local, sha512.New()); err == nil {
		r.SHA512 = sum
		_ = r.write(in.Local) // else it is computed again next time
	}
	return r.SHA512
}

func (r Record) intact(in Folder) bool {
	path := r.image(in).local
	st, err := os.Stat(path)
	if err != nil {
		return false
	}
	if st.ModTime().Equal(r.Changed) {
		return true
	}
	if sum, err := hashFile(path, sha256.New()); err != nil || sum != r.SHA256 {
		return false
	}
	r.Changed = st.ModTime()
	_ = r.write(in.Local) // else it is hashed again next time
	return true
}

func hashFile(path string, h hash.Hash) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, make([]byte, burst)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
