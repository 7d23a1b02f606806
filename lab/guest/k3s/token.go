package k3s

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
)

// secret is a token taken apart: K10HASH::USER:PASS, or the password alone.
type secret struct {
	hash string // of the server CA's PEM file; "" in the short form
	user string
	pass string
}

var errTokenFormat = errors.New("failed to normalize server token; must be in format K10<CA-HASH>::<USERNAME>:<PASSWORD> or <PASSWORD>")

func parseToken(s string) (secret, error) {
	rest, long := strings.CutPrefix(s, "K10")
	if !long || !strings.Contains(s, "::") {
		if s == "" || strings.Contains(s, "::") {
			return secret{}, errTokenFormat
		}
		return secret{user: "", pass: s}, nil
	}
	hash, cred, _ := strings.Cut(rest, "::")
	user, pass, ok := strings.Cut(cred, ":")
	if len(hash) != 64 || !ok || pass == "" {
		return secret{}, errTokenFormat
	}
	return secret{hash: hash, user: user, pass: pass}, nil
}

func hashCA(pem []byte) string {
	h := sha256.Sum256(pem)
	return hex.EncodeToString(h[:])
}

func formatToken(ca []byte, user, pass string) string {
	return "K10" + hashCA(ca) + "::" + user + ":" + pass
}

func randomHex(bytes int) (string, error) {
	b := make([]byte, bytes)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	return hex.EncodeToString(b), nil
}
