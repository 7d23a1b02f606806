package rpc

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
)

const (
	// tokenPrefix lets people and scanners of shell histories see what it is.
	tokenPrefix = "hl1_"
	secretBytes = 20
	sumBytes    = 4
	// maxToken bounds what is read as a token, in bytes.
	maxToken = 1024
)

// Token lets one process enrol, once: it says for which name, and by the root's hash
// whom its secret may be shown to. Its text is one word. Printing a Token shows no
// secret.
type Token struct {
	Identity
	// Root is the SHA-256 of the root's certificate in hex, see RootHash.
	Root string
	// Secret is known to the token's holder alone; others keep SecretHash.
	Secret []byte
}

// NewToken makes a token with a secret of 160 bits.
func NewToken(id Identity, root string) (Token, error) {
	t := Token{Identity: id, Root: root, Secret: make([]byte, secretBytes)}
	_, _ = rand.Read(t.Secret) // does not fail since Go 1.24
	return t, t.check()
}

func (t Token) check() error {
	if err := t.Check(); err != nil {
		return err
	}
	if sum, err := hex.DecodeString(t.Root); err != nil || len(sum) != sha256.Size {
		return Errorf(ErrInvalid, "the token holds no hash of a root")
	}
	if len(t.Secret) != secretBytes {
		return Errorf(ErrInvalid, "the token's secret has %d bytes instead of %d", len(t.Secret), secretBytes)
	}
	return nil
}

// SecretHash is what a controller keeps of a secret. It is random, so nothing slower
// is needed.
func SecretHash(secret []byte) string {
	sum := sha256.Sum256(secret)
	return hex.EncodeToString(sum[:])
}

// TokenID names the token with that SecretHash, for people and logs.
func TokenID(secretHash string) string { return secretHash[:min(12, len(secretHash))] }

// String names the token without its secret.
func (t Token) String() string { return "token " + TokenID(SecretHash(t.Secret)) }

// GoString is String: %#v shows no secret either.
func (t Token) GoString() string { return t.String() }

// Text is the token as it is given to people: secret.
func (t Token) Text() string {
	var b bytes.Buffer
	for _, part := range []string{t.Fleet, t.Role, t.Name} {
		b.WriteByte(byte(len(part))) // 63 at most
		b.WriteString(part)
	}
	root, _ := hex.DecodeString(t.Root) // was checked
	b.Write(root)
	b.Write(t.Secret)
	b.Write(tokenSum(b.Bytes()))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b.Bytes())
}

// tokenSum finds a token that was not pasted whole, before anybody is asked.
func tokenSum(data []byte) []byte {
	sum := sha256.Sum256(data)
	return sum[:sumBytes]
}

// ParseToken reads a token's text. Errors are ErrInvalid and do not quote it.
func ParseToken(text string) (Token, error) {
	bad := func(why string) (Token, error) {
		return Token{}, Errorf(ErrInvalid, "this is no token (%s); paste the whole line that hlctl token create has printed", why)
	}
	text = strings.TrimSpace(text)
	word, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok || len(text) > maxToken {
		return bad("it does not begin with " + tokenPrefix)
	}
	data, err := base64.RawURLEncoding.Strict().DecodeString(word)
	// Ends of lines in between are nothing to the decoder: the token would have many texts.
	if err != nil || len(data) < sumBytes || strings.ContainsAny(word, "\r\n") {
		return bad("it holds other characters")
	}
	data, sum := data[:len(data)-sumBytes], data[len(data)-sumBytes:]
	if !bytes.Equal(sum, tokenSum(data)) {
		return bad("a part is missing or wrong")
	}
	var t Token
	for _, part := range []*string{&t.Fleet, &t.Role, &t.Name} {
		if len(data) == 0 || len(data) < 1+int(data[0]) {
			return bad("it ends too early")
		}
		n := 1 + int(data[0])
		*part, data = string(data[1:n]), data[n:]
	}
	if len(data) != sha256.Size+secretBytes {
		return bad("its length is wrong")
	}
	t.Root, t.Secret = hex.EncodeToString(data[:sha256.Size]), data[sha256.Size:]
	if err := t.check(); err != nil {
		return Token{}, fmt.Errorf("token: %w", err)
	}
	return t, nil
}
