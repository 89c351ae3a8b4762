package locktest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func observing() group {
	const (
		granted = "EventGranted is followed by exactly one EventLost, EventReleased or EventReleasedLost of the same Owner."
		waited  = "EventContended is followed by exactly one EventGranted or EventFailed of the same Owner."
		ends    = "A Do, TryDo, Lock or TryLock whose arguments are valid ends with an EventGranted or an EventFailed."
		free    = "Observe is called without a mutex and may call any method of Client and Lease."
	)
	return group{"Observer", []row{
		{"OfALease", granted, both, nil, observesLease},
		{"OfALoss", granted, both, needs(isAdmin), observesLoss},
		{"OfAWait", waited, both, nil, observesWait},
		{"OfAFailedWait", waited, both, nil, observesFailedWait},
		{"OfAFailure", ends, both, nil, observesFailure},
		{"MayCallTheClient", free, both, nil, observerCalls},
	}}
}

// observed waits until all of kinds have been seen of key, and checks that they were in
// that order, each once, and of one owner. It returns them.
func (e *env) observed(a actor, key string, kinds ...lock.EventKind) []lock.Event {
	e.Helper()
	var of []lock.Event
	e.eventually(fmt.Sprintf("the events %v", kinds), e.patience(), func() (bool, string) {
		of = a.seen.of(key)
		return len(of) >= len(kinds), fmt.Sprintf("%v", kindsOf(of))
	})
	if !slices.Equal(kindsOf(of), kinds) {
		e.fail(fmt.Sprintf("the events %v", kinds), "%v", kindsOf(of))
	}
	for _, ev := range of {
		if ev.Owner == "" || ev.Owner != of[0].Owner || ev.Shared != e.shared {
			e.fail(fmt.Sprintf("events of one owner, shared %t", e.shared), "%+v", of)
		}
	}
	return of
}

func kindsOf(es []lock.Event) (kinds []lock.EventKind) {
	for _, e := range es {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

func observesLease(e *env) {
	a, key := e.actor(), e.key()
	l := e.lockBy(a, key, e.with(e.long()))
	e.releases(l)
	for _, ev := range e.observed(a, key, lock.EventGranted, lock.EventReleased) {
		if ev.Token != l.Token() || ev.Err != nil {
			e.fail(fmt.Sprintf("%v with token %d and no error", ev.Kind, l.Token()), "%+v", ev)
		}
	}
}

func observesWait(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	h := e.lasting(b, e.rival(key))
	w := e.begin(e.ctx, a, key, e.with(e.long()))
	e.contended(a, key)
	e.mustRelease(h)
	e.await(w.inside, "the function of a Do that waits to run when the key is free")
	_ = w.leave(nil)
	e.observed(a, key, lock.EventContended, lock.EventGranted, lock.EventReleased)
}

func observesFailure(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	e.lasting(b, e.rival(key))
	err := e.asks("TryLock", func(ctx context.Context) error {
		_, err := a.TryLock(ctx, key, e.with(e.long())...)
		return err
	})
	if ev := e.observed(a, key, lock.EventFailed)[0]; !errors.Is(ev.Err, lock.ErrHeld) {
		e.fail(fmt.Sprintf("why the call has failed: %v", err), "%v", ev.Err)
	}
}

// observesFailedWait: a store that has not answered when the wait is over has shown no holder.
func observesFailedWait(e *env) {
	a, b := e.actor(), e.open()
	e.onceOf("Lock with WithWait to stand in line", func() bool {
		key := e.key()
		e.lasting(b, e.rival(key))
		err := e.asks("Lock with WithWait", func(ctx context.Context) error {
			_, err := a.Lock(ctx, key, e.with(e.long(), lock.WithWait(e.ttl))...)
			return err
		})
		if errors.Is(err, lock.ErrUnavailable) {
			return false
		}
		e.observed(a, key, lock.EventContended, lock.EventFailed)
		return true
	})
}

// observerCalls takes and releases another key in the middle of each event of the first.
func observerCalls(e *env) {
	a, key, other := e.actor(), e.key(), e.key()
	a.seen.hook(func(ev lock.Event) {
		if ev.Key != key {
			return
		}
		l, err := a.TryLock(e.ctx, other, e.with(e.long())...)
		if err != nil {
			e.report("an Observer to lock a free key", "%v", err)
			return
		}
		if err := l.Release(e.ctx); err != nil {
			e.report("an Observer to release a lease", "%v", err)
		}
	})
	l := e.lockBy(a, key, e.with(e.long()))
	e.releases(l)
	e.observed(a, key, lock.EventGranted, lock.EventReleased)
	e.eventually("two events of each lease that the Observer had", e.patience(), func() (bool, string) {
		n := a.seen.count(other, lock.EventReleased)
		return n == 2 && a.seen.count(other, lock.EventGranted) == 2, fmt.Sprintf("%d releases", n)
	})
}

func observesLoss(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	l := e.lockBy(a, key, e.with(e.long()))
	ctx := l.Context()
	e.evict(b, key)
	e.learns(l)
	_ = e.lostBy(ctx)
	_ = e.call("Lease.Release", l.Release)
	time.Sleep(e.tick())
	var lost *lock.LostError
	if ev := e.observed(a, key, lock.EventGranted, lock.EventLost)[1]; !errors.As(ev.Err, &lost) || ev.Token != l.Token() {
		e.fail(fmt.Sprintf("a *LostError, and token %d", l.Token()), "%+v", ev)
	}
}
