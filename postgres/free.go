package postgres

import (
	"hash/maphash"
	"sync/atomic"
)

// freeKeys remembers, as a hint, keys whose rows are there and that nobody was seen to wait for:
// the plain statements are tried for them first. A wrong guess costs a round trip, and nothing
// else. Keys are remembered by their hashes, each until another takes its place.
type freeKeys struct {
	seed   maphash.Seed
	hashes [4096]atomic.Uint64
}

func newFreeKeys() *freeKeys { return &freeKeys{seed: maphash.MakeSeed()} }

func (f *freeKeys) place(key string) (*atomic.Uint64, uint64) {
	h := maphash.String(f.seed, key)
	return &f.hashes[h%uint64(len(f.hashes))], h
}

// add remembers key.
func (f *freeKeys) add(key string) {
	if place, h := f.place(key); place.Load() != h { // to read is cheaper when many do
		place.Store(h)
	}
}

// remove forgets key.
func (f *freeKeys) remove(key string) {
	if place, h := f.place(key); place.Load() == h {
		place.CompareAndSwap(h, 0)
	}
}

func (f *freeKeys) has(key string) bool {
	place, h := f.place(key)
	return place.Load() == h
}
