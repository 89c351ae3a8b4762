package locktest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func doing() group {
	const (
		waits   = "Do waits for key as long as [WithWait] and ctx allow, runs fn while it holds key, and releases it: also if fn panics or calls runtime.Goexit, and also if ctx has ended."
		returns = "Do returns fn's error as it is."
		joined  = "If the lock was lost before fn returned, the work was not protected to its end, and the error is an *Error that wraps the *LostError and fn's error; if fn's error wraps that loss already, it is returned as it is."
		early   = "fn's ctx ends with ctx and with the lease, whichever is first. When a TTL runs out, it ends before the store can give the lock to anybody else."
	)
	return group{"Do", []row{
		{"Releases", returns, both, nil, doReleases},
		{"WaitsForItsFunction", waits, both, nil, doWaits},
		{"ReleasesAfterPanic", waits, both, nil, doPanics},
		{"ReleasesAfterGoexit", waits, both, nil, doExits},
		{"LossIsJoined", joined, both, needs(isAdmin), doJoinsLoss},
		{"ForceReleaseIsALoss", early, both, needs(isAdmin), doEndsByForce},
		{"EndsInTimeDuringAFreeze", early, both, needs(can(Freeze)), doEndsWhenFrozen},
	}}
}

func doReleases(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	for _, want := range []error{nil, errWork} {
		w := e.do(e.ctx, a, key, e.with(e.long()))
		e.mustBeHeld(b, e.rival(key))
		if err := w.leave(want); !same(err, want) {
			e.fail(fmt.Sprintf("what the function returned, unwrapped: %v", want), "%v", err)
		}
		e.freed(b, key)
	}
}

// doWaits ends ctx while the function runs: whoever releases then lets another in beside
// the work.
func doWaits(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	ctx, cancel := context.WithCancel(e.ctx)
	w := e.do(ctx, a, key, e.with(e.long()))
	cancel()
	e.await(w.ctx.Done(), "the function's ctx to end with Do's")
	time.Sleep(e.ttl / 2)
	w.goesOn()
	e.mustBeHeld(b, e.rival(key))
	if err := w.leave(nil); err != nil {
		e.fail("nil, as the function returned", "%v", err)
	}
	e.freed(b, key)
}

func doPanics(e *env) { e.doEnds(func() { panic(errWork) }) }
func doExits(e *env)  { e.doEnds(runtime.Goexit) }

// doEnds has the function of a Do not return.
func (e *env) doEnds(end func()) {
	a, b, key := e.actor(), e.open(), e.key()
	done := make(chan struct{})
	e.start(func() {
		defer close(done)
		defer func() { _ = recover() }()
		_ = a.Do(e.ctx, key, func(context.Context, lease) error { end(); return nil }, e.with(e.long())...)
	})
	e.await(done, "the goroutine of a Do whose function panics or exits to end")
	e.freed(b, key)
}

func doJoinsLoss(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	for _, want := range []error{nil, errWork} {
		w := e.do(e.ctx, a, key, e.with(e.long()))
		e.evict(b, key)
		e.learns(w.lease)
		_ = e.lostBy(w.ctx)
		err := w.leave(want)
		var of *lock.Error
		var lost *lock.LostError
		if !errors.As(err, &of) || of.Key != key || !errors.As(err, &lost) {
			e.fail("an *Error with a *LostError", "%v", err)
		}
		if want != nil && !errors.Is(err, want) {
			e.fail(fmt.Sprintf("the function's error beside the loss: %v", want), "%v", err)
		}
	}
	w := e.do(e.ctx, a, key, e.with(e.long()))
	e.evict(b, key)
	e.learns(w.lease)
	lost := e.lostBy(w.ctx)
	if err := w.leave(lost); !same(err, error(lost)) {
		e.fail(fmt.Sprintf("a loss once that the function has returned: %v", lost), "%v", err)
	}
}

func doEndsByForce(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	e.onceOf(fmt.Sprintf("the reason %v or %v", lock.ReasonForced, lock.ReasonTaken), func() bool {
		w := e.do(e.ctx, a, key, e.with(e.learning()))
		evicted := e.evicts(b, key)
		lost := e.lostBy(w.ctx)
		if !errors.Is(w.lease.Err(), lock.ErrLost) {
			e.fail("the Err of a lease that is lost to be a *LostError", "%v", w.lease.Err())
		}
		_ = w.leave(nil)
		return evicted && forced(lost)
	})
	e.freed(b, key)
}

// doEndsWhenFrozen: from when the store is frozen no renewal can succeed, so by the store's
// clock the grant is over a TTL later, and another may have it as soon as it thaws.
func doEndsWhenFrozen(e *env) {
	e.fastest("the function's ctx to end when the store is frozen", e.ttl, func() time.Duration {
		a, key := e.actor(), e.key()
		w := e.do(e.ctx, a, key, e.with(e.ttl))
		heal := e.fault(Freeze, a.l)
		frozen := time.Now()
		var ended time.Time
		noted := make(chan struct{})
		context.AfterFunc(w.ctx, func() { ended = time.Now(); close(noted) })
		e.await(noted, "the function's ctx to end when the store is frozen")
		_ = e.lostBy(w.ctx)
		heal()
		if err := w.leave(nil); !errors.Is(err, lock.ErrLost) {
			e.fail("the loss from Do", "%v", err)
		}
		return ended.Sub(frozen)
	})
}
