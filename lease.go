package lock

import (
	"context"
	"fmt"
	"time"
)

// Lease is a lock that is held. It is renewed in the background until it is released, its
// Client is closed, or it is lost. All methods are safe for concurrent use.
//
// A lease ends locally at its [Lease.Deadline], which is earlier than the end of the grant
// in the store: Grant.Start, taken before the request that proved the grant was sent, plus
// the granted TTL, minus the drift ([WithDrift]). It ends then whether or not the store
// answers, so the holder stops before anybody else can begin.
//
// # Renewal
//
// The first renewal begins between a quarter and a third of the TTL after Start. One that
// fails, or is not answered within a sixth of the TTL, is retried with backoff
// ([WithBackoff]) until the deadline. Then the lease is lost: as ReasonUnreachable if a
// renewal has failed or is still unanswered, else as ReasonExpired.
//
// # Clocks
//
// Timers and the monotonic clock stand still while a machine sleeps, but the store's clock
// does not. So the Client compares wall and monotonic clock at every Err, at every timer,
// and at least once a second. If the wall clock has jumped ahead by more than 20 ms since
// the last comparison, the jump counts as time that has passed: every deadline moves closer
// by it. A lease whose deadline has thereby passed ends at once, as ReasonExpired. Any other
// must renew within TTL/10, beginning at once, or it is lost. A jump back counts no time but
// asks for the same renewal, since either clock may be wrong. Without renewal
// ([WithRenewal]) a jump only counts as time.
//
// Neither clock shows that a process was stopped between a look at its lease and the write
// that the lease is to protect. Only the resource can notice that, by the Token.
type Lease struct {
	e   *engine
	cfg *config

	// All that follows is guarded by e.mu. Of grant, Key, Owner and Shared never change, and
	// Token does not once the lease is held.
	grant Grant
	state state
	since time.Duration // when its first grant's Start was
	until time.Duration // held: the local deadline; ending: when the engine gives up
	at    time.Duration // its key in the heap: when the engine must act
	index int           // in the heap; -1 outside
	op    *op           // the call in flight

	keepUntil time.Duration // it is not released before: the minimum hold, or the drift after a loss

	retries int   // calls that failed since the last success
	failure error // of the last of them

	ended error      // what Err returns
	lost  *LostError // found by a renewal, a notice or a release; its first cause may be another

	endFn  context.CancelCauseFunc // ends the ctx of Do's function
	ctx    context.Context         // made when it is asked for
	endCtx context.CancelCauseFunc
	events *outbox // nil without observers
}

// Key returns the lock's name.
func (l *Lease) Key() string { return l.grant.Key }

// Owner identifies the lease's grant, as in a [Record] and in an [Event].
func (l *Lease) Owner() string { return l.grant.Owner }

// Token returns the fencing token. It does not change while the lease is held.
func (l *Lease) Token() Token { return l.grant.Token }

// ttl is the TTL as granted, or as asked for if that is not known.
func (l *Lease) ttl() time.Duration {
	if l.grant.TTL > 0 {
		return l.grant.TTL
	}
	return l.cfg.ttl
}

// Err returns why the lease has ended: ErrReleased, ErrClosed or a *LostError. It returns
// nil while the lease is held, and the same error ever after. Err compares the clocks
// itself, so it knows of a loss even when the timer has had no chance to run.
func (l *Lease) Err() error {
	var s section
	s.enter(l.e)
	s.timeUp(l)
	err := l.ended
	s.leave()
	return err
}

// Deadline returns the local time at which the lease ends unless it is renewed. It means
// nothing once the lease has ended.
func (l *Lease) Deadline() time.Time {
	l.e.mu.Lock()
	defer l.e.mu.Unlock()
	return l.e.clock.local(l.until)
}

// Context returns a context that ends with the lease; its [context.Cause] is what Err
// returns. It carries no values, and does not end with the ctx of the call that acquired the
// lease, which a lease may outlive by far. The ctx that Do gives to its function ends with
// the caller's as well.
func (l *Lease) Context() context.Context {
	e := l.e
	e.mu.Lock()
	if l.ctx == nil {
		l.ctx, l.endCtx = context.WithCancelCause(context.Background())
	}
	ctx, end, err := l.ctx, l.endCtx, l.ended
	e.mu.Unlock()
	if err != nil {
		end(err) // it had ended before there was a context to cancel
	}
	return ctx
}

