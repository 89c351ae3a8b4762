package locktest

import (
	"context"
	"fmt"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// heartbeats are about waiters that live: see deadWaiters for those that do not.
func heartbeats() group {
	const lives = "Dead waiters are skipped. A waiter must live by a heartbeat of min(TTL, 5 s): a dead one must not block the line for longer than that."
	return group{"DeadWaitersAreSkipped", []row{
		{"NotALivingOne", lives, both, nil, func(e *env) { e.keepsItsPlace(max(e.ttl, time.Second), 1.6) }},
		{"NotALivingOneWithALongTTL", lives, plain, nil, func(e *env) { e.keepsItsPlace(30*time.Second, 0.8) }},
	}}
}

// keepsItsPlace has two waiters of one process stand in line for several of their heartbeats.
// One that comes when the first heartbeat is over must stay behind them: a place that was
// given up and taken again would be the last. more is how many heartbeats the last is there
// for.
func (e *env) keepsItsPlace(ttl time.Duration, more float64) {
	a, b, c := e.open(), e.open(), e.open()
	beat := min(ttl, 5*time.Second)
	kept := e.repeatedly(3, beat/8, func() bool {
		key := e.key()
		holder, req := e.rival(key), e.request(key)
		holder.TTL, req.TTL = max(e.long(), 30*time.Second), ttl
		blocker := e.lasting(a, holder)
		first, second := e.wait(b, req), e.wait(b, anew(req))
		time.Sleep(beat * 14 / 10)
		last := e.wait(c, anew(holder))
		time.Sleep(time.Duration(more * float64(beat)))
		first.still()
		e.mustRelease(blocker)
		return e.served(first, second, last) == last || !e.caps.FIFO
	})
	if !kept {
		e.fail("who waits, and lives, to be served in turn", "one was served after another that came a heartbeat of %v later", beat)
	}
}

func abandoned() group {
	const nothing = "Without an undo, whatever else the same process keeps alive, a place in line must end by its heartbeat and a grant by its TTL."
	return group{"FailureLeavesNothing", []row{
		{"AbandonedWaiter", nothing, both, nil, abandonedWaiter},
		{"AbandonedAtTheHead", nothing, both, nil, abandonedAtTheHead},
		{"AbandonedGrant", nothing, both, needs(canWithhold), abandonedGrant},
	}}
}

// busy lets l keep a short grant up, and a place in another line.
func (e *env) busy(l, other lock.Locker) {
	e.Helper()
	kept := e.mustAcquire(l, e.brief(e.key()))
	e.start(func() { e.keepBusy(kept) })
	blocker := e.lasting(other, e.rival(e.key()))
	e.wait(l, e.request(blocker.g.Key))
}

// keepBusy renews h, and takes its key again when it was lost, until the case is over.
func (e *env) keepBusy(h held) {
	var err error
	for e.ctx.Err() == nil {
		if err == nil {
			e.keep(h)
		}
		ctx, cancel := context.WithTimeout(e.ctx, e.ttl)
		h.g, err = h.l.Acquire(ctx, anew(h.req))
		cancel()
		time.Sleep(e.tick())
	}
}

// abandonedWaiter leaves in front of one of the same process, and nobody undoes it.
func abandonedWaiter(e *env) {
	beat := e.heartbeat(e.long())
	e.soon("the place of an abandoned waiter to be gone", beat, func() time.Duration {
		a, b, key := e.open(), e.open(), e.key()
		e.busy(a, b)
		blocker := e.lasting(b, e.rival(key))
		left, behind := e.wait(a, e.request(key)), e.wait(a, e.request(key))
		left.abandon()
		abandoned := time.Now()
		if e.caps.FIFO {
			e.eventually("the place of an abandoned waiter to be gone", beat+e.patience(), func() (bool, string) {
				rec := e.mustInspect(b, key)
				return !inLine(rec, left.h.req.Owner), fmt.Sprintf("%+v", rec.Waiters)
			})
		}
		took := time.Since(abandoned)
		behind.still()
		took = max(took, behind.after(blocker, beat))
		e.vacant(b, key)
		return took
	})
}

// abandon ends the wait without an undo.
func (w *waiter) abandon() {
	w.e.Helper()
	w.cancel()
	w.returned("Acquire to return when its ctx ends", w.e.patience())
}

// abandonedAtTheHead: the grant may have been on its way to the one who left.
func abandonedAtTheHead(e *env) {
	limit := e.heartbeat(e.ttl) + e.ttl
	e.soon("the waiter behind an abandoned one to have the key", limit, func() time.Duration {
		a, b, key := e.open(), e.open(), e.key()
		e.busy(a, b)
		blocker := e.lasting(b, e.rival(key))
		left := e.wait(a, e.brief(key))
		behind := e.wait(a, e.rival(key))
		left.cancel()
		released := time.Now()
		e.mustRelease(blocker)
		left.abandon()
		if left.err == nil {
			e.mustUndo(a, key, left.h.g.Owner) // it may be over
		}
		h := behind.grantedWithin(limit)
		e.mustRelease(h)
		e.vacant(b, key)
		return h.answered.Sub(released)
	})
}

// abandonedGrant: the request took effect, and nobody who could renew it knows.
func abandonedGrant(e *env) {
	b := e.open()
	e.eachLateReply(func(a lock.Locker, t *trouble) bite {
		key, kept := e.key(), e.mustAcquire(a, e.brief(e.key()))
		t.begin()
		late := e.ask(e.ctx, a, e.brief(key))
		bit := t.effect(late, b, e.patience())
		late.abandon()
		t.heal()
		e.start(func() { e.keepBusy(kept) })
		if late.err != nil {
			e.mustRelease(e.succeed(b, key, e.overdueIn(e.ttl)))
		}
		return bit
	})
}
