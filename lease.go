package lock

import (
	"context"
	"fmt"
	"time"
)

// Lease is a lock that is held. It is renewed in the background until it is released,
// its Client is closed, or it is lost. All methods are safe for concurrent use.
//
// A lease ends locally at its [Lease.Deadline], which lies before the end of the grant in
// the store: it is the last Start, taken before the request was sent that proved the
// grant, plus the TTL as granted, less the drift ([WithDrift]). It ends then whether or
// not the store answers, so that the holder stops before anybody else can begin.
//
// # Renewal
//
// The first renewal begins between a quarter and a third of the TTL after Start. A renewal
// that the store does not answer within TTL/6, or with an error other than ErrLost, is
// tried again with backoff ([WithBackoff]) until the deadline; then the lease is lost as
// Unreachable, or as Expired if no renewal had failed or was under way. When one lease's
// renewal succeeds after a failure, all that are failing try at once.
//
// # Clocks
//
// Timers and the monotonic clock stand still while a machine sleeps, and the store's clock
// does not. So wall and monotonic clock are compared at every Err, at every timer, and at
// least once a second. When the wall clock has jumped ahead (by more than 20 ms since the
// last comparison) the jump counts as time elapsed: every deadline of the Client moves
// closer by it. A lease whose deadline is thereby over ends at once as Expired; any other
// has at most TTL/10 to verify itself, by a renewal that is begun at once, or it ends. A
// jump back counts no time, but asks for the same verification, since either clock may be
// the wrong one. Without renewal ([WithRenewal]) only the time is counted. A pause that
// neither clock shows, such as that of a process that is stopped between a look at its
// lease and the write which that protects, is for the resource to catch, by the Token.
type Lease struct {
	e   *engine
	cfg *config

	// endFn ends the ctx of Do's function with a cause. Set before the lease is held.
	endFn context.CancelCauseFunc

	// All that follows is guarded by e.mu; grant's Key, Owner, Token and Shared do not
	// change while the lease is held.
	grant  Grant
	phase  phase
	err    error         // what Err returns
	lost   *LostError    // how it was lost, whatever came after
	since  time.Duration // when the first Start was
	end    time.Duration // the local deadline, or earlier while verifying
	due    time.Duration // of the next call to the store
	at     time.Duration // its key in the heap
	index  int           // in the heap; -1 outside
	queued bool          // in engine.ready
	op     *op           // the call in flight

	failures int   // calls since the last success
	failure  error // the last one

	verifying bool // the clock has jumped since the last renewal

	early  bool // lost before Acquire has returned
	reason LostReason

	bound time.Duration // leaving: when the engine gives up
	tried bool          // a release was sent whose outcome is unknown
	told  bool          // the observers know how the hold ended

	ctx    context.Context // made when it is asked for
	endCtx context.CancelCauseFunc
}

// phase is where a Lease is in its life. It only goes down this list, but for a release in
// the foreground and one in the background, which may replace one another.
type phase uint8

const (
	pending   phase = iota // asked for
	held                   // in the heap, renewed
	releasing              // being released by a caller, or waiting for one to do it again
	leaving                // in the heap: the engine releases, or undoes, it
	gone
)

// Key is the lock's name.
func (l *Lease) Key() string { return l.grant.Key }

// Owner identifies the lease's grant, as in a [Record] and in an [Event].
func (l *Lease) Owner() string { return l.grant.Owner }

// Token is the fencing token, the same as long as the lease is held.
func (l *Lease) Token() Token { return l.grant.Token }

// ttl is the TTL as granted, or as asked for if that is not known.
func (l *Lease) ttl() time.Duration {
	if l.grant.TTL > 0 {
		return l.grant.TTL
	}
	return l.cfg.ttl
}

// Err says why the lease has ended: ErrReleased, ErrClosed or a *LostError; nil while it
// is held. It compares the clocks itself, and so knows of a loss even when the timer that
// would tell has had no chance to run.
func (l *Lease) Err() error {
	var fx effects
	now := l.e.lock(&fx)
	l.e.expire(l, now, &fx)
	err := l.err
	l.e.unlock(now, &fx)
	return err
}

// Deadline is until when the lock is exclusive unless it is renewed; a local time. After
// the end of the lease it is when that would have ended by itself.
func (l *Lease) Deadline() time.Time {
	l.e.mu.Lock()
	defer l.e.mu.Unlock()
	return l.e.clock.local(l.end)
}

// Context returns a context that ends when the lease does, with its Err as the cause
// ([context.Cause]). It carries no values and does not end with the ctx of the call that
// acquired the lease: a lease may outlive that call by far. The ctx that Do gives to its
// function ends with the caller's as well.
func (l *Lease) Context() context.Context {
	e := l.e
	e.mu.Lock()
	if l.ctx == nil {
		l.ctx, l.endCtx = context.WithCancelCause(context.Background())
	}
	ctx, end, err := l.ctx, l.endCtx, l.err
	e.mu.Unlock()
	if err != nil {
		end(err) // it had ended before there was a context to cancel
	}
	return ctx
}

// Renew restarts the lease's TTL, and so verifies that the store still knows it. It
// returns ErrReleased, ErrClosed or a *LostError if the lease has ended, also if it does
// so meanwhile; after any other error, such as ctx's, the lease is as it was or renewed.
// It waits for a renewal in the background, and the next one counts from here.
func (l *Lease) Renew(ctx context.Context) error {
	if ctx == nil {
		return opRenew.fail(l.Key(), fmt.Errorf("%w: ctx is nil", ErrInvalid))
	}
	if err := l.renew(ctx); err != nil {
		return opRenew.fail(l.Key(), err)
	}
	return nil
}

func (l *Lease) renew(ctx context.Context) error {
	e := l.e
	var fx effects
	now := e.lock(&fx)
	e.expire(l, now, &fx)
	for l.err == nil && l.op != nil {
		free := l.op.wait()
		e.unlock(now, &fx)
		select {
		case <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		fx = effects{}
		now = e.lock(&fx)
		e.expire(l, now, &fx)
	}
	if err := l.err; err != nil {
		e.unlock(now, &fx)
		return err
	}
	octx, cancel := context.WithDeadline(ctx, e.clock.local(l.end))
	defer cancel()
	o := e.begin(l, now, true, cancel)
	o.caller = true
	e.unlock(now, &fx)

	g, err := o.send(octx, e.store)
	o.abandoned = err != nil && ctx.Err() != nil
	return l.finishRenew(ctx, o, g, err)
}

func (l *Lease) finishRenew(ctx context.Context, o *op, g Grant, err error) error {
	e := l.e
	var fx effects
	now := e.lock(&fx)
	e.renewed(ctx, l, o, g, err, now, &fx)
	err = storeError(ctx, err)
	if l.err != nil {
		err = l.err
	}
	now = e.free(l, o, now, &fx)
	e.unlock(now, &fx)
	return err
}

// Release ends the lease. Its contexts end at once, with ErrReleased, before the store is
// asked; a renewal in flight is canceled and waited for.
//
// It returns a *LostError if the lock was lost before, nil if it is released, however
// often it is called. After any other error of the store the lock may be held until its
// TTL is over, and Release may be called again. If ctx ends, or has ended, it returns
// ctx's error promptly and the release goes on in the background.
func (l *Lease) Release(ctx context.Context) error {
	if ctx == nil {
		return opRelease.fail(l.Key(), fmt.Errorf("%w: ctx is nil", ErrInvalid))
	}
	if err := l.release(ctx); err != nil {
		return opRelease.fail(l.Key(), err)
	}
	return nil
}
