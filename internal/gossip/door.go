package gossip

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"io"
	"log"
	"net"
	"sync"

	"github.com/hashicorp/memberlist"
)

// What memberlist writes on a stream: a byte that says encrypted, the length, and then
// version, nonce and AES-GCM, over which those first five bytes stand too.
const (
	encrypted  = 10
	headerSize = 5
	nonceSize  = 12
	// maxStream bounds the first message of a stream in bytes. The states of ten
	// thousand peers are less.
	maxStream = 8 << 20
)

// door stands before the streams that come in. memberlist 0.7.0 answers what it cannot
// decrypt with an error, encrypted with our key: a stranger is answered, and may have
// as much encrypted as it likes. Here it finds the end of the stream.
type door struct {
	keys *memberlist.Keyring
	log  *log.Logger
	out  chan net.Conn
	shut chan struct{} // closed when no more streams come in
	once sync.Once
}

// close ends it, when no more streams come in; again is nothing.
func (d *door) close() { d.once.Do(func() { close(d.shut) }) }

func newDoor(ctx context.Context, in <-chan net.Conn, keys *memberlist.Keyring, to *log.Logger) *door {
	d := &door{keys: keys, log: to, out: make(chan net.Conn), shut: make(chan struct{})}
	go func() {
		for {
			select {
			case <-d.shut:
				return
			case conn := <-in:
				select {
				case d.out <- &visitor{Conn: conn, door: d}:
				case <-ctx.Done():
					// Taken all the same: the listener ends only when it got rid of it.
					_ = conn.Close()
				}
			}
		}
	}()
	return d
}

// visitor is a stream of which nothing is read before its first message was opened
// with one of our keys.
type visitor struct {
	net.Conn
	door  *door
	first *bytes.Reader // nil before it was read
}

// Read implements net.Conn, for the one goroutine that reads. An end is what memberlist
// does not answer.
func (v *visitor) Read(b []byte) (int, error) {
	if v.first == nil {
		message, err := v.receive()
		v.first = bytes.NewReader(message)
		if err != nil {
			v.door.log.Printf("[ERR] memberlist: Decrypt failed: %s from %s", err, v.RemoteAddr())
			_ = v.Close()
			return 0, io.EOF
		}
	}
	if v.first.Len() > 0 {
		return v.first.Read(b)
	}
	return v.Conn.Read(b)
}

var errStranger = errors.New("no key of ours opens what comes")

func (v *visitor) receive() ([]byte, error) {
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(v.Conn, header); err != nil {
		return nil, errStranger
	}
	length := binary.BigEndian.Uint32(header[1:])
	if header[0] != encrypted || length > maxStream {
		return nil, errStranger
	}
	message := bytes.NewBuffer(header)
	if _, err := io.CopyN(message, v.Conn, int64(length)); err != nil {
		return nil, errStranger
	}
	for _, key := range v.door.keys.GetKeys() {
		if opens(key, message.Bytes()) {
			return message.Bytes(), nil
		}
	}
	return nil, errStranger
}

// opens says whether the key decrypts a message with its header.
func opens(key, message []byte) bool {
	body := message[headerSize:]
	if len(body) < 1+nonceSize {
		return false
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return false
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return false
	}
	_, err = gcm.Open(nil, body[1:1+nonceSize], body[1+nonceSize:], message[:headerSize])
	return err == nil
}