// Renew restarts the lease's TTL, and so verifies that the store still knows the lease. The
// next renewal in the background counts from here.
//
// It returns ErrReleased, ErrClosed or a *LostError if the lease has ended or ends
// meanwhile. After ErrUnavailable or ctx's error the lease is as it was, or renewed.
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
	sent, cancel := context.WithCancel(ctx) // the end of the lease cancels it
	defer cancel()
	var s section
	for {
		s.enter(l.e)
		s.timeUp(l)
		if err := l.ended; err != nil {
			s.leave()
			return err
		}
		if l.op == nil {
			break
		}
		free := l.op.wait()
		s.leave()
		select {
		case <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	until := never
	if l.cfg.renewal { // leave the engine time for calls of its own, if this one hangs
		until = s.now + s.attempt(l)
	}
	o, g := s.begin(l, until, cancel), l.grant
	o.byHand = true
	s.leave()

	g, err := l.send(sent, o, g)
	c := callerOf(ctx)
	s.enter(l.e)
	s.answered(c, l, o, g, err)
	ended := l.ended
	s.leave()
	if ended != nil {
		return ended
	}
	return c.storeError(err)
}

// Release ends the lease. Its contexts end first, with ErrReleased, before the store is
// asked; a renewal in flight is canceled and waited for.
//
// It returns nil if the lock is released, and a *LostError if it had been lost before, even if
// only the release has shown that. Otherwise, after ErrUnavailable or ctx's error, the
// lock may be held for a TTL at most, and the Client goes on releasing it in the background
// until then. Release may be called again, and returns promptly if ctx ends or has ended.
func (l *Lease) Release(ctx context.Context) error {
	if ctx == nil {
		return opRelease.fail(l.Key(), fmt.Errorf("%w: ctx is nil", ErrInvalid))
	}
	if err := l.release(ctx); err != nil {
		return opRelease.fail(l.Key(), err)
	}
	return nil
}

func (l *Lease) release(ctx context.Context) error {
	ended := ctx.Err()
	var s section
	s.enter(l.e)
	s.letGo(l)
	kept := s.keeps(l) && l.lost == nil
	s.leave()
	if kept {
		return nil
	}
	if ended != nil {
		return l.outcomeOr(ctx, fmt.Errorf("%w: the release goes on in the background", ended))
	}
	within := MaxTTL
	if ctx.Err() != nil && context.Cause(ctx) == ErrReleased { //nolint:errorlint // this very one
		// The release itself has ended it, as it does what comes from Lease.Context or is
		// that of Do's function. It is no reason not to release.
		ctx, within = context.WithoutCancel(ctx), doBound
	}
	sent, cancel := context.WithCancel(ctx)
	defer cancel()
	return l.finish(parting{sent, cancel, within, ctx})
}

// letGo ends l for its holder. From then on the store may give the lock to somebody else, so
// it comes before the release is sent.
func (s *section) letGo(l *Lease) {
	s.timeUp(l)
	if l.state == held {
		s.end(l, ErrReleased)
		s.release(l)
	}
}

// parting is how a holder releases.
type parting struct {
	ctx    context.Context // of the call to the store
	cancel context.CancelFunc
	within time.Duration   // how long to wait at most
	caller context.Context // what Observers get
}

// finish sends the release of l, unless that is over.
func (l *Lease) finish(p parting) error {
	var s section
	for {
		s.enter(l.e)
		s.letGo(l)
		if l.state == gone || l.lost != nil {
			s.leave()
			return l.outcomeOr(p.caller, nil)
		}
		if s.keeps(l) {
			s.leave()
			return nil
		}
		if l.op == nil {
			break
		}
		free := l.op.wait()
		s.leave()
		if err := await(p.ctx, p.within, free); err != nil {
			return fmt.Errorf("%w: the release goes on in the background", err)
		}
	}
	o, g := s.begin(l, s.now+min(p.within, l.until-s.now), p.cancel), l.grant
	if s.e.closing.phase == stopped { // there is no engine any more that would cancel it
		o.late = true
		defer time.AfterFunc(min(p.within, l.cfg.ttl), p.cancel).Stop()
	}
	s.leave()
	g, err := l.send(p.ctx, o, g)
	c := callerOf(p.caller)
	s.enter(l.e)
	s.answered(c, l, o, g, err)
	s.leave()
	if err == nil {
		return nil
	}
	return l.outcomeOr(p.caller, nil)
}

// await waits for free, and returns an error if ctx ends or time passes before.
func await(ctx context.Context, within time.Duration, free <-chan struct{}) error {
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case <-free:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return fmt.Errorf("%w: %w", ErrUnavailable, errUnanswered)
	}
}
