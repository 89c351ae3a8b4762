package locktest

import (
	"context"
	"fmt"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func failure() group {
	const nothing = "Failure leaves nothing. An Acquire that returned an error must leave no grant and no place in line once the undo, a Release without a token, has arrived. If the undo can overtake its own late request, the grant must at worst end a TTL after it took effect."
	return group{"FailureLeavesNothing", []row{
		{"RefusedTry", nothing, both, nil, refusedTry},
		{"CanceledWaiter", nothing, both, nil, canceledWaiter},
		{"CanceledAtTheHead", nothing, both, nil, canceledAtTheHead},
		{"CanceledLastWaiter", nothing, both, nil, canceledLastWaiter},
		{"CanceledTogether", nothing, both, nil, canceledTogether},
		{"LateReply", nothing, both, needs(canWithhold), failedByLateReply},
		{"Freeze", nothing, both, needs(can(Freeze)), failedByFreeze},
	}}
}

// refusedTry: ErrHeld is an outcome that is known, so nothing needs to be undone.
func refusedTry(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.lasting(a, e.rival(key))
	for range 3 {
		e.mustBeHeld(b, e.request(key))
	}
	if rec := e.mustInspect(a, key); len(rec.Waiters) > 0 {
		e.fail("no place in line for those who did not ask to wait", "%+v", rec.Waiters)
	}
	e.mustRelease(h)
	e.vacant(b, key)
}

// canceledWaiter leaves from between two others.
func canceledWaiter(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	blocker := e.lasting(a, e.rival(key))
	first, left, last := e.wait(b, e.request(key)), e.wait(b, e.request(key)), e.wait(a, e.request(key))
	left.withdraw()
	e.undone(b, a, key, left.h.req.Owner)
	e.mustRelease(blocker)
	// Stores without FIFO may serve them in any order.
	e.served(first, last)
	e.vacant(b, key)
}

// served checks that each of the waiters gets the key, and releases it for them. It returns
// the one that got it last.
func (e *env) served(ws ...*waiter) (last *waiter) {
	e.Helper()
	results := make(chan *waiter, len(ws))
	for _, w := range ws {
		e.start(func() { <-w.done; results <- w })
	}
	for range ws {
		select {
		case last = <-results:
			e.mustRelease(last.granted())
		case <-time.After(e.patience()):
			e.fail("all who wait to be served in turn", "the key is free, and nobody got it in %v", e.patience())
		}
	}
	return last
}

func canceledAtTheHead(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	blocker := e.lasting(a, e.rival(key))
	left, behind := e.wait(b, e.request(key)), e.wait(a, e.request(key))
	e.mustRelease(blocker)
	left.cancel()
	left.returned("Acquire to return when its ctx ends", e.patience())
	// It may have had the grant before its ctx ended. What it did not return, it undoes.
	e.mustUndo(b, key, left.h.req.Owner)
	e.mustRelease(behind.granted())
	e.vacant(b, key)
}

// canceledLastWaiter: the key must not wait for who has left.
func canceledLastWaiter(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	blocker := e.lasting(a, e.rival(key))
	left := e.wait(b, e.request(key))
	left.withdraw()
	e.undone(b, a, key, left.h.req.Owner)
	e.mustRelease(blocker)
	e.vacant(a, key)
}

func canceledTogether(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	blocker := e.lasting(a, e.rival(key))
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	var left []*waiter
	for range 5 {
		left = append(left, e.waitFor(ctx, b, e.request(key)))
	}
	cancel()
	for _, w := range left {
		w.returned("Acquire to return when its ctx ends", e.patience())
		e.undone(b, a, key, w.h.req.Owner)
	}
	e.mustRelease(blocker)
	e.vacant(a, key)
}

// waiting is req for one who waits.
func waiting(req lock.Request) lock.Request {
	req.Wait = true
	return req
}

// failedByLateReply: the grant took effect, its caller gave up, and undoes it.
func failedByLateReply(e *env) {
	b := e.open()
	e.eachLateReply(func(a lock.Locker, t *trouble) bite {
		key := e.key()
		t.begin()
		late := e.ask(e.ctx, a, e.request(key))
		bit := t.effect(late, b, e.patience())
		late.cancel()
		late.returned("Acquire to return when its ctx ends", e.patience())
		t.heal()
		e.settledUndo(a, key, late.h.req.Owner)
		e.undone(a, b, key, late.h.req.Owner)
		e.vacant(b, key)
		return bit
	})
}

// failedByFreeze: the undo may overtake the request that it undoes, so the TTL is the
// limit.
func failedByFreeze(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	e.warm(a) // so that it is not a handshake that is frozen
	ctx, cancel := context.WithTimeout(e.ctx, e.ttl/4)
	defer cancel()
	heal := e.fault(Freeze, a)
	late := e.ask(ctx, a, e.brief(key))
	late.returned("Acquire to return when its ctx ends", e.ttl/4+e.patience())
	if late.err == nil {
		e.skip("the fault did not bite: Acquire was answered")
	}
	heal()
	e.settledUndo(a, key, late.h.req.Owner)
	e.freeInTheEnd(b, key)
}

// freeInTheEnd waits for a key that was undone while a request for e.ttl was under way.
func (e *env) freeInTheEnd(l lock.Locker, key string) {
	e.Helper()
	time.Sleep(e.ttl / 2) // for a request that comes later still
	e.eventually("the key to be free, a TTL after a late request at the latest", e.overdueIn(e.ttl), func() (bool, string) {
		h, err := e.settled(l, e.rival(key))
		if err == nil {
			e.mustRelease(h)
		}
		return err == nil, fmt.Sprint(err)
	})
}
