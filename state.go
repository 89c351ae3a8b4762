package lock

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// state is where a lease is in its life. This file is the only place where it changes:
//
//	state   event                                  next    Observers are told
//	asked   the store grants it                    held    granted
//	asked   the outcome is unknown                 ending  (the call tells that it failed)
//	held    a renewal succeeds                     held    renewed
//	held    a renewal fails                        held    renew failed
//	held    the store says that it is lost         gone    lost
//	held    its time is over                       gone    lost: expired
//	held    …but a renewal may have prolonged it   ending  lost: unreachable
//	held    Release, or the end of Do or Close     ending
//	held    …or Close within the minimum hold      gone    released: closed
//	ending  Close, its minimum hold is not over    gone    released: closed
//	ending  the store has released it              gone    released
//	ending  the store does not know it             gone    released lost
//	ending  a release fails                        ending  released, with the first error
//	ending  its TTL is over, or retrying is no use gone
//	ending  …but nothing was sent, after a sleep   ending
//
// Within its minimum hold, or a drift after its loss, nothing is sent for a lease that is ending.
// Close does not wait for a minimum hold to be over: the lease is gone, and the store has it until
// its TTL is over.
//
// If a release fails and the next finds nothing to release, the lock counts as released: the
// first may have been applied, and its reply lost.
//
// A lease has at most one call to the store in flight (Lease.op): whoever carries it out,
// the engine or the holder, nothing else is sent before its answer is in. Otherwise a
// renewal could overtake a release, and take its effect for a loss.
type state uint8

const (
	asked  state = iota // no grant yet
	held                // granted, and renewed
	ending              // the engine releases, or undoes, it
	gone                // nothing more to do
)

// errUnanswered is the failure of a call that the store has not answered in time.
var errUnanswered = errors.New("lock: the store has not answered")

// op is a call to the store, in flight.
type op struct {
	slot   slot          // of the engine's own
	renews bool          // as opposed to releases
	byHand bool          // Lease.Renew was called
	mark   mark          // the clock when it began: its answer proves nothing about the time since
	until  time.Duration // when the engine cancels it
	late   bool          // it has
	cancel context.CancelFunc
	free   chan struct{} // closed when the lease is free again; made by who waits for it
}

// wait returns a channel that is closed when o's lease is free again. e.mu is held.
func (o *op) wait() <-chan struct{} {
	if o.free == nil {
		o.free = make(chan struct{})
	}
	return o.free
}

// to puts l into state st, where the engine has to act on it at the given time, or when its
// time is over. While a call is in flight its answer decides what comes next: only the bound
// of the call, and the deadline of a held lease, do not wait for it.
func (s *section) to(l *Lease, st state, at time.Duration) {
	if st == ending {
		at = max(at, l.keepUntil)
	}
	if l.op != nil {
		at = l.op.until
	}
	if l.op == nil || st == held {
		at = min(at, l.until)
	}
	l.state, l.at = st, at
	s.e.heap.place(l, (st == held || st == ending) && s.e.closing.phase != stopped)
}

// hold makes a granted l held. It has begun at start, when its grant's Start was.
func (s *section) hold(l *Lease, start time.Duration) {
	l.since, l.until = start, l.deadline(start)
	s.to(l, held, l.firstRenewal(start))
}

// begin makes a call the one of l. It is canceled at until.
func (s *section) begin(l *Lease, until time.Duration, cancel context.CancelFunc) *op {
	l.op = &op{renews: l.state == held, mark: s.e.clock.mark(s.now), until: until, cancel: cancel}
	s.to(l, l.state, never)
	return l.op
}

// end ends l's contexts with cause, which Err tells from now on. l stays in its state: a
// lease that Close has ended is held until the function of Do has returned.
func (s *section) end(l *Lease, cause error) {
	if l.ended != nil {
		return
	}
	l.ended = cause
	if l.endFn != nil || l.endCtx != nil {
		s.note(l.endings())
	}
}

// endings ends l's contexts.
func (l *Lease) endings() chore {
	return chore{ends: [2]context.CancelCauseFunc{l.endFn, l.endCtx}, cause: l.ended}
}

// cancel ends the call of l, if it has one.
func (s *section) cancel(l *Lease) {
	if l.op != nil {
		s.note(chore{cancel: l.op.cancel})
	}
}

// giveUp cancels the call of l, which the store has not answered in time.
func (s *section) giveUp(l *Lease) {
	s.cancel(l)
	l.op.until, l.op.late = never, true
}

// release has the engine release l, or undo what its owner may have, when its minimum hold is
// over. It gives up a TTL later, when the grant has ended by itself. A renewal in flight would
// only delay it.
func (s *section) release(l *Lease) {
	if l.op != nil && l.op.renews {
		s.cancel(l)
	}
	at := max(s.now, l.keepUntil)
	l.until, l.retries, l.failure = at+l.ttl(), 0, nil
	s.to(l, ending, at)
	if s.e.closing.phase != open && s.keeps(l) {
		s.leaveToTTL(l)
	}
}

