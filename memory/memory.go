// Package memory is the embedded store: locks among the goroutines of one process, with every
// feature that a real store has. Use it where no server is needed and to test an application. It
// is also the reference implementation of [lock.Locker].
//
//	client := lock.New(memory.New())
//
// # What it does
//
// The store grants exclusive and shared locks, notifies holders early of every loss, keeps
// metadata, and implements List and ForceRelease. Each key has a line. A release hands the key
// directly to the first in line, so nobody who comes later overtakes, not even a try, except by
// a head start. Shared requests next to each other in line are granted together; none of them
// overtakes an exclusive one in front of it. A waiter is a goroutine of this process and needs
// no heartbeat: it leaves the line when its call returns.
//
// A token is max(last token of the store + 1, wall clock in µs). No key has a counter of its
// own, so abandoned keys cost nothing. Tokens keep rising in the next store, even after the
// process restarts, unless the clock has gone back or the store has granted more than one key
// per µs. So a resource that outlives the process may go on comparing them.
//
// Time is the monotonic clock of the process. A timer notices an expiry that somebody waits for.
// The next access to the key notices any other, or a sweep, of which each new key does a little.
// Only waiters have a goroutine and a timer, so a store may be used in the [testing/synctest]
// bubble in which it was made.
//
// # What breaks it
//
// Nothing outside the process sees these locks, and they end with it. A machine that sleeps
// stops the monotonic clock on some systems. A grant then outlives its TTL by the wall clock,
// for its holder and for all others alike.
package memory

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
)

// MinTTL is the shortest TTL that the store takes. With a shorter one, the scheduler would
// decide how long a grant lasts.
const MinTTL = time.Millisecond

// Locker is one process on a store in memory. It is safe for concurrent use.
type Locker struct {
	store  *store
	closed chan struct{} // closed by Close
	once   sync.Once     // guards the closing of closed
}

var (
	_ lock.Locker  = (*Locker)(nil)
	_ lock.Admin   = (*Locker)(nil)
	_ lock.Watcher = (*Locker)(nil)
)

// New returns a Locker on a store of its own.
func New() *Locker { return open(newStore()) }

// Open returns another Locker on l's store, as a second process would be. They share their
// locks; closing one does not affect the other.
func (l *Locker) Open() *Locker { return open(l.store) }

func open(s *store) *Locker { return &Locker{store: s, closed: make(chan struct{})} }

// Close ends this Locker's waits with ErrClosed. All later calls return ErrClosed. Its grants
// remain until their TTL expires, as if the process had died; Lost is still called for them.
// Closing again does nothing.
func (l *Locker) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// usable returns ErrClosed after Close, else ctx's error.
func (l *Locker) usable(ctx context.Context) error {
	select {
	case <-l.closed:
		return lock.ErrClosed
	default:
		return ctx.Err()
	}
}

// Capabilities implements [lock.Locker]. It declares every feature. Tokens survive a restart,
// grants end with the process.
func (l *Locker) Capabilities() lock.Capabilities {
	return lock.Capabilities{
		Store:     "memory",
		Shared:    true,
		FIFO:      true,
		Priority:  true,
		Push:      true,
		EarlyLoss: true,
		MinTTL:    MinTTL,
		TokenSurvives: lock.SurvivesRelease | lock.SurvivesExpiry |
			lock.SurvivesRecordLoss | lock.SurvivesRestart,
		HoldSurvives: lock.SurvivesRelease | lock.SurvivesExpiry,
	}
}

// Acquire implements [lock.Locker]. When a try is refused, or when ctx or Close ends a wait, the
// error is a *HeldError with the record.
//
// An owner that acquires again what it holds gets the same grant, with its TTL restarted unless
// that would shorten it. An owner that already stands in line keeps its place. In both cases the
// new request's TTL, Metadata, Under and Lost replace the old ones. Asking for the other mode is
// ErrInvalid. If a Release without a token undoes its place, a wait ends with ErrReleased.
func (l *Locker) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := lock.CheckRequest(req, l.Capabilities()); err != nil {
		return lock.Grant{}, err
	}
	if err := l.usable(ctx); err != nil {
		return lock.Grant{}, err
	}
	req.Metadata = maps.Clone(req.Metadata)
	s, now := l.store, l.store.now()
	var t try
	var lost notices
	s.mu.Lock()
	s.attempt(&t, &req, now, &lost)
	s.mu.Unlock()
	lost.tell()
	if t.place == nil {
		return t.result()
	}
	if req.Waiting != nil {
		req.Waiting(detached(t.record))
	}
	return l.await(ctx, t.place)
}

