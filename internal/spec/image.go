package spec

import (
	"net/url"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// digests are the lengths in hexadecimal digits of what a file can be compared
// with.
var digests = []struct {
	key, name, digits string
	pattern           *regexp.Regexp
}{
	{"sha256", "SHA-256", "64", regexp.MustCompile(`^[0-9a-fA-F]{64}$`)},
	{"sha512", "SHA-512", "128", regexp.MustCompile(`^[0-9a-fA-F]{128}$`)},
}

func (p *parser) image(e entry, path string) {
	m := p.mapping(e.value, path)
	image := &Image{Name: e.key.Value, Type: ImageDisk}
	p.spec.Images[image.Name] = image
	if n := m.value("url"); n != nil {
		image.URL = p.url(n, m.at("url"))
	} else if !m.has("url") {
		m.missing(e.key, "url", "")
	}
	if n := m.value("mirrors"); n != nil {
		p.mirrors(n, m.at("mirrors"), image)
	}
	// A type that cannot be read is no type: no second fault is to follow from it.
	if m.has("type") {
		image.Type, _ = word(m, "type", ImageDisk, ImageISO)
	}
	for _, d := range digests {
		n := m.value(d.key)
		if n == nil {
			continue
		}
		// Not text: sixty-four digits are a number to YAML, and the same file.
		s, ok := p.scalar(n, m.at(d.key))
		if ok && !d.pattern.MatchString(s) {
			p.fault(n, m.at(d.key), "%s is not a %s (%s hexadecimal digits)", show(s), d.name, d.digits)
		}
		if d.key == "sha256" {
			image.SHA256 = strings.ToLower(s)
		} else {
			image.SHA512 = strings.ToLower(s)
		}
	}
	if n := m.value("checksums"); n != nil {
		image.Checksums = p.url(n, m.at("checksums"))
		if strings.HasPrefix(strings.ToLower(image.Checksums), "http://") {
			p.warn(n, m.at("checksums"), "checksums over http prove nothing: anyone on the way can change both")
		}
	}
	p.oneProof(m, e)
	m.end()
}

// oneProof lets an image be compared with one thing at most: of two that do not
// agree neither could be believed.
func (p *parser) oneProof(m *mapping, e entry) {
	proofs := []string{"sha256", "sha512", "checksums"}
	var first string
	for _, key := range m.order {
		switch {
		case !slices.Contains(proofs, key):
		case first == "":
			first = key
		default:
			p.fault(m.by[key].key, m.at(key), "stands beside %s (line %d): one of sha256, sha512 and checksums is wanted", first, m.by[first].key.Line)
		}
	}
	if first == "" && m.node.Kind == yaml.MappingNode {
		p.warn(e.key, m.path, "has no checksum: what the first fetch brings is believed (sha256: DIGEST or checksums: URL is better)")
	}
}

func (p *parser) mirrors(n *yaml.Node, path string, image *Image) {
	for i, item := range p.list(n, path) {
		at := index(path, i)
		mirror := p.url(item, at)
		switch {
		case mirror == "":
		case mirror == image.URL || slices.Contains(image.Mirrors, mirror):
			p.fault(item, at, "%s is there twice", showURL(mirror))
		default:
			image.Mirrors = append(image.Mirrors, mirror)
		}
	}
}

// url reads an https, http or file URL of an image. User and password may stand in
// it: many a mirror wants them.
func (p *parser) url(n *yaml.Node, path string) string {
	s, ok := p.text(n, path)
	if !ok {
		return ""
	}
	if reason := badURL(s); reason != "" {
		p.fault(n, path, "%s %s", showURL(s), reason)
		return ""
	}
	if holdsUser(s) {
		p.warn(n, path, "holds a user or a password: the controller stores the Spec with it, and shows it nowhere")
	}
	// Agents know the schemes by how they are usually written.
	scheme, rest, _ := strings.Cut(s, ":")
	return strings.ToLower(scheme) + ":" + rest
}

func badURL(s string) string {
	u, err := url.Parse(s)
	switch {
	case err != nil || strings.ContainsAny(s, " \t\r\n"):
		return "is not a URL"
	case u.Scheme == "https" || u.Scheme == "http":
		if u.Hostname() == "" {
			return "names no host"
		}
	case u.Scheme == "file":
		if u.Host != "" || u.User != nil || !strings.HasPrefix(u.Path, "/") {
			return "is not file:///an/absolute/path"
		}
	case u.Scheme == "":
		return "is not a URL (https, http or file)"
	default:
		return "is not an https, http or file URL"
	}
	return ""
}

// holdsUser says whether a URL names a user, with a password or without one.
func holdsUser(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.User != nil
}

// masked is a text without the user and password of a URL in it. All goes from the
// scheme on to the last @: one that is not written as it must be has slashes and
// blanks in its password.
func masked(text string) string {
	if at := strings.LastIndex(text, "@"); at >= 0 {
		if i := strings.Index(text[:at], "://"); i >= 0 {
			return text[:i] + "://***" + text[at:]
		}
	}
	return text
}

// showURL quotes what stands where a URL is wanted. Also without a scheme what is
// before its last @ may be a password.
func showURL(s string) string {
	if at := strings.LastIndex(s, "@"); at >= 0 && !strings.Contains(s[:at], "://") {
		s = "***" + s[at:]
	}
	return show(s)
}