// keeps reports whether l, which its holder has let go, is within its minimum hold.
func (s *section) keeps(l *Lease) bool {
	left := l.keepUntil - s.now
	return l.state == ending && left > 0 && (l.lost == nil || left > l.drift())
}

// leaveToTTL is what Close makes of a lease within its minimum hold.
func (s *section) leaveToTTL(l *Lease) {
	if l.state != gone && l.untold() {
		l.until = s.now + l.ttl()
		s.tellEnd(caller{ctx: context.Background()}, l, ErrClosed)
	}
	s.to(l, gone, never)
}

// lose ends l as lost. If the store may still have the grant, it is released after giveBack, by
// which its holder has had the time to stop that it is promised; else giveBack is never.
func (s *section) lose(l *Lease, reason LostReason, err error, giveBack time.Duration) {
	l.lost = l.loss(reason, err)
	s.end(l, l.lost)
	s.tell(context.Background(), l, Event{Kind: EventLost, Held: s.now - l.since, Err: l.lost})
	s.cancel(l)
	if giveBack != never {
		l.keepUntil = max(l.keepUntil, s.now+giveBack)
		s.release(l)
	} else {
		s.to(l, gone, never)
	}
}

// timeUp ends l if its time is over, and reports whether it is.
func (s *section) timeUp(l *Lease) bool {
	switch {
	case l.until > s.now:
		return false
	case l.state == held:
		switch {
		case l.failure != nil:
			s.lose(l, ReasonUnreachable, l.failure, l.drift())
		case l.op != nil:
			s.lose(l, ReasonUnreachable, errUnanswered, l.drift())
		default:
			s.lose(l, ReasonExpired, nil, never)
		}
		return true
	case l.state == ending && l.op == nil && l.untold():
		s.release(l) // the machine has slept, and nothing was sent in time
		return false
	case l.state == ending && l.op == nil:
		l.failure = nil // it has ended by itself
		s.to(l, gone, never)
		return true
	}
	return false
}

// answered takes the store's answer to o, the call of l that c waits for.
func (s *section) answered(c caller, l *Lease, o *op, g Grant, err error) {
	l.op = nil
	if o.free != nil {
		close(o.free)
	}
	if err == context.Canceled && o.late { //nolint:errorlint // alone it says nothing
		err = errUnanswered
	}
	switch {
	case !o.renews:
		s.released(c, l, err)
	case l.state == held && err == nil:
		s.renewed(c.ctx, l, o, g)
	case l.state == held:
		s.renewFailed(c, l, o, err)
	case l.state == ending && l.lost != nil && errors.Is(err, ErrLost):
		s.to(l, gone, never) // nothing is left to release
	case l.state == ending:
		s.to(l, ending, s.now) // its release was waiting for this answer
	case err == nil && l.lost != nil:
		s.release(l) // it is gone, and the store has prolonged what nobody holds
	}
}

// renewed takes a renewal that succeeded. An answer after the deadline revives nothing.
func (s *section) renewed(ctx context.Context, l *Lease, o *op, g Grant) {
	if l.until <= s.now {
		if l.failure == nil {
			l.failure = errUnanswered
		}
		s.timeUp(l)
		return
	}
	s.tell(ctx, l, Event{Kind: EventRenewed, Slack: l.until - s.now})
	l.grant.TTL, l.grant.Start = g.TTL, g.Start
	l.retries, l.failure = 0, nil
	if s.e.clock.jumpedSince(o.mark) && l.cfg.renewal {
		l.failure = errUnanswered
		s.to(l, held, s.now) // the answer is from before the jump: verify again
		return
	}
	start := s.e.clock.at(g.Start, o.mark.skew)
	l.until = l.deadline(start)
	s.to(l, held, l.firstRenewal(start))
	if l.until <= s.now { // a TTL as short as the drift, or an ancient Start
		s.lose(l, ReasonExpired, nil, l.drift())
	}
}

func (s *section) renewFailed(c caller, l *Lease, o *op, err error) {
	if errors.Is(err, ErrLost) {
		s.lose(l, lostReason(err), err, never)
		return
	}
	if !o.byHand && s.e.clock.jumpedSince(o.mark) {
		s.to(l, held, s.now) // canceled in order to verify at once
		return
	}
	s.tell(c.ctx, l, Event{Kind: EventRenewFailed, Slack: l.until - s.now, Err: c.storeError(err)})
	at := s.retry(l, err)
	if !l.cfg.renewal {
		at = never
	}
	s.to(l, held, at)
	s.timeUp(l)
}

// retry counts a failure of the store, and returns when to try again.
func (s *section) retry(l *Lease, err error) time.Duration {
	at := s.now + l.cfg.pause(l.retries, l.ttl())
	l.retries++
	l.failure = err
	return at
}

