package locktest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func doingAll() group {
	const (
		runs    = "DoAll runs fn while it holds all keys, and releases them: also if fn panics or calls runtime.Goexit, and also if ctx has ended."
		ordered = "It takes them one after the other in the order of their bytes, whatever order they are given in, each once. So calls of DoAll never deadlock with each other."
		given   = "fn gets the leases in the order of keys; a key that is given twice has its one lease in both places."
		none    = "DoAll gets all keys or none. If one cannot be had, the others are given back in the background, and the *Error names the one that was in the way: with that, [Refused] reports true if somebody else holds it."
		whole   = "[WithWait] bounds the whole."
		renewed = "Keys that DoAll has already are renewed while it waits for others."
		again   = "If one of them is lost, fn has not run yet, so DoAll gives all back and begins again, within the same wait; without a wait it returns ErrLost."
		loss    = "fn's ctx ends with ctx and with the lease that is lost, or released by fn, first. DoAll returns what Do does: fn's error as it is, joined once with a loss, however many were lost."
		nested  = "A key that ctx holds already, or one that sorts before a key that ctx holds, is ErrDeadlock at once: ctx holds the keys of each Do and DoAll of this Client from whose fn it comes."
		empty   = "No keys are ErrInvalid."
	)
	return group{"DoAll", []row{
		{"HoldsAll", runs, both, nil, doAllHolds},
		{"ReleasesAfterPanicAndGoexit", runs, both, nil, doAllEnds},
		{"LeasesAreInOrder", given, both, nil, doAllInOrder},
		{"NeverDeadlocks", ordered, plain, nil, doAllInARing},
		{"AllOrNone", none, both, nil, doAllOrNone},
		{"WaitBoundsTheWhole", whole, both, nil, doAllWaits},
		{"RenewsWhileItWaits", renewed, both, nil, doAllRenews},
		{"BeginsAgainAfterALoss", again, both, needs(isAdmin), doAllBeginsAgain},
		{"LossIsJoinedOnce", loss, both, needs(isAdmin), doAllJoinsLoss},
		{"OutOfOrderIsDeadlock", nested, both, nil, doAllNested},
		{"NoKeys", empty, plain, nil, doAllOfNothing},
	}}
}

// some are n of the case's keys, in the order of their bytes.
func (e *env) some(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = e.key()
	}
	slices.Sort(keys)
	return keys
}

// all is a client whose Do is a DoAll of keys. Its function has the lease of the first of
// them; got has all.
type all struct {
	client
	keys []string
	got  *[]lease
}

func allOf(a actor, keys ...string) all { return all{a.client, keys, new([]lease)} }

func (a all) Do(ctx context.Context, _ string, fn doFunc, opts ...lock.Option) error {
	return a.DoAll(ctx, a.keys, func(ctx context.Context, ls []lease) error {
		*a.got = ls
		return fn(ctx, ls[0])
	}, opts...)
}

// notRunAll is a function of a DoAll that must not get all keys.
func (e *env) notRunAll(ctx context.Context, _ []lease) error { return e.notRun(ctx, nil) }

// doAllHolds ends ctx while the function runs, as doWaits does.
func doAllHolds(e *env) {
	a, b, keys := e.actor(), e.open(), e.some(3)
	ctx, cancel := context.WithCancel(e.ctx)
	w := e.do(ctx, allOf(a, keys[1], keys[2], keys[0]), "", e.with(e.long()))
	cancel()
	e.await(w.ctx.Done(), "the function's ctx to end with DoAll's")
	time.Sleep(e.ttl / 2)
	w.goesOn()
	for _, key := range keys {
		e.mustBeHeld(b, e.rival(key))
	}
	if err := w.leave(errWork); !same(err, errWork) {
		e.fail(fmt.Sprintf("what the function returned, unwrapped: %v", errWork), "%v", err)
	}
	for _, key := range keys {
		e.freed(b, key)
	}
}

func doAllEnds(e *env) {
	a, b, keys := e.actor(), e.open(), e.some(2)
	for _, end := range []func(){func() { panic(errWork) }, runtime.Goexit} {
		done := make(chan struct{})
		e.start(func() {
			defer close(done)
			defer func() { _ = recover() }()
			_ = a.DoAll(e.ctx, keys, func(context.Context, []lease) error { end(); return nil }, e.with(e.long())...)
		})
		e.await(done, "the goroutine of a DoAll whose function panics or exits to end")
		for _, key := range keys {
			e.freed(b, key)
		}
	}
}

func doAllInOrder(e *env) {
	a, keys := e.actor(), e.some(3)
	as := allOf(a, keys[2], keys[0], keys[1], keys[0])
	w := e.do(e.ctx, as, "", e.with(e.long()))
	var got []string
	for _, l := range *as.got {
		got = append(got, l.Key())
		if err := l.Err(); err != nil {
			e.fail("leases that are held", "%v", err)
		}
	}
	if !slices.Equal(got, as.keys) {
		e.fail(fmt.Sprintf("leases of %q", as.keys), "of %q", got)
	}
	if twice := (*as.got)[1].Token(); (*as.got)[3].Token() != twice {
		e.fail(fmt.Sprintf("one lease of a key that is given twice, with token %d", twice), "another, with token %d", (*as.got)[3].Token())
	}
	if err := w.leave(nil); err != nil {
		e.fail("nil, as the function returned", "%v", err)
	}
}

