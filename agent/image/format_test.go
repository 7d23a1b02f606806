package image_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/homeiac/homelab/agent/image"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/lab/wan"
)

func vmdk(description string) []byte {
	b := make([]byte, 64<<10)
	copy(b, "KDMV")
	binary.LittleEndian.PutUint32(b[4:], 1)
	binary.LittleEndian.PutUint64(b[12:], 2048)
	binary.LittleEndian.PutUint64(b[28:], 1)
	binary.LittleEndian.PutUint64(b[36:], 20)
	copy(b[512:], description)
	return b
}

// listing is a VMDK whose header gives no size, so that QEMU opens the files that its
// description names, of the first type that stands there.
func listing() []byte {
	b := vmdk("# createType=\"monolithicFlat\"\n" + strings.Replace(fmt.Sprintf(goodVMDK, "monolithicSparse"), "SPARSE \"noble.vmdk\"", "FLAT \"/etc/shadow\" 0", 1))
	binary.LittleEndian.PutUint64(b[12:], 0)
	return b
}

// aside is a VMDK with a good description, and another text where QEMU looks for the
// name of a parent.
func aside(text string) []byte {
	b := vmdk(text)
	binary.LittleEndian.PutUint64(b[28:], 40)
	copy(b[40*512:], fmt.Sprintf(goodVMDK, "monolithicSparse"))
	return b
}

const goodVMDK = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"%s\"\n\n# Extent description\nRW 2048 SPARSE \"noble.vmdk\"\n"

func gpt(at int) []byte {
	b := make([]byte, 8192)
	copy(b[at:], "EFI PART")
	binary.LittleEndian.PutUint64(b[at+32:], 99)
	return b
}

func encrypted() []byte {
	b := qcow2(0, 0)
	b[35] = 2
	return b
}

func extended(kind uint32) []byte {
	b := qcow2(0, 0)
	binary.BigEndian.PutUint32(b[100:], 104)
	binary.BigEndian.PutUint32(b[104:], 0xe2792aca)
	binary.BigEndian.PutUint32(b[108:], 5)
	binary.BigEndian.PutUint32(b[120:], kind)
	binary.BigEndian.PutUint32(b[124:], 8)
	return b
}

func TestTheFormatComesFromTheContent(t *testing.T) {
	sized := qcow2(0, 0)
	binary.BigEndian.PutUint64(sized[24:], 10<<30)
	iso := make([]byte, 64<<10)
	copy(iso[32769:], "CD001")
	for name, tc := range map[string]struct {
		content []byte
		iso     bool
		format  string // or "" and
		why     string
		virtual int64
	}{
		"qcow2":                       {content: sized, format: "qcow2", virtual: 10 << 30},
		"MBR":                         {content: raw(1 << 20), format: "raw", virtual: 1 << 20},
		"GPT":                         {content: gpt(512), format: "raw", virtual: 100 * 512},
		"GPT with large sectors":      {content: gpt(4096), format: "raw", virtual: 100 * 4096},
		"sparse VMDK":                 {content: vmdk(fmt.Sprintf(goodVMDK, "monolithicSparse")), format: "vmdk", virtual: 1 << 20},
		"streamed VMDK":               {content: vmdk(fmt.Sprintf(goodVMDK, "streamOptimized")), format: "vmdk", virtual: 1 << 20},
		"ISO":                         {content: iso, iso: true, format: "iso", virtual: 64 << 10},
		"empty":                       {why: "empty"},
		"disk as ISO":                 {content: raw(1 << 20), iso: true, why: "no ISO file"},
		"packed ISO":                  {content: zipped(iso), iso: true, why: "unpack it first"},
		"backing file":                {content: qcow2(512, 0), why: "backing file"},
		"external data":               {content: qcow2(0, 4), why: "another file"},
		"external data by its name":   {content: extended(0x44415441), why: "another file"},
		"encryption":                  {content: encrypted(), why: "encrypted"},
		"LUKS":                        {content: extended(0x0537be77), why: "encrypted"},
		"flat VMDK":                   {content: vmdk(fmt.Sprintf(goodVMDK, "monolithicFlat")), why: "other files"},
		"split VMDK":                  {content: vmdk(fmt.Sprintf(goodVMDK, "twoGbMaxExtentSparse")), why: "other files"},
		"two extents":                 {content: vmdk(fmt.Sprintf(goodVMDK, "monolithicSparse") + "RW 1 SPARSE \"/etc/shadow\"\n"), why: "names 2 files"},
		"a parent":                    {content: vmdk(strings.Replace(fmt.Sprintf(goodVMDK, "monolithicSparse"), "ffffffff", "12345678", 1)), why: "stands on another"},
		"a parent's name":             {content: vmdk(fmt.Sprintf(goodVMDK, "monolithicSparse") + "parentFileNameHint=\"/x\"\n"), why: "stands on another"},
		"a parent in a comment":       {content: vmdk(fmt.Sprintf(goodVMDK, "monolithicSparse") + "#parentFileNameHint=\"/x\"\n"), why: "stands on another"},
		"a parent elsewhere":          {content: aside("parentFileNameHint=\"/x\"\n"), why: "stands on another"},
		"a list of files":             {content: listing(), why: "other files"},
		"an extent without its words": {content: append(vmdk("")[:28], make([]byte, 4096)...), why: "one of several"},
		"descriptor":                  {content: []byte("# Disk DescriptorFile\nversion=1\n"), why: "other files"},
		"zip":                         {content: []byte("PK\x03\x04...."), why: "unpack it first"},
		"random":                      {content: bytes.Repeat([]byte("x7"), 4096), why: "neither"},
		"HTML":                        {content: []byte("\xef\xbb\xbf\n<HTML lang=en>"), why: "an HTML page, not an image"},
	} {
		h, err := image.ReadHead(tc.content, int64(len(tc.content)), tc.iso)
		switch {
		case tc.format == "" && (!errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), tc.why)):
			t.Errorf("%s: got %+v %v, want %q", name, h, err, tc.why)
		case tc.format != "" && (err != nil || h.Format != tc.format || h.VirtualBytes != tc.virtual):
			t.Errorf("%s: got %+v %v", name, h, err)
		}
	}
}

