package rpc

import (
	"crypto"
	"encoding/pem"
	"fmt"

	"github.com/youmark/pkcs8"
)

// sealedType is the PEM type of a key with a passphrase, as openssl has it.
const sealedType = "ENCRYPTED PRIVATE KEY"

// sealing makes each guess at a passphrase cost 128 MiB and about half a second: the
// file may be stolen with the laptop that it lies on. See docs/decisions.
var sealing = &pkcs8.Opts{
	Cipher:  pkcs8.AES256CBC,
	KDFOpts: pkcs8.ScryptOpts{SaltSize: 16, CostParameter: 1 << 17, BlockSize: 8, ParallelizationParameter: 1},
}

func sealKey(key crypto.Signer, passphrase []byte) ([]byte, error) {
	if len(passphrase) == 0 {
		return nil, Errorf(ErrInvalid, "an empty passphrase protects nothing")
	}
	der, err := pkcs8.MarshalPrivateKey(key, passphrase, sealing)
	if err != nil {
		return nil, fmt.Errorf("encrypt a private key: %w", err)
	}
	return encodePEM(sealedType, der), nil
}

// openKey gives a key file's content without its passphrase; one that has none is
// given as it is.
func openKey(data, passphrase []byte) ([]byte, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != sealedType {
		return data, nil
	}
	if len(passphrase) == 0 {
		return nil, Errorf(ErrDenied, "the key has a passphrase, and none was given")
	}
	key, err := pkcs8.ParsePKCS8PrivateKey(block.Bytes, passphrase)
	if err != nil {
		// The library cannot tell a wrong passphrase from a broken file for sure.
		return nil, Errorf(ErrDenied, "the passphrase is not the right one, or the file is broken")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, Errorf(ErrInvalid, "the key cannot sign")
	}
	return encodeKey(signer)
}
