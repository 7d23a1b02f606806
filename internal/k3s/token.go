package k3s

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// A Token lets a guest join. Only a full one (K10…) names the cluster's CA.
type Token struct {
	CAHash   string // 64 hexadecimal digits, "" for a short token
	User     string // server or node, "" for a short or bootstrap token
	Password Secret
}

// ParseToken reads a full token (K10<hash>::<user>:<password>), a bootstrap
// token (K10<hash>::<id>.<secret>) or a short one. Its errors never hold any of
// the token.
func ParseToken(s Secret) (Token, error) {
	text := strings.TrimSpace(s.Reveal())
	if text == "" {
		return Token{}, errors.New("the token is empty")
	}
	if strings.ContainsAny(text, " \t\r\n") {
		return Token{}, errors.New("the token holds white space")
	}
	rest, full := strings.CutPrefix(text, "K10")
	hash, credentials, divided := strings.Cut(rest, "::")
	if !full || !divided {
		if divided {
			return Token{}, errors.New("the token has :: but does not begin with K10")
		}
		return Token{Password: NewSecret(text)}, nil
	}
	if b, err := hex.DecodeString(hash); err != nil || len(b) != sha256.Size {
		return Token{}, errors.New("the token's CA hash is not 64 hexadecimal digits")
	}
	user, password, named := strings.Cut(credentials, ":")
	if !named {
		user, password = "", credentials
	}
	if password == "" {
		return Token{}, errors.New("the token's password is empty")
	}
	return Token{CAHash: strings.ToLower(hash), User: user, Password: NewSecret(password)}, nil
}

// Full is the token as it is written into a file.
func (t Token) Full() Secret {
	switch {
	case t.CAHash == "":
		return t.Password
	case t.User == "":
		return NewSecret("K10" + t.CAHash + "::" + t.Password.Reveal())
	}
	return NewSecret("K10" + t.CAHash + "::" + t.User + ":" + t.Password.Reveal())
}

// CAHash is what a token says of a cluster: the SHA-256 of the CA file that
// /cacerts serves, as it is, in hexadecimal.
func CAHash(cacerts []byte) string {
	sum := sha256.Sum256(cacerts)
	return hex.EncodeToString(sum[:])
}

// CheckCA compares the token's CA hash with a CA file. A short token names no
// CA and is an error: with it a guest would believe anyone.
func (t Token) CheckCA(cacerts []byte) error {
	if t.CAHash == "" {
		return errors.New("a short token does not name the cluster's CA")
	}
	if got := CAHash(cacerts); got != t.CAHash {
		return fmt.Errorf("the CA of this server is %s…, the token is for %s…", got[:12], t.CAHash[:12])
	}
	return nil
}
