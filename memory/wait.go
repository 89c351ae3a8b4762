package memory

import (
	"context"
	"fmt"
	"time"

	"github.com/seed-215fdefa/lock"
)

// line is who waits for a key, in the order of their places. It is never empty except in the
// middle of a step, and its first waiter is never compatible with the holders.
type line struct {
	head, tail *waiter
	latest     time.Duration // the last arrival
	owners     map[string]*waiter
	timer      *time.Timer   // calls wake when the first of the grants may be over
	due        time.Duration // when timer fires; 0 = it does not run
}

// waiter is a place in line, or was until it got the key.
type waiter struct {
	req        lock.Request
	since      time.Duration // its arrival
	place      time.Duration // its arrival, or the last one, less the head start
	prev, next *waiter
	queued     bool
	callers    int           // Acquires that wait here: several only if one owner sent several
	ready      chan struct{} // closed when it leaves the line, whatever for
	grant      lock.Grant    // what it was handed last
	undone     bool          // by a Release without a token
	claimed    bool          // a request of its owner has the grant, or had it
}

// join puts req at the end of e's line, or at the place that its owner has already.
func (s *store) join(e *entry, req *lock.Request, now moment) (*waiter, error) {
	if e.line != nil {
		if w := e.line.owners[req.Owner]; w != nil {
			if w.req.Shared != req.Shared {
				return nil, errMode(req)
			}
			w.req = *req
			w.callers++
			s.touched(e.key)
			return w, nil
		}
	}
	w := &waiter{req: *req, since: now.at, callers: 1}
	s.queue(e, w, now)
	return w, nil
}

func (s *store) queue(e *entry, w *waiter, now moment) {
	if e.line == nil {
		e.line = &line{owners: make(map[string]*waiter)}
	}
	l := e.line
	w.queued, w.ready = true, make(chan struct{})
	l.latest = max(l.latest, now.at)
	w.place = l.latest - w.req.HeadStart
	l.insert(w)
	l.owners[w.req.Owner] = w
	s.arm(e, now)
	s.touched(e.key)
}

// insert puts w behind those with its place. It costs a step for each that w overtakes.
func (l *line) insert(w *waiter) {
	w.prev = l.tail
	for w.prev != nil && w.prev.place > w.place {
		w.next, w.prev = w.prev, w.prev.prev
	}
	if w.prev != nil {
		w.prev.next = w
	} else {
		l.head = w
	}
	if w.next != nil {
		w.next.prev = w
	} else {
		l.tail = w
	}
}

// behind reports whether a newcomer with that head start would not be the first in line.
func (l *line) behind(headStart time.Duration, now moment) bool {
	return l != nil && l.head.place <= max(l.latest, now.at)-headStart
}

// remove takes w out of the line and wakes its callers.
func (l *line) remove(w *waiter) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		l.head = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		l.tail = w.prev
	}
	w.prev, w.next, w.queued = nil, nil, false
	delete(l.owners, w.req.Owner)
	close(w.ready)
}

// advance hands e to the front of its line as far as that is compatible with who holds
// it: to one exclusive waiter, or to all shared ones up to the next exclusive one.
//
// It reads the clock anew: the moment of the step may be from before the waiter came, and
// as old as the mutex was waited for, which would be at the cost of the waiter's TTL.
func (s *store) advance(e *entry) {
	l := e.line
	if l == nil {
		return
	}
	for l.head != nil && e.compatible(l.head.req.Shared) {
		w := l.head
		l.remove(w)
		var h *hold
		w.grant, h = s.grant(e, &w.req, s.now())
		h.unclaimed = w
	}
	if l.head == nil {
		if l.timer != nil {
			l.timer.Stop()
		}
		e.line = nil
	}
}

