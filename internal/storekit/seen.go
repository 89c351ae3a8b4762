package storekit

import (
	"hash/maphash"
	"sync/atomic"
)

// Seen remembers keys as a hint, by their hashes, each until another takes its place. It is
// safe for concurrent use.
type Seen struct {
	seed   maphash.Seed
	hashes [4096]atomic.Uint64
}

// NewSeen returns an empty Seen.
func NewSeen() *Seen { return &Seen{seed: maphash.MakeSeed()} }

func (s *Seen) place(key string) (*atomic.Uint64, uint64) {
	h := maphash.String(s.seed, key)
	return &s.hashes[h%uint64(len(s.hashes))], h
}

// Add remembers key.
func (s *Seen) Add(key string) {
	place, h := s.place(key)
	if place.Load() != h { // to read is cheaper when many do
		place.Store(h)
	}
}

// Has reports whether key is remembered.
func (s *Seen) Has(key string) bool {
	place, h := s.place(key)
	return place.Load() == h
}
