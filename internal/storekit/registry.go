package storekit

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-215fdefa/lock"
)

// Mailbox is where the wake-ups of one waiter arrive, and its grant if the release of another
// holder in this process brought it. Senders never block.
type Mailbox struct {
	wakeups chan struct{} // has room for one: one that was not seen yet is as good as two
	grants  chan Handover // has room for one

	mu      sync.Mutex // guards granted; taken after those of who delivers
	granted func()     // if not nil, is called when there is a grant, maybe twice
}

// Handover is a grant by a release in this process: its reply is the proof, for which Start
// was taken before the release was sent.
type Handover struct {
	Token lock.Token
	Start time.Time
}

// NewMailbox returns an empty Mailbox.
func NewMailbox() *Mailbox {
	return &Mailbox{wakeups: make(chan struct{}, 1), grants: make(chan Handover, 1)}
}

// Wake has the waiter claim. It is a hint.
func (m *Mailbox) Wake() {
	select {
	case m.wakeups <- struct{}{}:
	default:
	}
}

// Deliver passes a grant to the waiter. If that has given up, its undo, which is sent after
// that, finds the grant.
func (m *Mailbox) Deliver(h Handover) {
	select {
	case m.grants <- h:
	default: // it has this grant already
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.granted != nil {
		m.granted()
	}
}

// onGrant has f called when a grant comes, or at once if there is one that nobody has taken. It replaces
// the last one; nil is none. f does not block.
func (m *Mailbox) onGrant(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.granted = f
	if f != nil && len(m.grants) > 0 {
		f()
	}
}

// Registry has who waits in this Locker and who wants to hear of a loss, by owner. It is safe
// for concurrent use.
type Registry struct {
	deaf atomic.Bool // wake-ups do not arrive

	mu      sync.Mutex // guards the rest; held for no I/O and no callback
	waiters map[string]*Mailbox
	holders map[string]holder
	held    uint64 // the number of the last holder
	sweepAt int    // how many holders are enough to look for dead ones
}

// holder is who has a grant, or asks for one, and wants to hear of its loss.
type holder struct {
	number uint64
	lost   func(lock.LostReason)
	until  time.Time // the end of the grant; zero while it is asked for
}

func (h holder) over(now time.Time) bool { return !h.until.IsZero() && now.After(h.until) }

// NewRegistry returns an empty Registry.
func NewRegistry() *Registry {
	return &Registry{waiters: make(map[string]*Mailbox), holders: make(map[string]holder)}
}

// Join registers a waiter until Leave.
func (r *Registry) Join(owner string) *Mailbox {
	m := NewMailbox()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiters[owner] = m
	return m
}

// Leave forgets a waiter, but not one of the same owner that has joined since.
func (r *Registry) Leave(owner string, m *Mailbox) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiters[owner] == m {
		delete(r.waiters, owner)
	}
}

// Hold registers a holder's callback, which may be nil, before its grant can be forced. It is
// called until Drop, or until the end that Keep has told. Now and then those are forgotten
// whose grants ended without a release. It returns the holder's number.
func (r *Registry) Hold(owner string, lost func(lock.LostReason)) (number uint64) {
	if lost == nil {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held++
	r.holders[owner] = holder{number: r.held, lost: lost}
	if len(r.holders) < r.sweepAt {
		return r.held
	}
	now := time.Now()
	for o, h := range r.holders {
		if h.over(now) {
			delete(r.holders, o)
		}
	}
	r.sweepAt = max(64, 2*len(r.holders))
	return r.held
}

// Keep tells when g, which was granted or renewed, ends.
func (r *Registry) Keep(g lock.Grant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h, ok := r.holders[g.Owner]; ok {
		h.until = g.Start.Add(g.TTL)
		r.holders[g.Owner] = h
	}
}

// Renewed returns what Renew does after a reply that came to err: g, which it keeps, or an error.
// It drops the holder if that is a loss of which the reason is known. Else a notice of it may be on
// its way.
func (r *Registry) Renewed(g lock.Grant, err error) (lock.Grant, error) {
	if err == nil {
		r.Keep(g)
		return g, nil
	}
	var lost *lock.LostError
	if errors.As(err, &lost) && lost.Reason != 0 {
		r.Drop(g.Owner)
	}
	return lock.Grant{}, err
}

// Drop forgets a holder: its callback is not called any more, unless that has begun.
func (r *Registry) Drop(owner string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.holders, owner)
}

// Failed is Drop of the holder of that number, but not of one that the owner has become since.
func (r *Registry) Failed(owner string, number uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.holders[owner].number == number {
		delete(r.holders, owner)
	}
}

// Lost calls the callback of a holder, if it has one, and forgets it, so that it is called at
// most once.
func (r *Registry) Lost(owner string, reason lock.LostReason) {
	r.mu.Lock()
	h := r.holders[owner]
	delete(r.holders, owner)
	r.mu.Unlock()
	if h.lost != nil {
		h.lost(reason)
	}
}

// Wake has owner, if it waits here, claim.
func (r *Registry) Wake(owner string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.waiters[owner]; m != nil {
		m.Wake()
	}
}

// WakeAll has all waiters look: a wake-up may have been lost.
func (r *Registry) WakeAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.waiters {
		m.Wake()
	}
}

// Deliver passes a grant to owner, if it waits here.
func (r *Registry) Deliver(owner string, h Handover) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.waiters[owner]; m != nil {
		m.Deliver(h)
	}
}

// The payloads of notifications. Stores write them in scripts and functions, too.
const (
	wakePayload   = "wake "
	forcedPayload = "forced "
)

// Heard takes the payload of a notification, "wake OWNER" or "forced OWNER". It ignores others.
func (r *Registry) Heard(payload string) {
	if owner, ok := strings.CutPrefix(payload, wakePayload); ok {
		r.Wake(owner)
	} else if owner, ok := strings.CutPrefix(payload, forcedPayload); ok {
		r.Lost(owner, lock.ReasonForced)
	}
}

// Recheck is how long a waiter with that TTL may go without a look.
func (r *Registry) Recheck(ttl time.Duration) time.Duration { return Recheck(ttl, r.deaf.Load()) }

// setDeaf notes whether wake-ups arrive, and has all waiters look if that has changed.
func (r *Registry) setDeaf(deaf bool) (changed bool) {
	if r.deaf.Swap(deaf) == deaf {
		return false
	}
	r.WakeAll()
	return true
}

// idle reports whether there is nobody to tell anything. It forgets holders whose grants have ended, up
// to the first that lives.
func (r *Registry) idle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiters) > 0 {
		return false
	}
	now := time.Now()
	for o, h := range r.holders {
		if !h.over(now) {
			return false
		}
		delete(r.holders, o)
	}
	return true
}
