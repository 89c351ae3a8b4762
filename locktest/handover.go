package locktest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// handovers are about what passes from a holder to a waiter, and what must not.
func handovers() []group {
	const (
		ttl    = "TTL is how long the grant lives if it is not renewed, at most MaxTTL."
		meta   = "Metadata says who and why; Inspect shows it."
		one    = "One owner, one grant. Inside one Acquire a store may send its request again after an unknown outcome; it must end up with one grant and one token."
		verify = "After any wait the claim must be verified, and Start taken before the verification was sent."
		passes = "Nobody passes a waiting writer. Where FIFO is declared, a shared try must be refused while an exclusive waiter is in line, and an exclusive one while anybody is."
	)
	return []group{
		{"ExpiryIsTheStores", []row{
			{"AfterALongerTTL", ttl, both, nil, func(e *env) { e.handedOver(e.open(), e.open(), e.long(), e.ttl) }},
			{"AfterAShorterTTL", ttl, both, nil, func(e *env) { e.handedOver(e.open(), e.open(), e.ttl, 3*e.ttl) }},
			{"AfterALongerTTLInOneProcess", ttl, both, nil, func(e *env) { l := e.open(); e.handedOver(l, l, e.long(), e.ttl) }},
			{"AfterAShorterTTLInOneProcess", ttl, both, nil, func(e *env) { l := e.open(); e.handedOver(l, l, e.ttl, 3*e.ttl) }},
		}},
		{"Inspect", []row{{"MetadataAfterAWait", meta, both, nil, metadataAfterWait}}},
		{"OneOwnerOneGrant", []row{{"ReleaseBeforeAWaiterOfItsOwn", one, both, needs(can(LoseReply)), releaseBeforeOwnWaiter}}},
		{"StartIsEarly", []row{{"LateReplyToTheReleaser", verify, both, needs(can(LoseReply)), startOfOwnWaiter}}},
		{"Capabilities", []row{{"TriesDuringAHandOver", passes, both, needs(declares("FIFO", hasFIFO)), unlessLate(triesDuringHandOver)}}},
	}
}

// handedOver has a waiter on b follow a holder on a with another TTL. The grant must be
// over when its own TTL is, neither before nor later.
func (e *env) handedOver(a, b lock.Locker, holderTTL, waiterTTL time.Duration) {
	e.Helper()
	observer := e.open()
	e.attempts(func() bool {
		before := e.rival(e.key())
		before.TTL = holderTTL
		h := e.mustAcquire(a, before)
		req := e.request(before.Key)
		req.TTL = waiterTTL
		w := e.ask(e.ctx, b, waiting(req))
		select {
		case <-w.waiting:
		case <-w.done: // h was over before that: there was nobody to wait for
		case <-time.After(e.patience()):
		}
		waited := w.calls.Load() > 0
		if err := e.tryRelease(a, h.g); err != nil && live(h) {
			e.fail("a nil error from the Release of a live grant", "%v", err)
		}
		e.watch([]*watched{{h: w.granted(), observer: observer}})
		return waited
	})
}

func metadataAfterWait(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	for _, l := range []lock.Locker{a, b} {
		blocker := e.lasting(a, e.rival(key))
		req := e.request(key)
		req.Metadata = odd()
		w := e.wait(l, req)
		e.mustRelease(blocker)
		h := w.granted()
		if got := holder(e.mustInspect(b, key), h.g.Owner); got == nil || !maps.Equal(got.Metadata, odd()) {
			e.fail(fmt.Sprintf("%s to hold the key, with the metadata %q", h.g.Owner, odd()), "%+v", got)
		}
		e.mustRelease(h)
	}
}

