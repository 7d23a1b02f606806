package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homeiac/homelab/internal/rpc"
)

const (
	tokensPrefix = "tokens/"
	issuedPrefix = "issued/"
)

// Token is what is remembered of a token for enrolment. Its secret is not.
type Token struct {
	// ID names it, and Hash is that of its secret.
	ID   string `json:"id"`
	Hash string `json:"hash"`
	// Name, Role and Addresses are those that the certificate gets.
	Name      string   `json:"name"`
	Role      string   `json:"role"`
	Addresses []string `json:"addresses,omitempty"`
	// Replace: certificates that the name has are revoked when it is used.
	Replace bool `json:"replace,omitempty"`
	// By is who made it, Created when, and Expires when it ends.
	By      string    `json:"by"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	// UsedBy is the hash of the public key that used it, At when, and Serial and
	// Certificate (PEM) what it was given; empty while it was not used.
	UsedBy      string    `json:"usedBy,omitempty"`
	At          time.Time `json:"at,omitzero"`
	Serial      string    `json:"serial,omitempty"`
	Certificate []byte    `json:"certificate,omitempty"`

	rev int64
	at  int64 // the store's revision when it was read
}

// Issued is what is remembered of a certificate.
type Issued struct {
	// Serial is in hex; Name and Role are the holder's.
	Serial string `json:"serial"`
	Name   string `json:"name"`
	Role   string `json:"role"`
	// Issuer is the name of the CA that signed it.
	Issuer string `json:"issuer"`
	// NotBefore and NotAfter are its times.
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	// How it came to be known, for people.
	How string `json:"how"`
	// Roots are those that it was seen to be below, or was given to be, by their hashes;
	// none when that was not looked at.
	Roots []string `json:"roots,omitempty"`
}

// PutToken remembers a new token.
func (s *Store) PutToken(ctx context.Context, t Token) error {
	data, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	ok, err := s.commit(ctx, "write a token", []clientv3.Cmp{s.unchanged(value{key: tokensPrefix + t.ID})}, s.put(tokensPrefix+t.ID, data))
	if err == nil && !ok {
		err = rpc.Errorf(rpc.ErrExists, "store: there is a token %s already", t.ID)
	}
	return err
}

// Token is the one with that id; ErrNotFound when there is none.
func (s *Store) Token(ctx context.Context, id string) (Token, error) {
	v, err := s.get(ctx, tokensPrefix+id)
	if err != nil {
		return Token{}, err
	}
	if v.rev == 0 {
		return Token{}, rpc.Errorf(rpc.ErrNotFound, "there is no token %s; see: hlctl token ls", id)
	}
	return readToken(v)
}

func readToken(v value) (Token, error) {
	var t Token
	if err := json.Unmarshal(v.data, &t); err != nil {
		return Token{}, fmt.Errorf("store: %s: %w", v.key, err)
	}
	t.rev, t.at = v.rev, v.at
	return t, nil
}

// Tokens are all that there are.
func (s *Store) Tokens(ctx context.Context) ([]Token, error) {
	values, _, err := s.list(ctx, tokensPrefix)
	if err != nil {
		return nil, err
	}
	tokens := make([]Token, 0, len(values))
	for _, v := range values {
		t, err := readToken(v)
		if err != nil {
			return nil, err
		}
		tokens = append(tokens, t)
	}
	return tokens, nil
}

// UseToken remembers that a token, as it was read, was used, and the certificate
// that was given for it, both or neither. It says no when the token is another one by
// now, or when a certificate was remembered since it was read: that may be one of the same
// name, for another token, which whoever looked for one before could not find.
func (s *Store) UseToken(ctx context.Context, t Token, given Issued) (ok bool, err error) {
	token, err := json.Marshal(t)
	if err != nil {
		return false, fmt.Errorf("store: %w", err)
	}
	issued, err := json.Marshal(given)
	if err != nil {
		return false, fmt.Errorf("store: %w", err)
	}
	since := clientv3.Compare(clientv3.ModRevision(s.key(issuedPrefix)).WithPrefix(), "<", t.at+1)
	return s.commit(ctx, "use a token", []clientv3.Cmp{s.unchanged(value{key: tokensPrefix + t.ID, rev: t.rev}), since},
		s.put(tokensPrefix+t.ID, token), s.put(issuedPrefix+given.Serial, issued))
}

// DropToken forgets a token.
func (s *Store) DropToken(ctx context.Context, id string) error {
	_, err := s.commit(ctx, "forget a token", nil, deleteOp(s.key(tokensPrefix+id)))
	return err
}

// PutIssued remembers a certificate. Of one that is remembered already nothing changes
// but that it is below more roots.
func (s *Store) PutIssued(ctx context.Context, i Issued) error {
	key := issuedPrefix + i.Serial
	for range 3 {
		old, err := s.get(ctx, key)
		if err != nil {
			return err
		}
		if old.rev != 0 {
			was := Issued{}
			if err := json.Unmarshal(old.data, &was); err != nil {
				return fmt.Errorf("store: %s: %w", key, err)
			}
			more := slices.DeleteFunc(slices.Clone(i.Roots), func(r string) bool { return slices.Contains(was.Roots, r) })
			if len(more) == 0 {
				return nil
			}
			was.Roots = append(was.Roots, more...)
			i = was
		}
		data, err := json.Marshal(i)
		if err != nil {
			return fmt.Errorf("store: %w", err)
		}
		if ok, err := s.commit(ctx, "write a certificate", []clientv3.Cmp{s.unchanged(old)}, s.put(key, data)); ok || err != nil {
			return err
		}
	}
	return nil // others know it too
}

// DropIssued forgets a certificate.
func (s *Store) DropIssued(ctx context.Context, serial string) error {
	_, err := s.commit(ctx, "forget a certificate", nil, deleteOp(s.key(issuedPrefix+serial)))
	return err
}

// Issued are all certificates that are remembered.
func (s *Store) Issued(ctx context.Context) ([]Issued, error) {
	values, _, err := s.list(ctx, issuedPrefix)
	if err != nil {
		return nil, err
	}
	all := make([]Issued, 0, len(values))
	for _, v := range values {
		var i Issued
		if err := json.Unmarshal(v.data, &i); err != nil {
			return nil, fmt.Errorf("store: %s: %w", v.key, err)
		}
		all = append(all, i)
	}
	return all, nil
}
