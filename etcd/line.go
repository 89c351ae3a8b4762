package etcd

import (
	"sync"
	"sync/atomic"
	"time"
)

// place is what others in this Locker know of one who waits behind a certain entry. It does
// not change, but for its channels.
type place struct {
	a       *acquisition
	name    string
	rev     int64
	lease   *lease        // for the grant
	wakeup  chan struct{} // a hint
	granted chan handover // what came of a handover
	taken   atomic.Bool   // a handover is under way: hints are of its own making
}

// handover is what came of a release that was to grant as well, sent after start.
type handover struct {
	ok    bool
	rev   int64 // of the entry that was granted
	mod   int64
	start time.Time
	lease *lease
}

// deliver never blocks: a waiter that has gone on meanwhile looks by itself.
func (p *place) deliver(h handover) {
	select {
	case p.granted <- h:
	default:
		p.look()
	}
}

func (p *place) value() string { return p.a.value(true) }

func (p *place) look() {
	select {
	case p.wakeup <- struct{}{}:
	default:
	}
}

// line knows who waits in this Locker for an exclusive entry as the next in line.
type line struct {
	mu    sync.Mutex // guards the rest
	next  map[string]*place
	count map[string]int // of those who wait, by base
}

// waits reports whether anybody waits for the lock.
func (n *line) waits(base string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.count[base] > 0
}

// add makes p known. An exclusive one is next after the entry that it waits for; of shared
// ones there may be many, and they look for themselves.
func (n *line) add(pred string, p *place) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next == nil {
		n.next, n.count = make(map[string]*place), make(map[string]int)
	}
	n.count[p.a.base]++
	if !p.a.req.Shared {
		n.next[pred] = p
	}
}

func (n *line) remove(pred string, p *place) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.count[p.a.base]--; n.count[p.a.base] == 0 {
		delete(n.count, p.a.base)
	}
	if n.next[pred] == p {
		delete(n.next, pred)
	}
}

// behind returns who is next after the entry called name, once. Who waits for an older entry of
// that name has no entry any more, which a handover finds.
func (n *line) behind(name string) *place {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.next[name]
	if p != nil {
		p.taken.Store(true)
		delete(n.next, name)
	}
	return p
}