// releaseBeforeOwnWaiter: whatever the reply to a release says of the waiter behind it,
// that one must have its grant without it.
func releaseBeforeOwnWaiter(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.mustAcquire(a, e.rival(key))
	w := e.wait(a, e.request(key))
	heal := e.fault(LoseReply, a)
	ctx, cancel := context.WithTimeout(e.ctx, e.ttl/2)
	defer cancel()
	err := e.call("Release", func(context.Context) error { return a.Release(ctx, h.g) })
	if err == nil {
		e.skip("the fault did not bite: Release was answered")
	}
	heal()
	e.eventually("an answer to Release after the fault", e.recovery(), func() (bool, string) {
		err := e.tryRelease(a, h.g)
		return err == nil || errors.Is(err, lock.ErrLost), fmt.Sprint(err)
	})
	next := w.grantedWithin(e.patience())
	if err := e.settledRenewal(next); err != nil {
		e.fail("a nil error from the Renew of a live grant", "%v", err)
	}
	e.one(b, next)
	e.mustBeHeld(b, e.rival(key))
	e.mustRelease(next)
	e.vacant(b, key)
}

// startOfOwnWaiter: the key passed when the release took effect, not when its reply came.
func startOfOwnWaiter(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.mustAcquire(a, e.rival(key))
	w := e.wait(a, e.brief(key))
	heal := e.fault(LoseReply, a)
	released := make(chan error, 1)
	e.start(func() {
		ctx, cancel := context.WithTimeout(e.ctx, 2*e.patience())
		defer cancel()
		released <- a.Release(ctx, h.g)
	})
	time.Sleep(e.ttl / 2)
	early := len(released) > 0
	heal()
	switch err := <-released; {
	case err != nil: // the waiter had the only connection, and there was no other
		e.settledUndo(a, key, h.g.Owner)
	case early:
		e.skip("the fault did not bite: Release was answered")
	}
	e.outlives(b, w.grantedWithin(2*e.patience()+e.recovery()))
}

func triesDuringHandOver(e *env) {
	e.noneOvertakes(e.rival(e.key()), e.request, e.rival)
}

// noneOvertakes has several wait behind a holder, with requests of waiter's, and
// newcomers in each process try without a pause while they are served. The last of the
// line still holds the key when the newcomers stop, so that none of them may come in.
func (e *env) noneOvertakes(holder lock.Request, waiting, newcomer func(key string) lock.Request) {
	e.Helper()
	ls := []lock.Locker{e.open(), e.open(), e.open(), e.open()}
	key := holder.Key
	blocker := e.lasting(ls[0], holder)
	var line []*waiter
	for i := range 4 {
		line = append(line, e.wait(ls[i], waiting(key)))
	}
	line = append(line, e.wait(ls[0], e.rival(key)))
	ctx, stop := context.WithCancel(e.ctx)
	defer stop()
	var began, ended sync.WaitGroup
	for i, l := range ls {
		began.Add(1)
		ended.Add(1)
		e.start(func() {
			defer ended.Done()
			time.Sleep(time.Duration(i) * e.ttl / 20000) // not all in step
			e.keepTrying(ctx, l, func() lock.Request { return newcomer(key) }, sync.OnceFunc(began.Done))
		})
	}
	began.Wait()
	for _, w := range line {
		e.mustRelease(blocker)
		blocker = w.granted()
		time.Sleep(e.ttl / 100)
	}
	stop()
	ended.Wait()
	e.mustRelease(blocker)
}

// keepTrying tries until ctx ends, and reports a grant. It calls tried after each. It slows down
// where a hand-over takes long: fake time would go on in a million steps.
func (e *env) keepTrying(ctx context.Context, l lock.Locker, request func() lock.Request, tried func()) {
	defer tried()
	pause := e.ttl / 50000 // for stores in fake time that take none
	for n := 0; ctx.Err() == nil; n++ {
		if n == 2000 {
			pause = e.ttl / 100
		}
		req := request()
		g, err := l.Acquire(ctx, req)
		tried()
		if !errors.Is(err, lock.ErrHeld) {
			if err == nil {
				e.report("no grant to a newcomer while others stand in line", "one with token %d, shared %t", g.Token, g.Shared)
			}
			undo, cancel := context.WithTimeout(e.ctx, e.patience())
			_ = l.Release(undo, lock.Grant{Key: req.Key, Owner: req.Owner})
			cancel()
		}
		time.Sleep(pause)
	}
}
