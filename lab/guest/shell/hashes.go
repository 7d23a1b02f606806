package shell

import (
	"context"
	"crypto/md5"  //nolint:gosec // what md5sum does
	"crypto/sha1" //nolint:gosec // what sha1sum does
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

var hashTools = map[string]Tool{
	"sha256sum": sum(sha256.New), "sha1sum": sum(sha1.New), "md5sum": sum(md5.New), "base64": base64Tool, "date": date,
}

func sum(algorithm func() hash.Hash) Tool {
	return func(ctx context.Context, c *Call) int {
		o, err := parseOptions(c.Argv[1:], "c b t check status quiet")
		if err != nil {
			return c.Refuse(err.Error())
		}
		if o.has("c", "check") {
			return checkSums(ctx, c, o, algorithm)
		}
		return c.each(ctx, o.args, func(name string, r io.Reader) error {
			h := algorithm()
			if _, err := io.Copy(h, r); err != nil {
				return err
			}
			c.Printf("%s  %s\n", hex.EncodeToString(h.Sum(nil)), name)
			return nil
		})
	}
}

func checkSums(ctx context.Context, c *Call, o options, algorithm func() hash.Hash) int {
	lines, code := c.lines(ctx, o.args)
	failed := 0
	for _, l := range lines {
		want, name, ok := strings.Cut(l, " ")
		if !ok {
			continue
		}
		name = strings.TrimLeft(name, " *")
		got := "FAILED open or read"
		if f, err := c.Open(name, os.O_RDONLY); err == nil {
			h := algorithm()
			_, err = io.Copy(h, f)
			f.Close()
			got = "FAILED"
			if err == nil && hex.EncodeToString(h.Sum(nil)) == strings.ToLower(want) {
				got = "OK"
			}
		}
		if got != "OK" {
			failed++
		}
		if !o.has("status") && (got != "OK" || !o.has("quiet")) {
			c.Printf("%s: %s\n", name, got)
		}
	}
	if failed > 0 {
		return c.Fail("WARNING: %d computed checksum did NOT match", failed)
	}
	return code
}

func base64Tool(ctx context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "d w: i decode wrap:")
	if err != nil {
		return c.Refuse(err.Error())
	}
	wrap, err := strconv.Atoi(o.get("76", "w", "wrap"))
	if err != nil {
		return c.Fail("invalid wrap size")
	}
	return c.each(ctx, o.args, func(_ string, r io.Reader) error {
		b, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if o.has("d", "decode") {
			out, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(b)), ""))
			if err != nil {
				return err
			}
			_, err = c.Stdout.Write(out)
			return err
		}
		s := base64.StdEncoding.EncodeToString(b)
		for wrap > 0 && len(s) > wrap {
			c.Printf("%s\n", s[:wrap])
			s = s[wrap:]
		}
		end := "\n"
		if wrap == 0 {
			end = ""
		}
		c.Printf("%s%s", s, end)
		return nil
	})
}

// date prints the time in UTC, as cloud images do, in strftime's most used
// letters.
func date(_ context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "u I: d: utc iso-8601: date:")
	if err != nil {
		return c.Refuse(err.Error())
	}
	now := time.Now().UTC()
	if d := o.get("", "d", "date"); d != "" {
		n, err := strconv.ParseInt(strings.TrimPrefix(d, "@"), 10, 64)
		if err != nil || !strings.HasPrefix(d, "@") {
			return c.Refuse("date " + d)
		}
		now = time.Unix(n, 0).UTC()
	}
	if len(o.args) == 0 {
		c.Printf("%s\n", now.Format("Mon Jan _2 15:04:05 UTC 2006"))
		return 0
	}
	f, ok := strings.CutPrefix(o.args[0], "+")
	if !ok {
		return c.Refuse("setting the clock")
	}
	letters := map[byte]string{
		'Y': "2006", 'm': "01", 'd': "02", 'H': "15", 'M': "04", 'S': "05", 'F': "2006-01-02", 'T': "15:04:05",
		'Z': "MST", 'z': "-0700", 'y': "06", 'b': "Jan", 'a': "Mon", 'j': "002",
	}
	var b strings.Builder
	for i := 0; i < len(f); i++ {
		if f[i] != '%' || i+1 == len(f) {
			b.WriteByte(f[i])
			continue
		}
		i++
		switch f[i] {
		case 's':
			b.WriteString(strconv.FormatInt(now.Unix(), 10))
		case 'N':
			b.WriteString(now.Format(".000000000")[1:])
		case '%':
			b.WriteByte('%')
		default:
			l, ok := letters[f[i]]
			if !ok {
				return c.Refuse("format %" + string(f[i]))
			}
			b.WriteString(now.Format(l))
		}
	}
	c.Printf("%s\n", b.String())
	return 0
}