// arm sees to it that e's line moves up when the first grant is over. A timer that is
// due earlier, since that grant was renewed, is left: it costs one look at the key for
// each TTL, where moving it would cost every renewal.
func (s *store) arm(e *entry, now moment) {
	l := e.line
	if l == nil || l.due != 0 && l.due <= e.soonest {
		return
	}
	l.due = e.soonest
	if l.timer != nil {
		l.timer.Reset(l.due - now.at)
		return
	}
	l.timer = time.AfterFunc(l.due-now.at, func() { s.wake(e.key) })
}

// wake is the timer's. The line may have dissolved and formed anew since it was started:
// then it was for nothing, which the refresh finds out.
func (s *store) wake(key string) {
	now := s.now()
	var lost notices
	s.mu.Lock()
	if e := s.keys[key]; e != nil && e.line != nil {
		e.line.due = 0
		s.refresh(key, now, &lost)
	}
	s.mu.Unlock()
	lost.tell()
}

// undo ends owner's place in e's line, if there is one, with ErrReleased.
func (e *entry) undo(owner string) {
	if e == nil || e.line == nil {
		return
	}
	if w := e.line.owners[owner]; w != nil {
		w.undone = true
		e.line.remove(w)
	}
}

// await waits at w until it has the key, ctx ends or the process closes.
func (l *Locker) await(ctx context.Context, w *waiter) (lock.Grant, error) {
	s := l.store
	s.mu.Lock()
	ready := w.ready
	s.mu.Unlock()
	for {
		select {
		case <-ready:
		case <-ctx.Done():
		case <-l.closed:
		}
		now, ended := s.now(), l.usable(ctx) // which may ask the store
		var t try
		var lost notices
		s.mu.Lock()
		ready = s.settle(&t, w, ended, now, &lost)
		s.mu.Unlock()
		lost.tell()
		if ready == nil {
			return t.result()
		}
	}
}

// settle decides what a caller that was woken at w gets, in t, or returns what it has to
// wait for next. ended is why it may not wait on, or nil.
func (s *store) settle(t *try, w *waiter, ended error, now moment, lost *notices) chan struct{} {
	e := s.refresh(w.req.Key, now, lost)
	h := e.find(w.req.Owner)
	switch {
	case w.undone:
		t.err = fmt.Errorf("%w: owner %q was released while it waited", lock.ErrReleased, w.req.Owner)
	case ended != nil:
		// The end of ctx may have met the hand-over, and the grant be here already. It
		// is passed on, not returned: the caller has said that it will not work, and
		// the next in line need not wait for it to release.
		e = s.leave(e, w, now, lost)
		t.refused, t.err, t.record = true, ended, e.record(w.req.Key, now)
		return nil
	case h != nil && h.token == w.grant.Token:
		h.unclaimed, w.claimed = nil, true
		t.grant = w.grant
	case h != nil: // its owner has asked again, and been quicker
		t.grant, t.err = e.regrant(h, &w.req, now)
		w.claimed = true
		s.arm(e, now)
		s.touched(e.key)
	case w.queued:
		return w.ready
	case w.claimed:
		t.err = fmt.Errorf("%w: another request of owner %q had the lock", lock.ErrReleased, w.req.Owner)
	case e.open(&w.req, now):
		// It was handed the key, and slept until the TTL was over, or somebody forced
		// it. It starts again as a newcomer: its turn has gone by.
		if e == nil {
			e = s.add(w.req.Key, now, lost)
		}
		w.grant, _ = s.grant(e, &w.req, now)
		t.grant, w.claimed = w.grant, true
	default:
		s.queue(e, w, now)
		return w.ready
	}
	w.callers--
	return nil
}

// leave gives up one caller's share in w, with the last one the place itself, or the
// grant that it was handed. It returns the entry as it is then.
func (s *store) leave(e *entry, w *waiter, now moment, lost *notices) *entry {
	w.callers--
	if w.callers > 0 {
		return e
	}
	if w.queued {
		e.line.remove(w)
	} else if h := e.find(w.req.Owner); h != nil && h.unclaimed == w {
		e.drop(h)
	}
	s.touched(w.req.Key)
	return s.refresh(w.req.Key, now, lost)
}