// doAllInARing has two wait, who name the keys the other way round, until both are free:
// whoever takes them as they are named gets one each.
func doAllInARing(e *env) {
	b, keys := e.open(), e.some(2)
	first, second := e.lasting(b, e.rival(keys[0])), e.lasting(b, e.rival(keys[1]))
	done := make(chan error, 2)
	for _, named := range [][]string{{keys[0], keys[1]}, {keys[1], keys[0]}} {
		a := e.actor()
		e.start(func() {
			done <- a.DoAll(e.ctx, named, func(context.Context, []lease) error { return nil }, e.with(e.long())...)
		})
		e.eventually("an EventContended when a wait begins", e.patience(), func() (bool, string) {
			return a.seen.count(keys[0], lock.EventContended)+a.seen.count(keys[1], lock.EventContended) > 0, "none"
		})
	}
	e.mustRelease(first)
	e.mustRelease(second)
	for range 2 {
		select {
		case err := <-done:
			if err != nil {
				e.fail("DoAll to get both keys when they are free", "%v", err)
			}
		case <-time.After(e.patience()):
			e.fail("two calls of DoAll for two keys to get them in turn", "they have not, in %v", e.patience())
		}
	}
}

func doAllOrNone(e *env) {
	a, b, keys := e.actor(), e.open(), e.some(3)
	e.lasting(b, e.rival(keys[1]))
	err := e.asks("DoAll", func(ctx context.Context) error {
		return a.DoAll(ctx, []string{keys[2], keys[1], keys[0]}, e.notRunAll, e.with(e.long(), lock.WithWait(0))...)
	})
	e.onlyHeld("DoAll", err)
	if !lock.Refused(err, keys[1]) || lock.Refused(err, keys[0]) || lock.Refused(err, keys[2]) {
		e.fail(fmt.Sprintf("a refusal that names %q", keys[1]), "%v", err)
	}
	e.freed(b, keys[0])
	e.free(b, keys[2])
}

// doAllWaits: the first key is free after three quarters of the wait, the second never.
func doAllWaits(e *env) {
	a, b, keys := e.actor(), e.open(), e.some(2)
	e.lasting(b, e.rival(keys[1]))
	wait := 2 * e.ttl
	e.fastest("DoAll to give up when its one wait is over", wait+wait/2, func() time.Duration {
		first := e.lasting(b, e.rival(keys[0]))
		done := make(chan time.Duration, 1)
		e.start(func() {
			begun := time.Now()
			err := a.DoAll(e.ctx, keys, e.notRunAll, e.with(e.long(), lock.WithWait(wait))...)
			if !errors.Is(err, lock.ErrHeld) && !errors.Is(err, lock.ErrUnavailable) {
				e.report("ErrHeld, or ErrUnavailable if there was no time left for the second key", "%v", err)
			}
			done <- time.Since(begun)
		})
		time.Sleep(wait / 4 * 3)
		e.mustRelease(first)
		took := <-done
		if took < wait {
			e.fail(fmt.Sprintf("DoAll to wait for %v", wait), "it returned after %v", took)
		}
		e.freed(b, keys[0])
		return took
	})
}

// doAllRenews waits for the second key for several TTLs.
func doAllRenews(e *env) {
	b := e.open()
	e.onceOf("a key to be renewed while another is waited for, for several TTLs", func() bool {
		a, keys := e.actor(), e.some(2)
		second := e.lasting(b, e.rival(keys[1]))
		done := make(chan error, 1)
		e.start(func() {
			done <- a.DoAll(e.ctx, keys, func(context.Context, []lease) error { return nil }, e.with(2*e.ttl)...)
		})
		e.contended(a, keys[1])
		time.Sleep(5 * e.ttl)
		renewed := a.seen.count(keys[0], lock.EventRenewed) > 0 && a.seen.count(keys[0], lock.EventLost) == 0
		if renewed {
			e.mustBeHeld(b, e.rival(keys[0]))
		}
		e.mustRelease(second)
		select {
		case err := <-done:
			if errors.Is(err, lock.ErrLost) {
				return false
			}
			if err != nil {
				e.fail("DoAll to get both keys when they are free", "%v", err)
			}
		case <-time.After(e.patience()):
			e.fail("DoAll to get both keys when they are free", "it has not, in %v", e.patience())
		}
		return renewed
	})
}

