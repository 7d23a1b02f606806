package disk

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// CloudInitSize is the size in bytes of a cloud-init volume's disk, as Proxmox
// makes it.
const CloudInitSize = 4 << 20

const cloudInitHeader = "hl-lab cloud-init volume v1\n"

// ErrNoCloudInit says that a volume holds no cloud-init document: it was
// allocated and no ISO was generated yet.
var ErrNoCloudInit = errors.New("no cloud-init document on the volume")

// CloudInit is what a cloud-init volume says to a guest. It stands in for the
// ISO 9660 image with its four files.
type CloudInit struct {
	// InstanceID is the SHA-1, in hexadecimal, of user-data and network-config;
	// cloud-init runs everything anew when it changes.
	InstanceID    string `json:"instance-id"`
	UserData      string `json:"user-data"`
	NetworkConfig string `json:"network-config"` // version 1 or 2, YAML
	MetaData      string `json:"meta-data"`
	VendorData    string `json:"vendor-data"`
}

// WriteCloudInit replaces the contents of the volume at path, which must exist.
func WriteCloudInit(path string, c CloudInit) error {
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return err
	}
	// Written in place: a running guest keeps the file open as its CD-ROM.
	return os.WriteFile(path, append([]byte(cloudInitHeader), data...), 0o640)
}

// ReadCloudInit reads what WriteCloudInit wrote. A volume without it is
// ErrNoCloudInit.
func ReadCloudInit(path string) (CloudInit, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return CloudInit{}, err
	}
	body, ok := bytes.CutPrefix(data, []byte(cloudInitHeader))
	if !ok {
		return CloudInit{}, fmt.Errorf("%s: %w", path, ErrNoCloudInit)
	}
	var c CloudInit
	if err := json.Unmarshal(body, &c); err != nil {
		return CloudInit{}, fmt.Errorf("read cloud-init volume %s: %w", path, err)
	}
	return c, nil
}
