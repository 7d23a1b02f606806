package cli

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/rpc"
)

// rootFiles are the root's certificate and key.
type rootFiles struct{ cert, key string }

// next are the files of a root that is to take the place of this one.
func (f rootFiles) next() rootFiles { return rootFiles{marked(f.cert, "next"), marked(f.key, "next")} }

// kept are the files that a root has when another took its place.
func (f rootFiles) kept(root *x509.Certificate) rootFiles {
	return rootFiles{marked(f.cert, rpc.RootHash(root)[:8]), marked(f.key, rpc.RootHash(root)[:8])}
}

// marked is a file's name with a word before its ending.
func marked(file, word string) string {
	ext := filepath.Ext(file)
	return strings.TrimSuffix(file, ext) + "-" + word + ext
}

// swap gives the new root's files the names of the old one's, which keep theirs with a
// part of its hash. The certificate goes last: endSwap sees by it that one was cut off.
func (r *rotation) swap(old *x509.Certificate) ([]string, error) {
	kept, files := r.files.kept(old), []string{}
	for from, to := range map[string]string{r.files.cert: kept.cert, r.files.key: kept.key} {
		data, err := os.ReadFile(from)
		if errors.Is(err, os.ErrNotExist) {
			continue // the key, if it is lost
		}
		if err == nil {
			err = durable.Write(to, data)
		}
		if err != nil {
			return nil, err
		}
		files = append(files, to)
	}
	slices.Sort(files)
	if err := os.Rename(r.files.next().key, r.files.key); err != nil {
		return nil, err
	}
	return files, os.Rename(r.files.next().cert, r.files.cert)
}

// endSwap ends a swap that was cut off, and removes a key that was made without its
// certificate: nothing was signed with it.
func (r *rotation) endSwap() error {
	next := r.files.next()
	cert, err := exists(next.cert)
	if err != nil {
		return err
	}
	key, err := exists(next.key)
	switch {
	case err != nil || cert == key:
		return err
	case cert:
		return os.Rename(next.cert, r.files.cert)
	}
	return os.Remove(next.key)
}

func readCert(file string) (*x509.Certificate, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	cert, err := parseCert(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return cert, nil
}

func parseCert(data []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(data)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("not one certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

func sameFile(one, two string) (bool, error) {
	a, err := os.Stat(one)
	if err != nil {
		return false, err
	}
	b, err := os.Stat(two)
	if errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("the root's certificate %s is not there; say where with --root-cert", two)
	}
	return err == nil && os.SameFile(a, b), err
}
