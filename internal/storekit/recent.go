package storekit

import (
	"hash/maphash"
	"sync/atomic"
	"time"
)

// Recent remembers for a while that something was seen of a key, as a hint: it is a small
// table, in which two keys may share a place. It is safe for concurrent use.
type Recent struct {
	seed  maphash.Seed
	life  time.Duration
	start time.Time
	until [256]atomic.Int64 // ns since start, by hash
}

// NewRecent returns a table of keys that are remembered for life.
func NewRecent(life time.Duration) *Recent {
	return &Recent{seed: maphash.MakeSeed(), life: life, start: time.Now()}
}

func (r *Recent) place(key string) *atomic.Int64 {
	return &r.until[maphash.String(r.seed, key)%uint64(len(r.until))]
}

// Add remembers key from now on.
func (r *Recent) Add(key string) { r.place(key).Store(int64(time.Since(r.start) + r.life)) }

// Has reports whether key, or one in the same place, is remembered.
func (r *Recent) Has(key string) bool {
	until := r.place(key).Load()
	return until != 0 && int64(time.Since(r.start)) < until
}
