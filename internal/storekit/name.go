package storekit

import (
	"crypto/rand"
	"encoding/base64"
)

// ProcessName is a new name for a Locker, of 128 random bits in [A-Za-z0-9_-].
func ProcessName() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: it would end the program
	return base64.RawURLEncoding.EncodeToString(b[:])
}
