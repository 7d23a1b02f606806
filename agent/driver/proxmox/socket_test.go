package proxmox

import (
	"bytes"
	"net"
	"path/filepath"
	"testing"
)

func TestAGuestAgentThatSendsWithoutEndDoesNotTakeTheHostsMemory(t *testing.T) {
	t.Chdir(t.TempDir()) // socket paths are short
	l, err := net.Listen("unix", "201.qga")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sent := make(chan int, 1)
	go func() {
		n := 0
		defer func() { sent <- n }()
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		for junk := bytes.Repeat([]byte("x"), 64<<10); ; {
			m, err := conn.Write(junk)
			if n += m; err != nil {
				return
			}
		}
	}()
	if _, err := queryAgent(t.Context(), filepath.Join(".", "201.qga")); err == nil {
		t.Error("an agent that never finishes a line is said to answer")
	}
	if n := <-sent; n > talkLimit+(4<<20) { // what sockets hold in between
		t.Errorf("%d bytes were read", n)
	}
}
