// Package mark makes, reads and verifies the mark that a guest of ours carries
// in its description: hl1:<fleet>:<guest>:<generation>:<hmac>. The mark ties
// guest, VMID, uuid and generation together with the fleet's key, so that a
// clone (it copies the description but gets another uuid), a reused VMID or a
// mark typed by hand does not verify.
//
// It is pure. Where the key is kept, and what may be done to a VM that is ours
// or is not, it leaves to others.
package mark

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
)

// KeySize is the length of a fleet key in bytes.
const KeySize = 32

const (
	scheme  = "hl1"
	macSize = 16 // bytes of the HMAC-SHA-256 that are kept
)

// Key is the fleet's key. It prints as ***, also in logs.
type Key struct{ bytes []byte }

// String hides the key.
func (Key) String() string { return "***" }

// GoString hides the key from %#v.
func (Key) GoString() string { return "mark.Key(***)" }

// Format hides the key from every other verb: %x would print the bytes.
func (Key) Format(f fmt.State, _ rune) { fmt.Fprint(f, "***") }

// LogValue hides the key from slog.
func (Key) LogValue() slog.Value { return slog.StringValue("***") }

// ParseKey reads a fleet key as its file holds it: 32 bytes in standard base64,
// with or without white space around.
func ParseKey(text []byte) (Key, error) {
	raw, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil {
		return Key{}, errors.New("fleet key: not standard base64") // the cause would quote the key
	}
	return NewKey(raw)
}

// NewKey makes a key of its 32 bytes.
func NewKey(raw []byte) (Key, error) {
	if len(raw) != KeySize {
		return Key{}, fmt.Errorf("fleet key: %d bytes, want %d", len(raw), KeySize)
	}
	return Key{bytes: bytes.Clone(raw)}, nil
}

// Derive is a key of 32 bytes for another purpose, which tells nothing of this one.
func (k Key) Derive(purpose string) []byte {
	h := hmac.New(sha256.New, k.bytes)
	h.Write([]byte("derive " + purpose))
	return h.Sum(nil)
}

// Mark is what a mark's text says. It proves nothing before Verify.
type Mark struct {
	Fleet      string
	Guest      string
	Generation int32
	mac        string
}

// Make is the mark of a guest. The uuid is the VM's smbios1 uuid; its case does
// not matter.
func Make(key Key, fleet, guest string, vmid int32, uuid string, generation int32) string {
	return fmt.Sprintf("%s:%s:%s:%d:%s", scheme, fleet, guest, generation, sum(key, guest, vmid, uuid, generation))
}

// Parse reads a mark's text. The error says what is odd about it.
func Parse(text string) (Mark, error) {
	fields := strings.Split(strings.TrimSpace(text), ":")
	if fields[0] != scheme {
		return Mark{}, errors.New("not a mark of ours")
	}
	if len(fields) != 5 {
		return Mark{}, fmt.Errorf("mark with %d fields, want 5", len(fields))
	}
	generation, err := strconv.ParseInt(fields[3], 10, 32)
	if err != nil || generation < 0 || strconv.FormatInt(generation, 10) != fields[3] {
		return Mark{}, fmt.Errorf("mark with generation %q", fields[3])
	}
	if fields[1] == "" || fields[2] == "" {
		return Mark{}, errors.New("mark without fleet or guest")
	}
	if raw, err := hex.DecodeString(fields[4]); err != nil || len(raw) != macSize {
		return Mark{}, errors.New("mark cut short")
	}
	return Mark{Fleet: fields[1], Guest: fields[2], Generation: int32(generation), mac: strings.ToLower(fields[4])}, nil
}

// Verify tells whether text is the mark that this fleet gave to the guest with
// this VMID and uuid, and with which generation. The error says what does not
// agree, in words for people.
func Verify(key Key, fleet, guest string, vmid int32, uuid, text string) (generation int32, err error) {
	if text == "" {
		return 0, errors.New("it has no mark")
	}
	m, err := Parse(text)
	if err != nil {
		return 0, err
	}
	if m.Fleet != fleet {
		return 0, fmt.Errorf("its mark is of fleet %s", m.Fleet)
	}
	if m.Guest != guest {
		return 0, fmt.Errorf("its mark is of guest %s", m.Guest)
	}
	if len(key.bytes) != KeySize {
		return 0, errors.New("its mark cannot be verified without the fleet key")
	}
	if uuid == "" || !hmac.Equal([]byte(m.mac), []byte(sum(key, guest, vmid, uuid, m.Generation))) {
		return 0, errors.New("its mark does not agree with its VMID and uuid (a clone, or made with another fleet key)")
	}
	return m.Generation, nil
}

func sum(key Key, guest string, vmid int32, uuid string, generation int32) string {
	h := hmac.New(sha256.New, key.bytes)
	fmt.Fprintf(h, "%s\x00%d\x00%s\x00%d", guest, vmid, strings.ToLower(uuid), generation)
	return hex.EncodeToString(h.Sum(nil)[:macSize])
}
