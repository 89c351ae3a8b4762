package memory

import (
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
)

// store is what the Lockers of one New share. Most of its methods want mu held; those of
// Locker take it.
//
// One mutex serves all keys: with 128 callers on two cores sixteen of them were no
// faster, since the critical sections are short beside two readings of the clock.
type store struct {
	epoch time.Time // with a monotonic reading

	mu     sync.Mutex // guards all below, and the entries, lines and waiters of the keys
	last   lock.Token // the newest
	keys   map[string]*entry
	ring   []*entry // all of keys, in no order, for the sweep
	hand   int      // the place in ring where the sweep looked last
	forced map[claim]mark
	quota  int // of marks: as many as this are swept
	// watches has who is to be told of changes, by key.
	watches map[string]map[chan struct{}]struct{}
}

func newStore() *store {
	return &store{
		epoch:  time.Now(),
		keys:   make(map[string]*entry),
		forced: make(map[claim]mark),
		quota:  minQuota,

		watches: make(map[string]map[chan struct{}]struct{}),
	}
}

// moment is one reading of the clock. A call takes it before it takes the mutex: its
// grant may thereby end earlier by as long as it waited for that, and never later.
type moment struct {
	t  time.Time
	at time.Duration // t since the store's epoch, by the monotonic clock
}

func (s *store) now() moment {
	t := time.Now()
	return moment{t, t.Sub(s.epoch)}
}

const forever = time.Duration(math.MaxInt64)

// since is the time from at to m; none if m was read before a step that came first.
func (m moment) since(at time.Duration) time.Duration { return max(0, m.at-at) }

// entry is a key that is held or waited for. It is waited for only while it is held.
type entry struct {
	key     string
	place   int              // in the ring
	first   hold             // of no owner only in the middle of a step
	more    map[string]*hold // the other shared grants, by owner
	line    *line            // nil while nobody waits
	soonest time.Duration    // no grant ends before this
	top     lock.Token       // the newest token of this entry's time
}

// hold is a grant in the store. Times are since the store's epoch.
type hold struct {
	owner          string
	token          lock.Token
	start, expires time.Duration
	metadata       map[string]string // never changed
	lost           func(lock.LostReason)
	unclaimed      *waiter // whom it was handed to, until that one has noticed
	shared         bool
}

// find returns owner's grant, or nil. It may be over, unless e was refreshed.
func (e *entry) find(owner string) *hold {
	if e == nil {
		return nil
	}
	if e.first.owner == owner {
		return &e.first
	}
	return e.more[owner]
}

// drop takes h out of e. The pointers to e's holds are void from here on.
func (e *entry) drop(h *hold) {
	if h != &e.first {
		delete(e.more, h.owner)
		return
	}
	e.first = hold{}
	for owner, other := range e.more {
		e.first = *other
		delete(e.more, owner)
		break
	}
}

// compatible reports whether a grant of that mode may be live beside those of e.
func (e *entry) compatible(shared bool) bool {
	return e.first.owner == "" || shared && e.first.shared
}

// open reports whether a newcomer may have a grant: nobody is overtaken, except by its head start.
func (e *entry) open(req *lock.Request, now moment) bool {
	return e == nil || e.compatible(req.Shared) && !e.line.behind(req.HeadStart, now)
}

// extend moves h's end to expires.
func (e *entry) extend(h *hold, expires time.Duration) {
	h.expires = expires
	e.soonest = min(e.soonest, expires)
}

// grant gives e to req's owner. It mints the token and starts the TTL at now.
func (s *store) grant(e *entry, req *lock.Request, now moment) (lock.Grant, *hold) {
	s.last = mint(s.last, now.t)
	e.top = s.last
	h := &e.first
	if h.owner != "" {
		if e.more == nil {
			e.more = make(map[string]*hold)
		}
		h = new(hold)
		e.more[req.Owner] = h
	}
	*h = hold{
		owner: req.Owner, token: s.last, start: now.at,
		metadata: req.Metadata, lost: req.Lost, shared: req.Shared,
	}
	e.extend(h, now.at+req.TTL)
	s.touched(e.key)
	return h.grant(req, now), h
}

