package k3s

import (
	"crypto/subtle"
	"fmt"
	"log/slog"
)

// hidden is what every way of printing a Secret shows.
const hidden = "***"

// A Secret is a token or key that prints as ***. It holds a pointer because
// fmt reads unexported fields of an enclosing struct without asking their
// String method: a string there would be printed.
type Secret struct{ value *string }

// NewSecret hides s.
func NewSecret(s string) Secret {
	if s == "" {
		return Secret{}
	}
	return Secret{value: &s}
}

// Reveal is the hidden text. Each call of it is a place to look at in review.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsZero says whether there is nothing to hide.
func (s Secret) IsZero() bool { return s.value == nil }

// Equal compares the hidden texts in constant time.
func (s Secret) Equal(o Secret) bool {
	return subtle.ConstantTimeCompare([]byte(s.Reveal()), []byte(o.Reveal())) == 1
}

// String prints ***.
func (s Secret) String() string { return hidden }

// GoString prints ***.
func (s Secret) GoString() string { return hidden }

// Format prints *** for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// MarshalJSON gives "***": a Secret does not travel as JSON.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + hidden + `"`), nil }

// MarshalText gives ***.
func (s Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// MarshalYAML gives ***.
func (s Secret) MarshalYAML() (any, error) { return hidden, nil }

// LogValue gives ***.
func (s Secret) LogValue() slog.Value { return slog.StringValue(hidden) }
