// Package wan is the web server that images come from in tests: it counts what it
// sends and can lie, break off and stand still as real ones do. It serves one
// content under every path; several of them under one address are a ServeMux's to
// tell apart.
package wan

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// Server is the server: an http.Handler for any address. Its fields are set before
// it serves, or in Change.
type Server struct {
	// ETag is sent as it is ("\"x\"" is a strong one); empty is none.
	ETag string
	// NoRange answers every Range with the whole file.
	NoRange bool
	// NoLength sends the whole without its length, in chunks.
	NoLength bool
	// DropEvery cuts the connection after that many bytes of each answer; 0 never.
	DropEvery int64
	// EndsAt cuts it at that byte of the file, of which it states the whole length;
	// 0 never.
	EndsAt int64
	// GoesOn is how many bytes it sends past the end of the file.
	GoesOn int64
	// HTML answers with a web page, and 200.
	HTML bool
	// Status is answered instead of the file; 0 serves it. With Times it is answered
	// that often and then no more.
	Status, Times int
	// Redirect is where every request is sent on to; empty serves.
	Redirect string
	// User and Password are asked for when they are set.
	User, Password string
	// Gate is called before the bytes from an offset of the file on are sent, in
	// steps of Step bytes; it may wait. It is told of the request's end by done.
	Gate func(offset int64, done <-chan struct{})

	mu       sync.Mutex
	content  io.ReaderAt
	size     int64
	count    int64
	requests []Request
}

// Request is one that was made.
type Request struct {
	Method, Path, Range, IfRange string
	// Sent is how many bytes of the body were sent.
	Sent int64
}

// Step is the largest piece that is sent at once, in bytes.
const Step = 32 << 10

// New serves that content.
func New(content []byte) *Server { return Of(strings.NewReader(string(content)), int64(len(content))) }

// Of serves a content of any size.
func Of(content io.ReaderAt, size int64) *Server { return &Server{content: content, size: size} }

// Change changes the server between two requests.
func (s *Server) Change(change func(*Server)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

// Replace puts another file in the place of the one that is served; it is to be
// called in Change.
func (s *Server) Replace(content []byte) {
	s.content, s.size = strings.NewReader(string(content)), int64(len(content))
}

// Count is how many bytes of bodies were sent, of web pages and errors too.
func (s *Server) Count() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// Requests are those that were made, in order.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.requests...)
}

// answer is what is to be sent for one request, decided at its beginning.
type answer struct {
	Server
	from int64
	n    int // the request's number
}

// ServeHTTP answers.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	a := &answer{n: len(s.requests)}
	a.ETag, a.NoRange, a.NoLength, a.DropEvery, a.EndsAt, a.GoesOn = s.ETag, s.NoRange, s.NoLength, s.DropEvery, s.EndsAt, s.GoesOn
	a.HTML, a.Status, a.Redirect, a.User, a.Password, a.Gate = s.HTML, s.Status, s.Redirect, s.User, s.Password, s.Gate
	a.content, a.size = s.content, s.size
	s.requests = append(s.requests, Request{Method: r.Method, Path: r.URL.Path, Range: r.Header.Get("Range"), IfRange: r.Header.Get("If-Range")})
	if s.Status != 0 && s.Times > 0 {
		if s.Times--; s.Times == 0 {
			s.Status = 0
		}
	}
	s.mu.Unlock()
	user, password, _ := r.BasicAuth()
	switch {
	case a.User != "" && (user != a.User || password != a.Password):
		w.Header().Set("WWW-Authenticate", `Basic realm="images"`)
		http.Error(w, "who are you?", http.StatusUnauthorized)
	case a.Redirect != "":
		http.Redirect(w, r, a.Redirect, http.StatusFound)
	case a.Status != 0:
		http.Error(w, http.StatusText(a.Status), a.Status)
	case a.HTML:
		page := "<!DOCTYPE html>\n<html><title>Sign in</title><p>Please accept the terms of this network.</p></html>\n" + strings.Repeat(" ", 1024)
		w.Header().Set("Content-Type", "text/html")
		n, _ := io.WriteString(w, page)
		s.sent(a.n, int64(n))
	default:
		s.serve(w, r, a)
	}
}

