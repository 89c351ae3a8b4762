package postgres

import (
	"sync"
	"sync/atomic"
	"time"
)

// doubts remembers the owners that have a grant, but whose request was sent more than once,
// since the fate of the first was unknown. That one may still be on its way, and arrive
// after the release: so a release of such an owner leaves a mark that refuses it.
type doubts struct {
	some atomic.Bool // whether owners may have any

	mu     sync.Mutex // guards owners
	owners map[string]time.Time
}

// add remembers owner, and forgets those whose late requests cannot come any more.
func (d *doubts) add(owner string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.owners == nil {
		d.owners = make(map[string]time.Time)
	}
	for o, since := range d.owners {
		if time.Since(since) > undoLife {
			delete(d.owners, o)
		}
	}
	d.owners[owner] = time.Now()
	d.some.Store(true)
}

// take reports whether there are doubts about owner, and forgets them.
func (d *doubts) take(owner string) bool {
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
