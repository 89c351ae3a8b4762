package zookeeper

import (
	"hash/maphash"
	"sync/atomic"
	"time"
)

// busy remembers keys that a try found held a moment ago. The next try looks at the line
// before it stands in it: that costs reads instead of writes if the key is held still. A
// wrong guess costs a round trip, and nothing else, so two keys may share a place.
type busy struct {
	seed  maphash.Seed
	start time.Time
	until [256]atomic.Int64 // ns since start, by hash
}

const busyFor = time.Second

func newBusy() *busy { return &busy{seed: maphash.MakeSeed(), start: time.Now()} }

func (b *busy) place(key string) *atomic.Int64 {
	return &b.until[maphash.String(b.seed, key)%uint64(len(b.until))]
}

func (b *busy) add(key string) { b.place(key).Store(int64(time.Since(b.start) + busyFor)) }

func (b *busy) has(key string) bool {
	until := b.place(key).Load()
	return until != 0 && int64(time.Since(b.start)) < until
}
