package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// Image is what an image's name stands for since it was first fetched.
type Image struct {
	// Name is the image's name in the Spec, and Source stands for its entry there
	// then (plan.SourceOf).
	Name   string `json:"name"`
	Source string `json:"source"`
	// SHA256 and SHA512 are its digests in hex; SHA512 may be empty.
	SHA256 string `json:"sha256"`
	SHA512 string `json:"sha512,omitempty"`
	// Bytes is its size as published, VirtualBytes that of the disk in it, and
	// UnpackedBytes that of what is in a compressed file; 0 is not known.
	Bytes         int64 `json:"bytes,omitempty"`
	VirtualBytes  int64 `json:"virtualBytes,omitempty"`
	UnpackedBytes int64 `json:"unpackedBytes,omitempty"`
	// Verification is what the digest was compared with, and At when.
	Verification homelabv1.Verification `json:"verification"`
	At           time.Time              `json:"at"`
}

// Images are all remembered images by name.
func (s *Store) Images(ctx context.Context) (map[string]Image, error) {
	values, _, err := s.list(ctx, "images/")
	if err != nil {
		return nil, err
	}
	images := make(map[string]Image, len(values))
	for _, v := range values {
		var i Image
		if err := json.Unmarshal(v.data, &i); err != nil {
			return nil, fmt.Errorf("store: %s: %w", v.key, err)
		}
		images[strings.TrimPrefix(v.key, "images/")] = i
	}
	return images, nil
}

// PutImage remembers what an image's name stands for from now on.
func (s *Store) PutImage(ctx context.Context, lock *Lock, i Image) error {
	data, err := json.Marshal(i)
	if err != nil {
		return fmt.Errorf("store: image %s: %w", i.Name, err)
	}
	return s.putHeld(ctx, lock, "images/"+i.Name, data)
}
