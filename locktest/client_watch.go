package locktest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func watches() group {
	const (
		yields   = "Watch yields key's Record now and whenever it may have changed."
		last     = "A state may be skipped, the last one never is."
		expiry   = "So an expiry shows half a second after the store's ExpirySlack at the latest."
		outlives = "After that Watch outlives the store's trouble, and yields ErrUnavailable only when the store has not answered for [Patience]."
		ends     = "ErrInvalid, ErrUnsupported, ErrClosed and ctx's error end it at once."
		leaves   = "Leaving the loop ends all that runs for it."
	)
	return group{"Watch", []row{
		{"Now", yields, both, nil, watchNow},
		{"Changes", yields, both, nil, watchChanges},
		{"Line", yields, both, needs(declares("FIFO", hasFIFO)), watchLine},
		{"LastState", last, plain, nil, watchLast},
		{"DeadHolder", expiry, both, needs(can(Sever)), watchDead},
		{"Freeze", outlives, plain, needs(can(Freeze)), watchFrozen},
		{"Restart", outlives, plain, needs(can(Restart)), watchRestarted},
		{"EndOfContext", ends, plain, nil, watchIsCanceled},
		{"Close", ends, plain, nil, watchIsClosed},
		{"InvalidKey", ends, plain, nil, watchInvalid},
		{"Left", leaves, plain, nil, watchLeft},
	}}
}

// sight is a loop over a Watch that goes on beside the case.
type sight struct {
	e    *env
	done chan struct{}
	err  error // what was yielded last, or nil; set when done is closed

	mu   sync.Mutex // guards the rest
	seen int        // Records
	last lock.Record
}

// follow begins a loop, and returns when the first Record has come. first, if not nil, is the
// body of the first round.
func (e *env) follow(ctx context.Context, c client, key string, first func()) *sight {
	e.Helper()
	s := &sight{e: e, done: make(chan struct{})}
	e.start(func() {
		defer close(s.done)
		for rec, err := range c.Watch(ctx, key) {
			if s.err = err; err != nil {
				continue
			}
			s.mu.Lock()
			s.last = rec
			s.seen++
			n := s.seen
			s.mu.Unlock()
			if n == 1 && first != nil {
				first()
			}
		}
	})
	s.shows("a first Record", func(r lock.Record) bool { return r.Key == key })
	return s
}

// shows waits until the last Record is as it should.
func (s *sight) shows(want string, ok func(lock.Record) bool) {
	s.e.Helper()
	s.showsWithin(want, s.e.patience(), ok)
}

