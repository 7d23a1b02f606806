package gossip

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"io"
	"log"
	"net"

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

// visitor is a stream that comes in, of which nothing is read before its first message
// was opened with one of our keys. memberlist 0.7.0 answers what it cannot decrypt with
// an error, encrypted with our key: a stranger is answered, and may have as much
// encrypted as it likes. Here it finds the end of the stream.
type visitor struct {
	net.Conn
	keys  *memberlist.Keyring
	log   *log.Logger
	first *bytes.Reader // nil before it was read
}

// Read implements net.Conn, for the one goroutine that reads. An end is what memberlist
// does not answer.
func (v *visitor) Read(b []byte) (int, error) {
	if v.first == nil {
		message, err := v.receive()
		v.first = bytes.NewReader(message)
		if err != nil {
			v.log.Printf("[ERR] memberlist: Decrypt failed: %s from %s", err, v.RemoteAddr())
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
	for _, key := range v.keys.GetKeys() {
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
