package lock

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// doBound is how long Do waits for its release: the work is done, and the engine goes on
// with what the store has not confirmed.
const doBound = 5 * time.Second

// ending is a release by a caller, or by Do.
type ending struct {
	l       *Lease
	ctx     context.Context // bounds it
	caller  context.Context // what the observers get
	do      bool            // a Do's: what fails is left to the engine
	ended   bool            // ctx has ended
	elapsed time.Duration   // how long the lease was held
	now     time.Duration
	fx      effects
}

// release is Release.
func (l *Lease) release(ctx context.Context) error {
	x := ending{l: l, ctx: ctx, caller: ctx, ended: ctx.Err() != nil}
	x.begin()
	if !x.ended && x.fx.n > 0 {
		x.unlock()
		var cancel context.CancelFunc
		x.ctx, cancel = outliving(ctx)
		defer cancel()
		x.lock()
	}
	return x.finish()
}

// release is the end of Do: on a context of its own.
func (d *doCall) release() error {
	x := ending{l: d.fn.lease, caller: d.ctx, do: true}
	x.begin()
	x.ctx = d.detached(x.now)
	return x.finish()
}

func (x *ending) lock() { x.now = x.l.e.lock(&x.fx) }

func (x *ending) unlock() {
	x.l.e.unlock(x.now, &x.fx)
	x.fx = effects{}
}

// begin locks, and ends the contexts of a held lease before the request is sent: from then
// on the store may give the lock to somebody else.
func (x *ending) begin() {
	x.lock()
	l := x.l
	l.e.expire(l, x.now, &x.fx)
	x.elapsed = x.now - l.since
	if l.phase == held {
		l.phase = releasing
		l.e.end(l, ErrReleased, &x.fx)
	}
}

// outliving is ctx, unless the release itself has just ended it, as it does that of Do's
// function and what comes from Lease.Context: then a bound of its own takes its place.
func outliving(ctx context.Context) (context.Context, context.CancelFunc) {
	if ctx.Err() == nil || context.Cause(ctx) != ErrReleased { //nolint:errorlint // this very one
		return ctx, func() {}
	}
	return context.WithTimeout(context.WithoutCancel(ctx), doBound)
}

// finish has the store release, once it is this call's turn, and unlocks.
func (x *ending) finish() error {
	x.turn()
	l, e := x.l, x.l.e
	if l.lost != nil || l.phase == gone {
		err := l.lossOrNil()
		x.unlock()
		return err
	}
	if x.ended {
		err := fmt.Errorf("%w: the release goes on in the background", x.ctx.Err())
		e.leave(l, x.now)
		x.fx.tellEnd(x.caller, l, x.elapsed, err)
		x.unlock()
		return err
	}
	l.phase = releasing // so the engine keeps its hands off, if it was its
	delete(e.failing, l)
	o := e.begin(l, x.now, false, nil)
	o.caller = true
	x.unlock()
	return x.send(o)
}

// turn waits until no call for the lease is in flight, or it needs no release any more, or
// ctx ends. A renewal is canceled, and must be over before the release is sent: else it
// could reach the store later, and be told of a loss that is none.
func (x *ending) turn() {
	l := x.l
	for l.op != nil && l.lost == nil && l.phase != gone && !x.ended {
		if l.op.renews {
			x.fx.cancel(l.op)
		}
		free := l.op.wait()
		l.e.plan(l)
		x.unlock()
		select {
		case <-free:
		case <-x.ctx.Done():
			x.ended = true
		}
		x.lock()
	}
}

// send asks the store, and takes its answer.
func (x *ending) send(o *op) error {
	l, e := x.l, x.l.e
	_, err := o.send(x.ctx, e.store)
	ended := x.do || x.ctx.Err() != nil

	x.lock()
	switch {
	case err == nil:
		e.drop(l)
	case errors.Is(err, ErrLost):
		err = e.notThere(l, err)
	case ended || l.bound > 0:
		l.tried = true
		e.leave(l, x.now)
	default:
		l.tried = true // and the caller may try again
	}
	err = storeError(x.caller, err)
	x.fx.tellEnd(x.caller, l, x.elapsed, err)
	x.now = e.free(l, o, x.now, &x.fx)
	x.unlock()
	return err
}

// end ends l's contexts with cause, which Err tells from now on.
func (e *engine) end(l *Lease, cause error, fx *effects) {
	if l.err == nil {
		l.err = cause
		fx.end(l, cause)
	}
}

// notThere takes the store's word that l's grant is not there: a loss, unless an earlier
// release whose outcome is unknown can have ended it.
func (e *engine) notThere(l *Lease, err error) error {
	if l.lost == nil && !l.tried {
		l.lost = l.loss(lostReason(err), err)
		l.err = l.lost
	}
	e.drop(l)
	return l.lossOrNil()
}

// lossOrNil is l.lost without the nil pointer in an interface.
func (l *Lease) lossOrNil() error {
	if l.lost == nil {
		return nil
	}
	return l.lost
}

// leave makes l's release, or the undo of what its owner may have, the engine's: it is
// tried until the store confirms it or a TTL has passed, when the grant has ended by
// itself.
func (e *engine) leave(l *Lease, now time.Duration) {
	if e.closing.stopped {
		e.drop(l)
		return
	}
	if l.bound == 0 {
		l.bound = now + l.ttl()
	}
	l.phase = leaving
	l.failures, l.due = 0, now
	delete(e.failing, l)
	e.plan(l)
}

// left takes the answer to a release of the engine's.
func (e *engine) left(l *Lease, err error, now time.Duration, fx *effects) {
	if errors.Is(err, ErrLost) {
		err = e.notThere(l, err)
	}
	fx.tellEnd(context.Background(), l, now-l.since, storeError(context.Background(), err))
	switch {
	case err == nil, errors.Is(err, ErrLost), l.bound <= now,
		errors.Is(err, ErrClosed), errors.Is(err, ErrInvalid), errors.Is(err, ErrUnsupported):
		e.drop(l) // done, or trying again is no use
	default:
		l.tried = true
		e.failed(l, err, now)
	}
}

// tellEnd has l's observers told, once, how its hold ended.
func (fx *effects) tellEnd(ctx context.Context, l *Lease, elapsed time.Duration, err error) {
	if l.told {
		return
	}
	l.told = true
	kind := EventReleased
	if errors.Is(err, ErrLost) {
		kind = EventReleasedLost
	}
	fx.tell(ctx, l, kind, elapsed, err)
}

// notice is Request.Lost: the store says early that l is gone.
func (l *Lease) notice(r LostReason) {
	var fx effects
	now := l.e.lock(&fx)
	switch l.phase {
	case pending:
		l.early, l.reason = true, r
	case held:
		l.e.lose(l, r, nil, now, &fx)
	}
	l.e.unlock(now, &fx)
}
