package pve

import (
	"crypto/rand"
	"crypto/sha256"
)

const crypt64 = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

func salt() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b)
	for i := range b {
		b[i] = crypt64[b[i]&63]
	}
	return string(b)
}

// cryptSHA256 is crypt(3) with $5$ and 5000 rounds: what cipassword becomes.
// The algorithm is Ulrich Drepper's, "Unix crypt using SHA-256 and SHA-512".
func cryptSHA256(password, salt string) string {
	key, s := []byte(password), []byte(salt)
	sum := func(parts ...[]byte) []byte {
		h := sha256.New()
		for _, p := range parts {
			h.Write(p)
		}
		return h.Sum(nil)
	}
	// stretch repeats digest to n bytes.
	stretch := func(digest []byte, n int) []byte {
		var out []byte
		for len(out) < n {
			out = append(out, digest[:min(len(digest), n-len(out))]...)
		}
		return out
	}
	b := sum(key, s, key)
	a := append(append([]byte{}, key...), s...)
	a = append(a, stretch(b, len(key))...)
	for n := len(key); n > 0; n >>= 1 {
		if n&1 == 1 {
			a = append(a, b...)
		} else {
			a = append(a, key...)
		}
	}
	digest := sum(a)
	var dp []byte
	for range key {
		dp = append(dp, key...)
	}
	p := stretch(sum(dp), len(key))
	var ds []byte
	for range 16 + int(digest[0]) {
		ds = append(ds, s...)
	}
	sp := stretch(sum(ds), len(s))
	for i := range 5000 {
		var c []byte
		if i&1 == 1 {
			c = append(c, p...)
		} else {
			c = append(c, digest...)
		}
		if i%3 != 0 {
			c = append(c, sp...)
		}
		if i%7 != 0 {
			c = append(c, p...)
		}
		if i&1 == 1 {
			c = append(c, digest...)
		} else {
			c = append(c, p...)
		}
		digest = sum(c)
	}
	out := []byte("$5$" + salt + "$")
	put := func(x, y, z byte, n int) {
		w := uint(x)<<16 | uint(y)<<8 | uint(z)
		for range n {
			out = append(out, crypt64[w&63])
			w >>= 6
		}
	}
	d := digest
	for _, t := range [][3]int{{0, 10, 20}, {21, 1, 11}, {12, 22, 2}, {3, 13, 23}, {24, 4, 14}, {15, 25, 5}, {6, 16, 26}, {27, 7, 17}, {18, 28, 8}, {9, 19, 29}} {
		put(d[t[0]], d[t[1]], d[t[2]], 4)
	}
	put(0, d[31], d[30], 3)
	return string(out)
}
