package image

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/durable"
)

// Record is what is remembered of an image, in a file beside it.
type Record struct {
	Name     string    `json:"name"`
	URL      string    `json:"url"` // without user, password and query
	SHA256   string    `json:"sha256"`
	SHA512   string    `json:"sha512"`
	Verified bool      `json:"verified"` // compared with a checksum of the Spec
	Format   string    `json:"format"`
	Bytes    int64     `json:"bytes"`
	File     string    `json:"file"`    // in the same folder
	Changed  time.Time `json:"changed"` // the file's modification time when it was hashed
}

const recordSuffix = ".json"

func (r Record) write(dir string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return durable.Write(filepath.Join(dir, r.File+recordSuffix), data)
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
		st, err := os.Stat(filepath.Join(f.Local, r.File))
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
			out = append(out, &homelabv1.ImageCopy{
				Name: r.Name, Storage: f.Storage, Sha256: r.SHA256, Bytes: r.Bytes,
				Verified: r.Verified, Url: r.URL, Format: r.Format,
			})
		}
	}
	return out
}

// Find gives the image if the folder holds it as the source wants it. With a
// checksum only that content counts; without one, what was fetched first from
// that address. A file that was touched since it was hashed is hashed again.
func Find(src *homelabv1.ImageSource, in Folder) (Image, bool) {
	for _, r := range records(in) {
		if !r.answers(src) || !r.intact(in) {
			continue
		}
		return Image{Path: filepath.Join(in.Host, r.File), Record: r}, true
	}
	return Image{}, false
}

func (r Record) answers(src *homelabv1.ImageSource) bool {
	switch {
	case r.Name != src.GetName():
		return false
	case src.GetSha256() != "":
		return strings.EqualFold(r.SHA256, src.GetSha256())
	case src.GetSha512() != "":
		return strings.EqualFold(r.SHA512, src.GetSha512())
	case src.GetChecksumsUrl() != "":
		return r.URL == Masked(src.GetUrl()) && r.Verified
	}
	return r.URL == Masked(src.GetUrl())
}

func (r Record) intact(in Folder) bool {
	path := filepath.Join(in.Local, r.File)
	st, err := os.Stat(path)
	if err != nil {
		return false
	}
	if st.ModTime().Equal(r.Changed) {
		return true
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil || hex.EncodeToString(h.Sum(nil)) != r.SHA256 {
		return false
	}
	r.Changed = st.ModTime()
	_ = r.write(in.Local) // else it is hashed again next time
	return true
}