func zipped(content []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(content)
	_ = w.Close()
	return b.Bytes()
}

func zstded(content []byte) []byte {
	var b bytes.Buffer
	w, _ := zstd.NewWriter(&b)
	_, _ = w.Write(content)
	_ = w.Close()
	return b.Bytes()
}

// windowed asks for a window of that size, without needing it.
func windowed(size int) []byte {
	var b bytes.Buffer
	w, _ := zstd.NewWriter(&b, zstd.WithWindowSize(size), zstd.WithEncoderConcurrency(1))
	_, _ = w.Write(noise(2<<20, 1))
	_ = w.Flush() // now it cannot say that all of it is small
	_, _ = w.Write(noise(2<<20, 2))
	_ = w.Close()
	return b.Bytes()
}

// with packs with a program of this machine, and skips without it.
func with(t *testing.T, program string, content []byte) []byte {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skip(program + " is not here")
	}
	cmd := exec.Command(path, "-c")
	cmd.Stdin = bytes.NewReader(content)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestACompressedImageIsKeptAsPublishedAndUnpackedWhileItIsUsed(t *testing.T) {
	content := append(noise(1<<20, 1), make([]byte, 1<<20)...)
	for kind, pack := range map[string]func(*testing.T) []byte{
		"gz": func(*testing.T) []byte { return zipped(content) }, "zst": func(*testing.T) []byte { return zstded(content) },
		"xz": func(t *testing.T) []byte { return with(t, "xz", content) }, "bz2": func(t *testing.T) []byte { return with(t, "bzip2", content) },
	} {
		t.Run(kind, func(t *testing.T) {
			g, packed := newGround(t), pack(t)
			src := from(serve(t, wan.New(packed)))
			img, err := g.fetch(src)
			if err != nil {
				t.Fatal(err)
			}
			g.holds(src, packed)
			if r := img.Record; r.Compression != kind || r.Format != "raw" || !strings.HasSuffix(img.Path, ".raw."+kind) {
				t.Errorf("got %+v", r)
			}
			// What a killed agent left unpacked goes.
			stale := filepath.Join(g.to.Local, "old-0123456789ab.unpacked.raw")
			if err := os.WriteFile(stale, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			path, release, err := g.s.Importable(t.Context(), img, -1)
			if err != nil {
				t.Fatal(err)
			}
			again, releaseAgain, err := g.s.Importable(t.Context(), img, -1)
			if err != nil || again != path || !strings.HasSuffix(path, ".raw") {
				t.Fatal(path, again, err)
			}
			local := filepath.Join(g.to.Local, filepath.Base(path))
			release()
			if got, err := os.ReadFile(local); err != nil || !bytes.Equal(got, content) {
				t.Errorf("unpacked: %d bytes, %v", len(got), err)
			}
			releaseAgain()
			for _, file := range []string{local, stale} {
				if _, err := os.Stat(file); !os.IsNotExist(err) {
					t.Errorf("%s is left: %v", file, err)
				}
			}
			if c := image.List([]image.Folder{g.to}); len(c) != 1 || c[0].GetUnpackedBytes() != 2<<20 || c[0].GetVirtualBytes() != 2<<20 {
				t.Errorf("list %v", c)
			}
			if _, _, err := g.s.Importable(t.Context(), img, 1<<20); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "1048576 bytes are allowed") {
				t.Errorf("beyond what is allowed: %v", err)
			}
			if _, err := os.Stat(local); !os.IsNotExist(err) {
				t.Errorf("%s is left: %v", local, err)
			}
		})
	}
}

