// Package memory is the embedded store: locks among the goroutines of one process,
// with everything that a real store has. It is the default where no server is needed,
// the store to test an application with, and the reference implementation of
// [lock.Locker].
//
//	client := lock.New(memory.New())
//
// # What it does
//
// Exclusive and shared grants; a line for each key, served in the order of arrival by
// direct hand-over, so that nobody who comes later overtakes, by a try neither; early
// notice of every loss; metadata, List and ForceRelease. Shared requests that stand
// behind one another are granted together, and none of them overtakes a waiting
// exclusive one. A waiter is a goroutine of this process and needs no heartbeat: its
// place in line goes when its call does.
//
// Tokens are max(last token of the store + 1, wall clock in µs). No key has a counter
// of its own, so abandoned keys cost nothing, and tokens rise beyond the life of the
// store as well, if the clock has not gone back and the store has granted less than one
// key per µs: a resource that outlives the process may go on comparing them.
//
// Time is the monotonic clock of the process. An expiry that somebody waits for is
// noticed by a timer, any other by the next access to the key, or by a sweep of which
// each new key does a little. There is no goroutine and no timer beside those of the
// waiters, so a store may be used in a [testing/synctest] bubble, if it was made there.
//
// # What breaks it
//
// Nothing outside the process sees these locks, and they end with it. A machine that
// sleeps stops the monotonic clock on some systems: a grant then lives longer than its
// TTL by the wall clock, for its holder and for all others alike.
package memory

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
)

// MinTTL is the shortest TTL that the store takes: below it the scheduler, not the TTL,
// would decide how long a grant is worth something.
const MinTTL = time.Millisecond

// Locker is one process on a store in memory. It is safe for concurrent use.
type Locker struct {
	store  *store
	closed chan struct{} // closed by Close
	once   sync.Once     // guards the closing of closed
}

var (
	_ lock.Locker = (*Locker)(nil)
	_ lock.Admin  = (*Locker)(nil)
)

// New returns a Locker on a store of its own.
func New() *Locker { return open(newStore()) }

// Open returns one more process on l's store. It shares l's locks, and neither's Close
// touches the other.
func (l *Locker) Open() *Locker { return open(l.store) }

func open(s *store) *Locker { return &Locker{store: s, closed: make(chan struct{})} }

// Close ends the waits of this process with an error that is ErrClosed, and so every
// call from now on. What it holds stays until the TTL is over, as what a process holds
// that went away; Lost is still called for it. Close again does nothing.
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

// Capabilities declares everything but what no store in one process can keep: grants
// end with the process.
func (l *Locker) Capabilities() lock.Capabilities {
	return lock.Capabilities{
		Store:     "memory",
		Shared:    true,
		FIFO:      true,
		Push:      true,
		EarlyLoss: true,
		MinTTL:    MinTTL,
		TokenSurvives: lock.SurvivesRelease | lock.SurvivesExpiry |
			lock.SurvivesRecordLoss | lock.SurvivesRestart,
		HoldSurvives: lock.SurvivesRelease | lock.SurvivesExpiry,
	}
}

// Acquire implements [lock.Locker]. The error of a refused try, and of a wait that ctx
// or Close ended, is a *HeldError with the record.
//
// An owner that acquires again what it holds gets the same grant with its TTL restarted,
// and one that stands in line joins its own place; the newer request's TTL, Metadata and
// Lost take over. Asking for the other mode is ErrInvalid. A wait whose place is undone
// by a Release without a token ends with ErrReleased.
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
		return
	}
	switch {
	case e.open(req.Shared):
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

// Renew implements [lock.Locker]: it restarts the TTL at g.TTL, which may differ from
// that of the grant so far and is ErrInvalid below [MinTTL] and above [lock.MaxTTL].
//
// The LostError of a grant that is gone has the reason Forced until the forced grant's
// TTL would have been over, Taken when others hold the key, and Expired when g's own
// times say so. Otherwise, as after an own Release, there is none.
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

// Release implements [lock.Locker]. The first live waiter has the key when it returns.
// The reasons of a LostError are those of Renew.
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