// regrant gives h to its owner once more, with the terms of req.
func (e *entry) regrant(h *hold, req *lock.Request, now moment) (lock.Grant, error) {
	if h.shared != req.Shared {
		return lock.Grant{}, errMode(req)
	}
	if h.unclaimed != nil {
		h.unclaimed.claimed = true
	}
	h.metadata, h.lost, h.unclaimed = req.Metadata, req.Lost, nil
	e.extend(h, max(h.expires, now.at+req.TTL)) // a renewal may have put it off by more
	return h.grant(req, now), nil
}

func errMode(req *lock.Request) error {
	return fmt.Errorf("%w: owner %q has key %q in the other mode: shared must be %t",
		lock.ErrInvalid, req.Owner, req.Key, !req.Shared)
}

func (h *hold) grant(req *lock.Request, start moment) lock.Grant {
	return lock.Grant{
		Key: req.Key, Owner: req.Owner, Token: h.token,
		TTL: req.TTL, Start: start.t, Shared: h.shared,
	}
}

// mint returns the token after last: the wall clock in µs if that is higher and in
// range, so that a clock which is centuries off leaves room to count on.
func mint(last lock.Token, now time.Time) lock.Token {
	if us := now.UnixMicro(); us > int64(last) && us <= int64(lock.MaxToken) {
		return lock.Token(us)
	}
	return last + 1
}

// refresh brings key up to now: what is over ends, and the line moves up. It returns
// nil when nobody holds the key.
func (s *store) refresh(key string, now moment, lost *notices) *entry {
	e := s.keys[key]
	if e == nil {
		return nil
	}
	if e.expire(now.at, lost) {
		s.touched(key)
	}
	s.advance(e)
	if e.first.owner == "" {
		s.remove(e)
		return nil
	}
	s.arm(e, now)
	return e
}

// expire ends the grants of e whose TTL is over, and reports whether there were any.
func (e *entry) expire(now time.Duration, lost *notices) (ended bool) {
	if now < e.soonest {
		return false
	}
	e.soonest = forever
	for _, h := range e.more {
		ended = !e.keep(h, now, lost) || ended
	}
	// After the others: whom drop moves to its place is live, and counted.
	if e.first.owner != "" {
		ended = !e.keep(&e.first, now, lost) || ended
	}
	return ended
}

// keep counts h in e.soonest if it is live at now, and drops it otherwise.
func (e *entry) keep(h *hold, now time.Duration, lost *notices) (live bool) {
	if now < h.expires {
		e.soonest = min(e.soonest, h.expires)
		return true
	}
	lost.add(h, lock.ReasonExpired)
	e.drop(h)
	return false
}

// add makes key's entry. It looks at two others, the next ones in the ring, so that
// abandoned keys, which nobody asks for any more, do not stay: of those that are over
// there are soon no more than of live ones, and no call pays for all at once.
func (s *store) add(key string, now moment, lost *notices) *entry {
	for range min(2, len(s.ring)) {
		if s.hand++; s.hand >= len(s.ring) {
			s.hand = 0
		}
		// A line has its timer, and hands over by that.
		if e := s.ring[s.hand]; e.line == nil && now.at >= e.soonest {
			s.refresh(e.key, now, lost)
		}
	}
	e := &entry{key: key, place: len(s.ring), soonest: forever}
	s.keys[key], s.ring = e, append(s.ring, e)
	return e
}

// remove takes e, which nobody holds, out of the store. The last of the ring fills its
// place.
func (s *store) remove(e *entry) {
	delete(s.keys, e.key)
	end := len(s.ring) - 1
	last := s.ring[end]
	s.ring[e.place], last.place = last, e.place
	s.ring[end] = nil
	s.ring = s.ring[:end]
}