// try is what one attempt to get a key came to: a refusal, a place in line, else a grant
// or an error.
type try struct {
	grant   lock.Grant
	err     error // of a refusal: what ended the wait, if there was one
	refused bool
	place   *waiter
	record  lock.Record // of a refusal, or of the holders and the line in front of place
}

// result is that of Acquire, for what is no place in line.
func (t *try) result() (lock.Grant, error) {
	if t.refused {
		return lock.Grant{}, &lock.HeldError{Record: detached(t.record), Err: t.err}
	}
	return t.grant, t.err
}

// attempt fills t. s.mu is held.
func (s *store) attempt(t *try, req *lock.Request, now moment, lost *notices) {
	e := s.refresh(req.Key, now, lost)
	if h := e.find(req.Owner); h != nil {
		t.grant, t.err = e.regrant(h, req, now)
		s.arm(e, now)
		s.touched(req.Key)
		return
	}
	switch {
	case e.open(req, now):
		if e == nil {
			e = s.add(req.Key, now, lost)
		}
		t.grant, _ = s.grant(e, req, now)
	case !req.Wait:
		t.refused, t.record = true, e.record(req.Key, now)
	default:
		if req.Waiting != nil {
			t.record = e.record(req.Key, now)
		}
		t.place, t.err = s.join(e, req, now)
	}
}

// Renew implements [lock.Locker]: it restarts the TTL at g.TTL. That may differ from the TTL so
// far; below [MinTTL] or above [lock.MaxTTL] it is ErrInvalid.
//
// If the grant is gone, the reason of the LostError is Forced until a forced grant's TTL would
// have run out, Taken if others hold the key, and Expired if g's own Start and TTL show that.
// Otherwise, as after its own Release, the reason is unknown.
func (l *Locker) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	if err := lock.CheckGrant(g); err != nil {
		return lock.Grant{}, err
	}
	if err := l.usable(ctx); err != nil {
		return lock.Grant{}, err
	}
	s, now := l.store, l.store.now()
	var lost notices
	s.mu.Lock()
	renewed, err := s.renew(g, now, &lost)
	s.mu.Unlock()
	lost.tell()
	return renewed, err
}

func (s *store) renew(g lock.Grant, now moment, lost *notices) (lock.Grant, error) {
	e := s.refresh(g.Key, now, lost)
	h := e.find(g.Owner)
	if h == nil || h.token != g.Token {
		return lock.Grant{}, s.lostError(e, g, now)
	}
	if g.TTL < MinTTL || g.TTL > lock.MaxTTL {
		return lock.Grant{}, fmt.Errorf("%w: TTL %v: store memory needs %v to %v", lock.ErrInvalid, g.TTL, MinTTL, lock.MaxTTL)
	}
	e.extend(h, now.at+g.TTL)
	s.arm(e, now)
	g.Start, g.Shared = now.t, h.shared
	return g, nil
}

// Release implements [lock.Locker]. When it returns, the first live waiter has the key. The
// reasons of a LostError are those of Renew.
func (l *Locker) Release(ctx context.Context, g lock.Grant) error {
	if err := lock.CheckGrant(g); err != nil {
		return err
	}
	if err := l.usable(ctx); err != nil {
		return err
	}
	s, now := l.store, l.store.now()
	var lost notices
	s.mu.Lock()
	err := s.release(g, now, &lost)
	s.mu.Unlock()
	lost.tell()
	return err
}

func (s *store) release(g lock.Grant, now moment, lost *notices) error {
	e := s.keys[g.Key]
	ended := false
	if h := e.find(g.Owner); h != nil && (h.token == g.Token || g.Token == 0) {
		// Before the refresh: an expired grant must not be told as lost by its own
		// release, whose result says it.
		ended = now.at < h.expires
		if h.unclaimed != nil {
			h.unclaimed.undone = true
		}
		e.drop(h)
	}
	if g.Token == 0 {
		e.undo(g.Owner)
	}
	s.touched(g.Key)
	e = s.refresh(g.Key, now, lost)
	if ended || g.Token == 0 {
		return nil
	}
	return s.lostError(e, g, now)
}

// Inspect implements [lock.Locker].
func (l *Locker) Inspect(ctx context.Context, key string) (lock.Record, error) {
	if err := lock.CheckKey(key); err != nil {
		return lock.Record{}, err
	}
	if err := l.usable(ctx); err != nil {
		return lock.Record{}, err
	}
	return l.inspect(key), nil
}

func (l *Locker) inspect(key string) lock.Record {
	s, now := l.store, l.store.now()
	var lost notices
	s.mu.Lock()
	rec := s.refresh(key, now, &lost).record(key, now)
	s.mu.Unlock()
	lost.tell()
	return detached(rec)
}
