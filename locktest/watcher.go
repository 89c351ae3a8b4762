package locktest

import (
	"context"
	"errors"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func watcher() group {
	const (
		tells = "Watch calls changed once it can tell of every change of key from then on, and again after each: when anybody gets key, loses it or lets it go, joins the line or leaves it."
		quiet = "It must make no request while nothing changes, and call changed under no mutex, by one goroutine at a time, and not after it has returned."
		ends  = "It returns only with an error: ctx's, ErrInvalid, ErrClosed, ErrUnsupported where this Locker does not push, and else the store's, as soon as it knows that changes may have been missed, as by a connection that broke."
	)
	return group{"Watcher", []row{
		{"Holders", tells, both, needs(isWatcher), watcherOfHolders},
		{"AtOnce", tells, plain, needs(isWatcher), watcherAtOnce},
		{"Line", tells, both, needs(isWatcher, declares("FIFO", hasFIFO)), watcherOfLine},
		{"Forced", tells, both, needs(isWatcher, isAdmin), watcherOfForce},
		{"AnotherKey", quiet, plain, needs(isWatcher), watcherOfAnother},
		{"EndOfContext", ends, plain, needs(isWatcher), watcherIsCanceled},
		{"InvalidKey", ends, plain, needs(isWatcher), watcherInvalid},
		{"Severed", ends, plain, needs(isWatcher, can(Sever)), watcherSevered},
	}}
}

// isWatcher is the need of a [lock.Watcher].
func isWatcher(e *env) string {
	w, ok := lock.As[lock.Watcher](e.first)
	if !ok {
		return "store " + e.caps.Store + " has no lock.Watcher"
	}
	ctx, cancel := context.WithTimeout(e.ctx, e.patience())
	defer cancel()
	if err := w.Watch(ctx, e.key(), cancel); errors.Is(err, lock.ErrUnsupported) {
		return "store " + e.caps.Store + " does not push changes here"
	}
	return ""
}

// ear is a Watch that goes on beside the case.
type ear struct {
	e     *env
	calls chan struct{} // of changed, as far as there is room
	done  chan struct{}
	err   error // Watch's; set when done is closed
}

// hears begins a Watch by l, and returns when it tells of changes.
func (e *env) hears(ctx context.Context, l lock.Locker, key string) *ear {
	e.Helper()
	const many = 1000
	x := &ear{e: e, calls: make(chan struct{}, many), done: make(chan struct{})}
	w, _ := lock.As[lock.Watcher](l)
	e.start(func() {
		defer close(x.done)
		x.err = w.Watch(ctx, key, func() {
			select {
			case x.calls <- struct{}{}:
			default:
			}
		})
	})
	x.told("that it can tell of changes")
	return x
}

// told waits for a call of changed.
func (x *ear) told(what string) {
	x.e.Helper()
	timer := time.NewTimer(x.e.patience())
	defer timer.Stop()
	select {
	case <-x.calls:
	case <-x.done:
		x.e.fail("Watch to tell "+what, "it has returned %v", x.err)
	case <-timer.C:
		x.e.fail("Watch to tell "+what, "it has not, in %v", x.e.patience())
	}
}

// quiet forgets the calls so far, once there have been none for a while: some changes are told
// twice.
func (x *ear) quiet() {
	for begun := time.Now(); time.Since(begun) < x.e.patience(); {
		select {
		case <-x.calls:
		case <-time.After(x.e.ttl / 4):
			return
		}
	}
}

func watcherOfHolders(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	x := e.hears(e.ctx, a, key)
	for range 3 {
		x.quiet()
		h := e.mustAcquire(b, e.request(key))
		x.told("of a grant")
		x.quiet()
		e.mustRelease(h)
		x.told("of a release")
	}
}

// watcherAtOnce: the first call says that whatever happens from then on is told.
func watcherAtOnce(e *env) {
	a, b := e.open(), e.open()
	for range 5 {
		key := e.key()
		ctx, cancel := context.WithCancel(e.ctx)
		x := e.hears(ctx, a, key)
		h := e.mustAcquire(b, e.request(key))
		x.told("of a grant that came just after its first call")
		e.mustRelease(h)
		cancel()
		e.await(x.done, "Watch to return when its ctx ends")
	}
}

func watcherOfLine(e *env) {
	a, b, c, key := e.open(), e.open(), e.open(), e.key()
	e.lasting(b, e.rival(key))
	x := e.hears(e.ctx, a, key)
	x.quiet()
	ctx, cancel := context.WithCancel(e.ctx)
	req := e.request(key)
	req.Wait = true
	done := make(chan struct{})
	e.start(func() {
		defer close(done)
		_, _ = c.Acquire(ctx, req)
	})
	x.told("of a waiter who joins the line")
	x.quiet()
	cancel()
	e.await(done, "Acquire to return when its ctx ends")
	e.mustUndo(c, key, req.Owner)
	x.told("of a waiter who leaves the line")
}

func watcherOfForce(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.hold(b, key)
	x := e.hears(e.ctx, a, key)
	x.quiet()
	e.force(a, h)
	x.told("of a loss")
}

// watcherOfAnother: the calls are for the key, not for whatever happens. It is a fault of
// cost, so a few are let pass.
func watcherOfAnother(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	x := e.hears(e.ctx, a, key)
	x.quiet()
	for range 20 {
		e.free(b, e.key())
	}
	time.Sleep(e.ttl / 4)
	if n := len(x.calls); n > 10 {
		e.fail("Watch not to tell of other keys", "%d calls, for 20 other keys", n)
	}
}

func watcherIsCanceled(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	ctx, cancel := context.WithCancel(e.ctx)
	x := e.hears(ctx, a, key)
	cancel()
	e.await(x.done, "Watch to return when its ctx ends")
	if !errors.Is(x.err, context.Canceled) {
		e.fail("context.Canceled from Watch", "%v", x.err)
	}
	x.quiet()
	e.free(b, key)
	time.Sleep(e.ttl / 4)
	if len(x.calls) > 0 {
		e.fail("no call of changed once Watch has returned", "one")
	}
}

func watcherInvalid(e *env) {
	w, _ := lock.As[lock.Watcher](e.open())
	err := e.call("Watch", func(ctx context.Context) error { return w.Watch(ctx, "", func() {}) })
	if !errors.Is(err, lock.ErrInvalid) {
		e.fail("ErrInvalid from a Watch of the key \"\"", "%v", err)
	}
}

func watcherSevered(e *env) {
	a, key := e.open(), e.key()
	x := e.hears(e.ctx, a, key)
	e.fault(Sever, a)
	e.await(x.done, "Watch to return when nothing can come from the store any more")
	if x.err == nil || errors.Is(x.err, context.Canceled) {
		e.fail("an error of the store from Watch", "%v", x.err)
	}
}