func (s *sight) showsWithin(want string, limit time.Duration, ok func(lock.Record) bool) {
	s.e.Helper()
	s.e.eventually("Watch to yield "+want, limit, func() (bool, string) {
		select {
		case <-s.done:
			s.e.fail("Watch to yield "+want, "it has ended with %v", s.err)
		default:
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.seen > 0 && ok(s.last), fmt.Sprintf("%d Records, the last of which is %+v", s.seen, s.last)
	})
}

// showsHolder waits until h is the only holder.
func (s *sight) showsHolder(h held) {
	s.e.Helper()
	s.shows(fmt.Sprintf("%s as the holder with token %d", h.g.Owner, h.g.Token), func(r lock.Record) bool {
		return len(r.Holders) == 1 && r.Holders[0].Owner == h.g.Owner && r.Holders[0].Token == h.g.Token
	})
}

func vacantIn(r lock.Record) bool { return r.HolderCount == 0 && len(r.Holders) == 0 }

func (s *sight) showsNobody() {
	s.e.Helper()
	s.shows("nobody as the holder", vacantIn)
}

// end waits for the end of the loop, and returns the error that was yielded last.
func (s *sight) end() error {
	s.e.Helper()
	s.e.await(s.done, "Watch to end")
	return s.err
}

func watchNow(e *env) {
	e.needsInspect()
	a, b, key := e.actor(), e.open(), e.key()
	req := e.request(key)
	req.Metadata = map[string]string{"address": "10.0.0.7:80"}
	h := e.lasting(b, req)
	s := e.follow(e.ctx, a, key, nil)
	s.showsHolder(h)
	s.shows("the holder's metadata", func(r lock.Record) bool {
		return r.Holders[0].Metadata["address"] == req.Metadata["address"]
	})
}

func watchChanges(e *env) {
	e.needsInspect()
	a, b, key := e.actor(), e.open(), e.key()
	s := e.follow(e.ctx, a, key, nil)
	s.showsNobody()
	for range 2 {
		h := e.hold(b, key)
		s.showsHolder(h)
		e.mustRelease(h)
		s.showsNobody()
	}
}

func watchLine(e *env) {
	e.needsInspect()
	a, b, c, key := e.actor(), e.open(), e.actor(), e.key()
	e.lasting(b, e.rival(key))
	s := e.follow(e.ctx, a, key, nil)
	ctx, cancel := context.WithCancel(e.ctx)
	_ = e.locks(ctx, c, key)
	s.shows("a waiter", func(r lock.Record) bool { return r.WaiterCount == 1 && len(r.Waiters) == 1 })
	cancel()
	s.shows("nobody in line", func(r lock.Record) bool { return r.WaiterCount == 0 })
}

// watchLast changes the key at every stage of a Watch: while its first round is in the body,
// and while the store is being asked to tell; and more often than anybody can look.
func watchLast(e *env) {
	e.needsInspect()
	a, b := e.actor(), e.open()
	early := e.key()
	s := e.follow(e.ctx, a, early, func() {
		req := e.request(early)
		if _, err := b.Acquire(e.ctx, req); err != nil {
			e.report("a grant of a key that is free", "%v", err)
		}
	})
	s.shows("the holder who came during the first round", func(r lock.Record) bool { return r.HolderCount == 1 })
	for d := time.Millisecond; d < time.Second/4; d *= 3 {
		key := e.key()
		s := e.follow(e.ctx, a, key, nil)
		time.Sleep(d)
		h := e.hold(b, key)
		s.showsHolder(h)
		e.mustRelease(h)
		for range 5 {
			h = e.hold(b, key)
			e.mustRelease(h)
		}
		s.showsNobody()
		for range 5 {
			e.mustRelease(e.hold(b, key))
		}
		s.showsHolder(e.hold(b, key))
	}
}

func watchDead(e *env) {
	e.needsInspect()
	a, b, key := e.actor(), e.open(), e.key()
	h := e.mustAcquire(b, e.brief(key))
	s := e.follow(e.ctx, a, key, nil)
	e.fault(Sever, b)
	s.showsWithin("nobody as the holder, who is dead", h.g.TTL+e.caps.ExpirySlack+e.patience(), vacantIn)
}

func watchFrozen(e *env) {
	e.needsInspect()
	a, b, key := e.actor(), e.open(), e.key()
	s := e.follow(e.ctx, a, key, nil)
	h := e.hold(b, key)
	s.showsHolder(h)
	heal := e.fault(Freeze, a.l)
	time.Sleep(e.ttl)
	heal()
	e.settledRelease(h)
	s.showsWithin("nobody as the holder", e.recovery(), vacantIn)
}

func watchRestarted(e *env) {
	e.needsInspect()
	a, b, key := e.actor(), e.open(), e.key()
	s := e.follow(e.ctx, a, key, nil)
	s.showsNobody()
	e.trouble(Restart, a.l)
	h, err := e.settled(b, e.request(key))
	if err != nil {
		e.fail("a grant after the restart", "%v", err)
	}
	s.showsWithin("the holder who came after the restart", e.recovery(), func(r lock.Record) bool {
		return len(r.Holders) == 1 && r.Holders[0].Owner == h.g.Owner
	})
}

func watchIsCanceled(e *env) {
	a, key := e.actor(), e.key()
	ctx, cancel := context.WithCancel(e.ctx)
	s := e.follow(ctx, a, key, nil)
	cancel()
	if err := s.end(); !errors.Is(err, context.Canceled) {
		e.fail("context.Canceled as the last thing that is yielded", "%v", err)
	}
}

func watchIsClosed(e *env) {
	a, key := e.actor(), e.key()
	s := e.follow(e.ctx, a, key, nil)
	if err := e.call("Close", a.Close); err != nil {
		e.fail("a nil error from Close", "%v", err)
	}
	if err := s.end(); !errors.Is(err, lock.ErrClosed) {
		e.fail("ErrClosed as the last thing that is yielded", "%v", err)
	}
}

func watchInvalid(e *env) {
	a := e.actor()
	err := e.call("Watch", func(ctx context.Context) (last error) {
		for _, err := range a.Watch(ctx, "") {
			last = err
		}
		return last
	})
	if !errors.Is(err, lock.ErrInvalid) {
		e.fail("ErrInvalid from a Watch of the key \"\"", "%v", err)
	}
}

// watchLeft leaves loops at several stages. That nothing stays behind is for a leak test to
// see; that leaving takes no time, and spoils nothing, is seen here.
func watchLeft(e *env) {
	e.needsInspect()
	a, b, key := e.actor(), e.open(), e.key()
	for d := time.Duration(0); d < time.Second/4; d = 3*d + time.Millisecond {
		err := e.call("a loop that is left", func(ctx context.Context) error {
			for _, err := range a.Watch(ctx, key) {
				time.Sleep(d)
				return err
			}
			return errors.New("Watch has yielded nothing")
		})
		if err != nil {
			e.fail("a Watch to yield a Record", "%v", err)
		}
	}
	s := e.follow(e.ctx, a, key, nil)
	s.showsHolder(e.hold(b, key))
}