// released takes the answer to a release. Observers are told of the first one.
func (s *section) released(c caller, l *Lease, err error) {
	tell := l.untold()
	switch {
	case errors.Is(err, ErrLost) && tell:
		l.lost = l.loss(lostReason(err), err)
		err = l.lost
		s.to(l, gone, never)
	case err == nil, errors.Is(err, ErrLost):
		l.failure = nil
		s.to(l, gone, never)
	case final(err):
		l.failure = err
		s.e.closing.leave(l)
		s.to(l, gone, never)
	default:
		s.to(l, ending, s.retry(l, err))
	}
	if tell {
		s.tellEnd(c, l, err)
	}
}

// live reports whether l is held and its holder has not been told that it has ended.
func (l *Lease) live() bool { return l.state == held && l.ended == nil }

// untold reports whether the holder of l, which is ending, is yet to learn how its hold
// ended. There was no hold to end where there was no grant.
func (l *Lease) untold() bool { return l.lost == nil && l.failure == nil && l.grant.Token != 0 }

// tellEnd tells how l's hold ended.
func (s *section) tellEnd(c caller, l *Lease, err error) {
	kind := EventReleased
	if errors.Is(err, ErrLost) {
		kind = EventReleasedLost
	}
	ended := l.until - l.ttl() // when the release began
	s.tell(c.ctx, l, Event{Kind: kind, Held: ended - l.since, Err: c.storeError(err)})
}

// outcomeOr is what Release returns: the loss, else what is known of the release, else err.
func (l *Lease) outcomeOr(ctx context.Context, err error) error {
	c := callerOf(ctx)
	l.e.mu.Lock()
	defer l.e.mu.Unlock()
	switch {
	case l.lost != nil:
		return l.lost
	case l.state == gone && l.failure == nil:
		return nil
	case err != nil:
		return err
	}
	return c.storeError(l.failure)
}

// jump has all leases verify themselves within TTL/10, and ends those whose time the jump
// has used up.
func (s *section) jump() {
	for _, l := range slices.Clone(s.e.heap) {
		switch {
		case l.state != held:
		case l.until <= s.now:
			giveBack := never
			if l.op != nil || l.failure != nil {
				giveBack = l.drift()
			}
			s.lose(l, ReasonExpired, nil, giveBack)
		case l.cfg.renewal:
			if l.op != nil && !l.op.byHand {
				s.cancel(l) // its connection may have died meanwhile
			}
			s.verify(l)
		}
	}
}

// verify has l renewed at once, and end within TTL/10 if that does not succeed.
func (s *section) verify(l *Lease) {
	l.until = min(l.until, s.now+l.grant.TTL/verifyPart)
	if l.failure == nil {
		l.failure = errUnanswered // the store may have it still, if this time passes
	}
	s.to(l, held, s.now)
}

// notice is Request.Lost: the store says early that l is gone. It may have others to tell, and
// does not wait for Observers.
func (l *Lease) notice(r LostReason) {
	var s section
	s.enter(l.e)
	switch l.state {
	case asked:
		l.lost = &LostError{Reason: r} // it is lost as soon as it is held
	case held:
		s.lose(l, r, nil, never)
	}
	s.unlock()
	go s.observe()
}

// deadline is when a grant ends locally that has begun at start.
func (l *Lease) deadline(start time.Duration) time.Duration {
	return start + l.grant.TTL - l.drift()
}

// drift is that for l's TTL as granted.
func (l *Lease) drift() time.Duration { return l.cfg.driftOf(l.grant.TTL) }

// firstRenewal is a jittered TTL/4 to TTL/3 after start, so that leases taken together are
// not renewed together for ever; less if a large drift leaves little of the TTL. It is
// rounded up to a grid, so that one timer serves several of many leases.
func (l *Lease) firstRenewal(start time.Duration) time.Duration {
	if !l.cfg.renewal {
		return never
	}
	ttl := l.grant.TTL
	ttl = min(ttl, 2*(ttl-l.drift()))
	if ttl <= 0 {
		return start
	}
	grid := ttl/2048 + 1
	at := start + ttl/4 + rand.N(ttl/12-ttl/2048+1)
	return at + grid - at%grid
}

// sound returns an error if a store has granted g against its contract. A TTL above MaxTTL
// is cut, so that no time overflows.
func (e *engine) sound(g *Grant) error {
	if g.Token == 0 || g.TTL <= 0 || g.Start.IsZero() {
		return fmt.Errorf("store %s broke its contract: granted token %d, TTL %v, start %v", e.name, g.Token, g.TTL, g.Start)
	}
	g.TTL = min(g.TTL, MaxTTL)
	return nil
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
	return &LostError{Reason: reason, Token: l.grant.Token, Err: ownError(err)}
}