func TestWhatIsInACompressedFileIsJudged(t *testing.T) {
	for name, tc := range map[string]struct {
		content []byte
		why     string
	}{
		"a backing file":  {zipped(append(qcow2(512, 0), noise(1<<20, 1)...)), "backing file"},
		"no disk":         {zipped(bytes.Repeat([]byte("x7"), 1<<20)), "neither"},
		"compressed more": {zipped(zipped(noise(1<<20, 1))), "twice"},
		"nothing":         {zipped(nil), "empty"},
		"a large window":  {windowed(128 << 20), "window above the 64 MiB"},
	} {
		g := newGround(t)
		_, err := g.fetch(from(serve(t, wan.New(tc.content))))
		if !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), tc.why) {
			t.Errorf("%s: %v", name, err)
		}
		g.clean()
	}
}

func TestACompressedFileIsProvedOnceAndNothingOfItKept(t *testing.T) {
	content := append(noise(1<<20, 1), make([]byte, 1<<20)...)
	g := newGround(t)
	img, err := g.fetch(from(serve(t, wan.New(with(t, "xz", content)))))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.s.Prove(t.Context(), img, 1<<20); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "more than 1 MiB") {
		t.Errorf("a disk that is too large: %v", err)
	}
	for range 2 { // also when it was proved already
		img, err = g.s.Prove(t.Context(), img, 4<<20)
		if err != nil || img.Record.Virtual != 2<<20 || !img.Record.Proved {
			t.Errorf("got %+v, %v", img.Record, err)
		}
	}
	if c := image.List([]image.Folder{g.to}); len(c) != 1 || c[0].GetVirtualBytes() != 2<<20 {
		t.Errorf("list %v", c)
	}
	if left, _ := filepath.Glob(filepath.Join(g.to.Local, "*.unpacked.*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	packed := with(t, "xz", content)
	cut, err := newGround(t).fetch(from(serve(t, wan.New(packed[:len(packed)/2]))))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.s.Prove(t.Context(), cut, 4<<20); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "cannot be unpacked") {
		t.Errorf("a file that is cut off: %v", err)
	}
}

func TestAnISOFileLiesWhereProxmoxLooksForIt(t *testing.T) {
	content := noise(megs, 1)
	copy(content[32769:], "CD001")
	g := newGround(t)
	src := from(serve(t, wan.New(content)))
	src.Type = homelabv1.ImageType_IMAGE_TYPE_ISO
	img, err := g.fetch(src)
	if err != nil {
		t.Fatal(err)
	}
	file := "noble-" + sum(content)[:12] + ".iso"
	if img.Path != "/var/lib/vz/template/iso/"+file || img.Volume != "local:iso/"+file {
		t.Errorf("got %s, %s", img.Path, img.Volume)
	}
	if c := image.List([]image.Folder{g.to}); len(c) != 1 || c[0].GetType() != homelabv1.ImageType_IMAGE_TYPE_ISO || c[0].GetFormat() != "iso" {
		t.Errorf("list %v", c)
	}
	g.clean()
	if err := g.s.Remove(sum(content), g.to); err != nil {
		t.Fatal(err)
	}
	if _, ok := image.Find(src, g.to); ok {
		t.Error("it is still there")
	}
}

func TestARecordOfAnOlderAgentIsRead(t *testing.T) {
	content := raw(4096)
	g := newGround(t)
	if err := os.MkdirAll(g.to.Local, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(g.to.Local, "noble-"+sum(content)[:12]+".raw")
	if err := os.WriteFile(file, content, 0o644); err != nil {
		t.Fatal(err)
	}
	old := fmt.Sprintf(`{"name": "noble", "url": "http://x/noble.img", "sha256": %q, "sha512": "", "verified": true, "format": "raw", "bytes": 4096, "file": %q, "changed": "2026-01-02T03:04:05Z"}`, sum(content), filepath.Base(file))
	if err := os.WriteFile(file+".json", []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	img, ok := image.Find(&homelabv1.ImageSource{Name: "noble", Sha256: sum(content)}, g.to)
	if !ok || img.Record.Proof() != homelabv1.Verification_VERIFICATION_SPEC {
		t.Errorf("got %+v %v", img, ok)
	}
}
