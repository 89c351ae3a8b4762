package locktest

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func closing() group {
	const (
		ends    = "New calls get ErrClosed, and so do those that wait; the contexts of all leases end, with ErrClosed as their cause."
		waits   = "Close waits for the functions of Do, keeping their leases renewed. Then it releases all leases, and returns when the store has confirmed that, and all releases that were under way or had failed before."
		givesUp = "If ctx ends before, Close returns an error that wraps ctx's."
	)
	return group{"Close", []row{
		{"NewCalls", ends, plain, nil, closeRefuses},
		{"Waiters", ends, both, nil, closeEndsWaits},
		{"Leases", ends, both, nil, closeEndsLeases},
		{"WaitsForFunctions", waits, both, nil, closeWaits},
		{"KeepsRenewing", waits, both, nil, closeRenews},
		{"WaitsForReleases", waits, both, nil, closeReleases},
		{"GivesUp", givesUp, plain, nil, closeGivesUp},
	}}
}

// closes closes a beside the case.
func (e *env) closes(a actor) <-chan error {
	done := make(chan error, 1)
	e.start(func() { done <- a.Close(e.ctx) })
	return done
}

// closed waits for a Close.
func (e *env) closed(done <-chan error) {
	e.Helper()
	select {
	case err := <-done:
		if err != nil {
			e.fail("a nil error from Close", "%v", err)
		}
	case <-time.After(e.patience()):
		e.fail("Close to return when nothing is held any more", "it has not, in %v", e.patience())
	}
}

func closeRefuses(e *env) {
	a, key := e.actor(), e.key()
	e.freeBy(a)
	e.closed(e.closes(a))
	for _, m := range []clientCall{
		{"Do", func(ctx context.Context) error { return a.Do(ctx, key, e.notRun) }},
		{"TryDo", func(ctx context.Context) error { return a.TryDo(ctx, key, e.notRun) }},
		{"Lock", func(ctx context.Context) error { _, err := a.Lock(ctx, key); return err }},
		{"TryLock", func(ctx context.Context) error { _, err := a.TryLock(ctx, key); return err }},
		{"DoAll", func(ctx context.Context) error { return a.DoAll(ctx, []string{key}, e.notRunAll) }},
		{"Lead", func(ctx context.Context) error { return a.Lead(ctx, key, e.notRun) }},
		{"Watch", func(ctx context.Context) (err error) {
			for _, err = range a.Watch(ctx, key) {
				break
			}
			return err
		}},
	} {
		if err := e.call(m.name, m.call); !errors.Is(err, lock.ErrClosed) {
			e.fail("ErrClosed from "+m.name+" after Close", "%v", err)
		}
	}
	e.closed(e.closes(a)) // again
}

func closeEndsWaits(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	h := e.lasting(b, e.rival(key))
	done := e.locks(e.ctx, a, key)
	e.contended(a, key)
	closing := e.closes(a)
	select {
	case err := <-done:
		if !errors.Is(err, lock.ErrClosed) {
			e.fail("ErrClosed from a call that waits when its Client is closed", "%v", err)
		}
	case <-time.After(e.patience()):
		e.fail("a call that waits to end when its Client is closed", "it has not, in %v", e.patience())
	}
	e.closed(closing)
	e.only(b, h)
}

func closeEndsLeases(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	l := e.lockBy(a, key, e.with(e.long()))
	ctx := l.Context()
	e.closed(e.closes(a))
	if !errors.Is(l.Err(), lock.ErrClosed) || !errors.Is(context.Cause(ctx), lock.ErrClosed) {
		e.fail("ErrClosed from Err, and as the cause of the context", "%v, and %v", l.Err(), context.Cause(ctx))
	}
	e.free(b, key)
}

func closeWaits(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	w := e.do(e.ctx, a, key, e.with(e.long()))
	done := e.closes(a)
	e.await(w.ctx.Done(), "the function's ctx to end when its Client is closed")
	if cause := context.Cause(w.ctx); !errors.Is(cause, lock.ErrClosed) {
		e.fail("ErrClosed as the cause of the function's ctx", "%v", cause)
	}
	time.Sleep(e.ttl / 2)
	w.goesOn()
	select {
	case err := <-done:
		e.fail("Close to wait for the functions of Do", "it has returned before, with %v", err)
	default:
	}
	e.mustBeHeld(b, e.rival(key))
	_ = w.leave(nil)
	e.closed(done)
	e.free(b, key)
}

// closeRenews: the function goes on for longer than a TTL.
func closeRenews(e *env) {
	e.onceOf("the lease to be renewed while Close waits for the function", func() bool {
		a, key := e.actor(), e.key()
		w := e.do(e.ctx, a, key, e.with(3*e.ttl))
		done := e.closes(a)
		e.await(w.ctx.Done(), "the function's ctx to end when its Client is closed")
		begun, before := time.Now(), a.seen.count(key, lock.EventRenewed)
		renewed := false
		for !renewed && time.Since(begun) < 6*e.ttl {
			time.Sleep(e.tick())
			renewed = a.seen.count(key, lock.EventRenewed) > before+1
		}
		_ = w.leave(nil)
		e.closed(done)
		return renewed
	})
}

// errTrouble is the error of a store in trouble.
var errTrouble = errors.New("the store is in trouble")

// ailing is a process whose store fails a call, or does not answer it, at a case's will.
type ailing struct {
	lock.Locker
	acquire func() error
	release func(ctx context.Context) error
}

func (a *ailing) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if a.acquire != nil {
		return lock.Grant{}, a.acquire()
	}
	return a.Locker.Acquire(ctx, req)
}

func (a *ailing) Release(ctx context.Context, g lock.Grant) error {
	if a.release != nil {
		if err := a.release(ctx); err != nil {
			return err
		}
	}
	return a.Locker.Release(ctx, g)
}

func (a *ailing) Unwrap() lock.Locker { return a.Locker }

// closeReleases: the store fails a release, and does not answer the next one for a while.
func closeReleases(e *env) {
	var sent atomic.Int64
	again, answers := make(chan struct{}), make(chan struct{})
	a := e.actorOn(&ailing{Locker: e.open(), release: func(ctx context.Context) error {
		switch sent.Add(1) {
		case 1:
			return errTrouble
		case 2:
			close(again)
		}
		select {
		case <-answers:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}})
	b, key := e.open(), e.key()
	l := e.lockBy(a, key, e.with(e.long()))
	if err := e.call("Lease.Release", l.Release); err == nil {
		e.fail("the store's error from a Release that fails", "nil")
	}
	e.await(again, "a release that failed to be tried again")
	done := e.closes(a)
	time.Sleep(e.ttl / 2)
	select {
	case err := <-done:
		e.fail("Close to wait for a release that had failed before", "it has returned, with %v", err)
	default:
	}
	close(answers)
	e.closed(done)
	e.free(b, key)
}

func closeGivesUp(e *env) {
	a, key := e.actor(), e.key()
	w := e.do(e.ctx, a, key, e.with(e.long()))
	ended, cancel := context.WithCancel(e.ctx)
	cancel()
	err := e.call("Close", func(context.Context) error { return a.Close(ended) })
	if !errors.Is(err, context.Canceled) {
		e.fail("context.Canceled from a Close whose ctx has ended, while a function runs", "%v", err)
	}
	_ = w.leave(nil)
}