func (s *Server) sent(request int, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count += n
	s.requests[request].Sent += n
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, a *answer) {
	code := http.StatusOK
	if from, ok := rangeOf(r, a); ok {
		if from >= a.size {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", a.size))
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		a.from, code = from, http.StatusPartialContent
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, a.size-1, a.size))
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	if a.ETag != "" {
		h.Set("ETag", a.ETag)
	}
	if !a.NoRange {
		h.Set("Accept-Ranges", "bytes")
	}
	if a.NoLength {
		w.WriteHeader(code)
		s.send(w, r, a)
		return
	}
	h.Set("Content-Length", strconv.FormatInt(a.size-a.from, 10))
	if a.GoesOn == 0 {
		w.WriteHeader(code)
		s.send(w, r, a)
		return
	}
	// net/http does not send more than it states; this server does.
	conn, out, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	fmt.Fprintf(out, "HTTP/1.1 %d %s\r\n", code, http.StatusText(code))
	_ = h.Write(out)
	_, _ = io.WriteString(out, "Connection: close\r\n\r\n")
	s.send(out, r, a)
	_ = out.Flush()
}

func rangeOf(r *http.Request, a *answer) (int64, bool) {
	text, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	if !ok || a.NoRange {
		return 0, false
	}
	if e := r.Header.Get("If-Range"); e != "" && e != a.ETag {
		return 0, false
	}
	from, err := strconv.ParseInt(strings.TrimSuffix(text, "-"), 10, 64)
	return from, err == nil && from >= 0
}

// send sends the file from an offset on, or breaks off.
func (s *Server) send(w io.Writer, r *http.Request, a *answer) {
	end := a.size
	if a.DropEvery > 0 {
		end = min(end, a.from+a.DropEvery)
	}
	if a.EndsAt > 0 {
		end = min(end, a.EndsAt)
	}
	flusher, _ := w.(http.Flusher)
	buf := make([]byte, Step)
	for at := a.from; at < end; {
		if a.Gate != nil {
			if flusher != nil {
				flusher.Flush()
			}
			a.Gate(at, r.Context().Done())
		}
		if r.Context().Err() != nil {
			panic(http.ErrAbortHandler)
		}
		n, err := a.content.ReadAt(buf[:min(Step, end-at)], at)
		if err != nil && !errors.Is(err, io.EOF) || n == 0 {
			panic(http.ErrAbortHandler)
		}
		n, err = w.Write(buf[:n])
		s.sent(a.n, int64(n))
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		at += int64(n)
	}
	if end < a.size {
		if flusher != nil {
			flusher.Flush()
		}
		panic(http.ErrAbortHandler) // cuts the connection
	}
	for left := a.GoesOn; left > 0; {
		n, err := w.Write(buf[:min(Step, left)])
		s.sent(a.n, int64(n))
		if err != nil {
			return
		}
		left -= int64(n)
	}
}

// Synthetic is a disk image of any size that nobody has to keep: its bytes follow
// from the seed, and it begins with a boot sector. Its size is to be a multiple of 8.
type Synthetic struct {
	Seed uint64
	Size int64
}

// ReadAt reads it.
func (c Synthetic) ReadAt(p []byte, off int64) (int, error) {
	if off >= c.Size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), c.Size-off))
	for i := 0; i < n; {
		at := off + int64(i)
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], mix(c.Seed+uint64(at/8))) //nolint:gosec // at is not negative
		i += copy(p[i:n], word[at%8:])
	}
	for i, b := range []byte{0x55, 0xaa} {
		if at := int64(510+i) - off; at >= 0 && at < int64(n) {
			p[at] = b
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// mix is splitmix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
