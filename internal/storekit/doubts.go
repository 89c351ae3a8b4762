package storekit

import (
	"sync"
	"sync/atomic"
	"time"
)

// UndoLife is how long a tombstone refuses the late requests of an owner: longer than a request
// may linger in the buffers of a connection whose client has given it up.
const UndoLife = 2 * time.Minute

// Doubts remembers for [UndoLife] the owners that have a grant, but whose request was sent
// more than once, since the fate of the first was unknown. That one may still be on its way,
// and arrive after the release: so a release of such an owner leaves a tombstone that refuses
// it. The zero value has none. It is safe for concurrent use.
type Doubts struct {
	some atomic.Bool // whether owners may have any

	mu     sync.Mutex // guards the rest
	owners map[string]time.Time
	oldest []doubt // all that were ever added and may still be in owners, in order
}

type doubt struct {
	owner string
	since time.Time
}

// Add remembers owner, and forgets those whose late requests cannot come any more.
func (d *Doubts) Add(owner string) {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.owners == nil {
		d.owners = make(map[string]time.Time)
	}
	for len(d.oldest) > 0 && now.Sub(d.oldest[0].since) > UndoLife {
		if first := d.oldest[0]; d.owners[first.owner].Equal(first.since) { // else it was added again
			delete(d.owners, first.owner)
		}
		d.oldest = d.oldest[1:] // append copies the rest, and frees the front, when it must grow
	}
	d.owners[owner] = now
	d.oldest = append(d.oldest, doubt{owner, now})
	d.some.Store(true)
}

// Take reports whether there are doubts about owner, and forgets them.
func (d *Doubts) Take(owner string) bool {
	if !d.some.Load() {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.owners[owner]
	delete(d.owners, owner)
	d.some.Store(len(d.owners) > 0)
	return ok
}
