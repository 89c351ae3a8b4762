package lock

import (
	"container/heap"
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// errUnanswered is why a lease is Unreachable whose renewals have not even failed.
var errUnanswered = errors.New("lock: the store has not answered the renewal")

// hold makes a granted l held. start is the engine's time of its Start.
func (e *engine) hold(l *Lease, start time.Duration) {
	l.phase, l.since = held, start
	l.end = e.deadline(l, start)
	l.due = l.firstRenewal(start)
	e.plan(l)
}

// deadline is when a grant ends locally whose Start was at start.
func (e *engine) deadline(l *Lease, start time.Duration) time.Duration {
	return start + l.grant.TTL - l.cfg.driftOf(l.grant.TTL)
}

// firstRenewal is a jittered TTL/4 to TTL/3 after start, so that leases taken together
// are not renewed together for ever; less if a large drift leaves little of the TTL.
// Rounded up to a grid, so that one timer serves several of many leases.
func (l *Lease) firstRenewal(start time.Duration) time.Duration {
	if !l.cfg.renewal {
		return never
	}
	ttl := l.grant.TTL
	ttl = min(ttl, 2*(ttl-l.cfg.driftOf(ttl)))
	if ttl <= 0 {
		return start
	}
	grid := ttl/2048 + 1
	at := start + ttl/4 + rand.N(ttl/12-ttl/2048+1)
	return at + grid - at%grid
}

// renewed takes the answer o to a renewal of l. ctx is that of the caller, a background
// one if it was the engine's own. l stays busy with o until free.
func (e *engine) renewed(ctx context.Context, l *Lease, o *op, g Grant, err error, now time.Duration, fx *effects) {
	e.expire(l, now, fx) // an answer after the deadline revives nothing
	o.back = true
	switch {
	case errors.Is(err, ErrLost):
		e.renewLost(l, err, now, fx)
	case err == nil && l.phase == held:
		e.extend(ctx, l, o, g, now, fx)
	case err == nil && l.lost != nil && l.phase == gone:
		// The store has prolonged what nobody holds.
		e.leave(l, now)
	case err != nil && l.phase == held:
		e.renewFailed(ctx, l, o, err, now, fx)
	}
}

func (e *engine) renewLost(l *Lease, err error, now time.Duration, fx *effects) {
	switch {
	case l.phase == held:
		e.lose(l, lostReason(err), err, now, fx)
	case l.phase == leaving && l.lost != nil:
		l.phase = gone // there is nothing left to release
		e.plan(l)
	}
}

// extend takes a renewal that succeeded in time.
func (e *engine) extend(ctx context.Context, l *Lease, o *op, g Grant, now time.Duration, fx *effects) {
	l.grant.TTL, l.grant.Start = g.TTL, g.Start
	fx.tell(ctx, l, EventRenewed, l.end-now, nil)
	if l.failures > 0 {
		l.failures, l.failure = 0, nil
		delete(e.failing, l)
		e.retryAll()
	}
	if o.jumps != e.clock.jumps && l.cfg.renewal {
		// Sent before the clock jumped, it does not tell what is now: verify again.
		l.due = now
		e.plan(l)
		return
	}
	start := e.clock.at(g.Start, o.skew)
	l.end, l.verifying = e.deadline(l, start), false
	l.due = l.firstRenewal(start)
	e.plan(l)
	// A grant as short as its drift, or an ancient Start, is over already.
	if e.expire(l, now, fx) {
		e.leave(l, now)
	}
}

// retryAll takes up at once what waits to try again: the store is back.
func (e *engine) retryAll() {
	for l := range e.failing {
		e.enqueue(l)
	}
}

func (e *engine) renewFailed(ctx context.Context, l *Lease, o *op, err error, now time.Duration, fx *effects) {
	if o.jumps != e.clock.jumps && !o.caller {
		l.due = now // canceled in order to verify at once: no failure of the store
		e.plan(l)
		return
	}
	fx.tell(ctx, l, EventRenewFailed, l.end-now, storeError(ctx, err))
	if o.abandoned {
		return
	}
	e.failed(l, err, now)
	if !l.cfg.renewal {
		l.due = never
		delete(e.failing, l)
	}
	e.plan(l)
}

// failed has l try again after a pause.
func (e *engine) failed(l *Lease, err error, now time.Duration) {
	l.due = now + l.cfg.pause(l.failures, l.ttl())
	l.failures++
	l.failure = err
	e.failing[l] = struct{}{}
}

// expire ends l if its time is over, and reports whether it is.
func (e *engine) expire(l *Lease, now time.Duration, fx *effects) bool {
	switch {
	case l.phase == held && l.end <= now:
		reason, err := ReasonExpired, error(nil)
		if l.failures > 0 {
			reason, err = ReasonUnreachable, l.failure
		} else if l.op != nil && !l.op.back {
			reason, err = ReasonUnreachable, errUnanswered
		}
		e.lose(l, reason, err, now, fx)
	case l.phase == leaving && l.bound <= now && l.op == nil:
		e.drop(l)
	default:
		return false
	}
	return true
}

// lose ends l as lost. An Unreachable grant may have been prolonged by a renewal whose
// answer is missing, so it is released, once the call in flight is back.
func (e *engine) lose(l *Lease, reason LostReason, err error, now time.Duration, fx *effects) {
	l.lost = l.loss(reason, err)
	l.err, l.told = l.lost, true
	if reason == ReasonUnreachable {
		e.leave(l, now)
	} else {
		e.drop(l)
	}
	fx.end(l, l.lost)
	fx.tell(context.Background(), l, EventLost, now-l.since, l.lost)
}

// drop is the end of what the engine does for l.
func (e *engine) drop(l *Lease) {
	l.phase = gone
	delete(e.failing, l)
	e.plan(l)
}

// jump has all leases verify themselves, and ends those whose time is over by it.
func (e *engine) jump(now time.Duration, fx *effects) {
	var over []*Lease
	for _, l := range e.heap {
		switch {
		case l.phase != held:
		case l.end <= now:
			over = append(over, l)
		case l.cfg.renewal:
			e.verify(l, now)
			if l.op != nil && !l.op.caller {
				fx.cancel(l.op) // its connection may have died meanwhile
			}
		}
	}
	for _, l := range over {
		e.lose(l, ReasonExpired, nil, now, fx)
	}
	for _, l := range e.heap {
		l.at = l.next()
	}
	heap.Init(&e.heap)
}

// verify has l renewed at once, and end within TTL/10 if that does not succeed.
func (e *engine) verify(l *Lease, now time.Duration) {
	l.end = min(l.end, now+l.grant.TTL/verifyPart)
	l.due, l.verifying = now, true
	delete(e.failing, l)
}

// lostReason is the store's, or 0.
func lostReason(err error) LostReason {
	var lost *LostError
	if errors.As(err, &lost) {
		return lost.Reason
	}
	return 0
}

// loss is the *LostError of l. That of a store is not wrapped in another.
func (l *Lease) loss(reason LostReason, err error) *LostError {
	var lost *LostError
	switch {
	case err == ErrLost: //nolint:errorlint // only the bare one says nothing more
		err = nil
	case reason != ReasonUnreachable && errors.As(err, &lost):
		err = lost.Err
	}
	return &LostError{Reason: reason, Token: l.grant.Token, Err: err}
}
