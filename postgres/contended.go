package postgres

import (
	"hash/maphash"
	"sync/atomic"
	"time"
)

// contended remembers keys that were found held or waited for a moment ago. They go to the
// functions that stand in line and hand over at once, instead of by way of the plain statements,
// which are for keys that are free. A wrong guess costs a round trip, and nothing else, so
// a small table does, in which two keys may share a place.
type contended struct {
	seed  maphash.Seed
	until [256]atomic.Int64 // ns since start, by hash
	start time.Time
}

// contendedFor is how long a key is remembered: longer than from one look of a waiter to the
// next, so that a key which somebody waits for here stays so.
const contendedFor = 2 * time.Second

func newContended() *contended {
	return &contended{seed: maphash.MakeSeed(), start: time.Now()}
}

func (c *contended) place(key string) *atomic.Int64 {
	return &c.until[maphash.String(c.seed, key)%uint64(len(c.until))]
}

func (c *contended) add(key string) {
	c.place(key).Store(int64(time.Since(c.start) + contendedFor))
}

func (c *contended) has(key string) bool {
	until := c.place(key).Load()
	return until != 0 && int64(time.Since(c.start)) < until
}
