package rpc

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhatRepeatsIsToldOnceAMinuteWithACount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Repeats
		var mu sync.Mutex
		var told []int
		note := func() {
			r.Note("10.0.0.9 expired", func(n int) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, n)
			}, nil)
		}
		for range 100 {
			note()
		}
		mu.Lock()
		if !slices.Equal(told, []int{1}) {
			t.Errorf("at once: %v", told)
		}
		mu.Unlock()
		time.Sleep(repeatEvery + time.Second)
		synctest.Wait()
		note()
		time.Sleep(repeatEvery)
		synctest.Wait()
		if !slices.Equal(told, []int{1, 99, 1}) {
			t.Errorf("%v", told)
		}
		time.Sleep(2 * repeatEvery)
		synctest.Wait()
		if remembered(&r) != 0 {
			t.Errorf("%d are still remembered", remembered(&r))
		}
	})
}

func remembered(r *Repeats) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.seen)
}

func TestAStrangerDoesNotFillTheMemoryWithReasons(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Repeats
		var mu sync.Mutex
		rest := 0
		for i := range 10 * repeatKinds {
			r.Note(fmt.Sprint(i), func(int) {}, func(n int) {
				mu.Lock()
				defer mu.Unlock()
				rest += n
			})
		}
		mu.Lock()
		if remembered(&r) > repeatKinds+1 || rest != 1 {
			t.Errorf("%d remembered, %d told of the rest", remembered(&r), rest)
		}
		mu.Unlock()
		time.Sleep(3 * repeatEvery)
		synctest.Wait()
		if remembered(&r) != 0 || rest != 10*repeatKinds-repeatKinds {
			t.Errorf("%d remembered, %d told of the rest", remembered(&r), rest)
		}
	})
}

func TestARefusedCallerIsLoggedOnceForEachReason(t *testing.T) {
	var log bytes.Buffer
	c := &Credentials{Log: slog.New(slog.NewTextHandler(&log, nil))}
	for port := range 50 {
		local := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 8400}
		remote := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 9), Port: 40000 + port}
		c.refuse("10.0.0.9", &net.OpError{Op: "read", Net: "tcp", Source: local, Addr: remote, Err: errors.New("connection reset by peer")})
		c.refuse("10.0.0.9", tls.RecordHeaderError{Msg: fmt.Sprintf("oversized record received with length %d", 20000+port)})
		c.refuse("10.0.0.9", fmt.Errorf("tls: client offered only unsupported versions: [%x 301]", port))
		c.refuse("10.0.0.9", x509.CertificateInvalidError{Reason: x509.Expired, Detail: fmt.Sprintf("current time 12:00:%02d", port)})
	}
	if n := strings.Count(log.String(), "caller refused"); n != 4 {
		t.Errorf("%d lines:\n%s", n, log.String())
	}
}