// doAllBeginsAgain has the first key forced while the second is waited for.
func doAllBeginsAgain(e *env) {
	b := e.open()
	e.onceOf("the function to run with leases that are held", func() bool {
		a, keys := e.actor(), e.some(2)
		second := e.lasting(b, e.rival(keys[1]))
		as := allOf(a, keys...)
		w := e.begin(e.ctx, as, "", e.with(e.learning()))
		e.contended(a, keys[1])
		evicted := e.evicts(b, keys[0])
		e.eventually("an EventLost of a key that is forced", e.patience(), func() (bool, string) {
			return a.seen.count(keys[0], lock.EventLost) > 0, "none"
		})
		e.mustRelease(second)
		e.await(w.inside, "the function of a DoAll that begins again to run when all keys are free")
		for i, l := range *as.got {
			rec := e.mustInspect(b, keys[i])
			if l.Err() != nil {
				evicted = false // the machine did not get to renew it, or it is an old one
			} else if len(rec.Holders) != 1 || rec.Holders[0].Token != l.Token() {
				e.fail(fmt.Sprintf("a lease of %q with token %d to be held", keys[i], l.Token()), "the store has %+v", rec.Holders)
			}
		}
		err := w.leave(nil)
		if err != nil && !errors.Is(err, lock.ErrLost) {
			e.fail("nil, as the function returned", "%v", err)
		}
		return evicted && err == nil
	})
}

func doAllJoinsLoss(e *env) {
	a, b, keys := e.actor(), e.open(), e.some(3)
	for _, want := range []error{nil, errWork} {
		as := allOf(a, keys...)
		w := e.do(e.ctx, as, "", e.with(e.long()))
		for _, i := range []int{0, 2} {
			e.evict(b, keys[i])
			e.learns((*as.got)[i])
		}
		_ = e.lostBy(w.ctx)
		err := w.leave(want)
		var of *lock.Error
		if !errors.As(err, &of) || of.Key != keys[0] && of.Key != keys[2] || lossesIn(err) != 1 {
			e.fail(fmt.Sprintf("an *Error of %q or %q with one *LostError", keys[0], keys[2]), "%v", err)
		}
		if want != nil && !errors.Is(err, want) {
			e.fail(fmt.Sprintf("the function's error beside the loss: %v", want), "%v", err)
		}
		e.freed(b, keys[1])
	}
	as := allOf(a, keys...)
	w := e.do(e.ctx, as, "", e.with(e.long()))
	e.evict(b, keys[1])
	e.learns((*as.got)[1])
	lost := e.lostBy(w.ctx)
	if err := w.leave(lost); !same(err, error(lost)) {
		e.fail(fmt.Sprintf("a loss once that the function has returned: %v", lost), "%v", err)
	}
}

// lossesIn counts the *LostErrors in err.
func lossesIn(err error) (n int) {
	if _, ok := err.(*lock.LostError); ok { //nolint:errorlint // the tree is walked
		return 1
	}
	switch e := err.(type) { //nolint:errorlint // the tree is walked
	case interface{ Unwrap() error }:
		return lossesIn(e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			n += lossesIn(err)
		}
	}
	return n
}

func doAllNested(e *env) {
	a, keys := e.actor(), e.some(5)
	nop := func(context.Context, []lease) error { return nil }
	refuses := func(w *work, keys ...string) {
		e.Helper()
		err := e.within(w, "DoAll", func(ctx context.Context) error {
			return a.DoAll(ctx, keys, e.notRunAll, e.with(e.long())...)
		})
		if !errors.Is(err, lock.ErrDeadlock) {
			e.fail(fmt.Sprintf("ErrDeadlock from a nested DoAll of %q", keys), "%v", err)
		}
	}
	w := e.do(e.ctx, allOf(a, keys[1], keys[3]), "", e.with(e.long()))
	refuses(w, keys[0], keys[4])
	refuses(w, keys[2])
	refuses(w, keys[4], keys[3])
	for _, key := range []string{keys[1], keys[3]} {
		err := e.within(w, "Do", func(ctx context.Context) error { return a.Do(ctx, key, e.notRun, e.with(e.long())...) })
		if !errors.Is(err, lock.ErrDeadlock) {
			e.fail("ErrDeadlock from a nested Do of a key that DoAll holds", "%v", err)
		}
	}
	if err := e.within(w, "DoAll", func(ctx context.Context) error {
		return a.DoAll(ctx, keys[4:], nop, e.with(e.long())...)
	}); err != nil {
		e.fail("a nested DoAll of a key that sorts after those of the outer one to run", "%v", err)
	}
	_ = w.leave(nil)
	w = e.do(e.ctx, a, keys[1], e.with(e.long()))
	refuses(w, keys[0])
	_ = w.leave(nil)
}

func doAllOfNothing(e *env) {
	a := e.actor()
	err := e.call("DoAll", func(ctx context.Context) error {
		return a.DoAll(ctx, nil, func(context.Context, []lease) error { return nil })
	})
	if !errors.Is(err, lock.ErrInvalid) {
		e.fail("ErrInvalid from a DoAll of no keys", "%v", err)
	}
}
