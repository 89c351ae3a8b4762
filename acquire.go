package lock

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// call is one Do, TryDo, DoAll, Lock or TryLock, or one candidacy of Lead.
type call struct {
	c   *Client
	op  operation
	key string // of DoAll the one that it asks for
	cfg *config

	ctx    context.Context         // the caller's
	cctx   context.Context         // its child, which Close can end
	cancel context.CancelCauseFunc // of cctx
	actx   context.Context         // for Acquire: cctx, with a bound if there is one

	mark mark                   // the clock when it began to ask for key
	seen atomic.Pointer[Record] // who held the key when the wait began, if known

	leases []*Lease   // what DoAll has, while it asks for key
	under  *fnContext // the leases that it has while it asks for key, the innermost first
	nested *waitUnder // how it waits under them; nil if it does not
}

func (k *call) waits() bool          { return k.cfg.waits(k.op) }
func (k *call) limit() time.Duration { return k.cfg.limit(k.op) }

// acquire gets k a lease; first is the one to use, so that Do can have it in its own
// allocation. If there is no lease, nothing is left of k but undos.
func (k *call) acquire(first *Lease) (*Lease, error) {
	if err := k.enter(); err != nil {
		k.cancel(nil)
		return nil, k.failed(nil, err)
	}
	return k.get(first, k.limit())
}

// get asks for k's key until it has a lease, or within is over; 0 is no bound. A grant that
// is over on arrival is given back, and a call that waits asks again.
func (k *call) get(first *Lease, within time.Duration) (got *Lease, err error) {
	if err := k.await(); err != nil {
		k.giveUp()
		return nil, k.failed(nil, err)
	}
	defer k.bound(within)()
	if k.nested != nil && k.cfg.detect > 0 {
		ctx, cancel := context.WithCancel(k.actx)
		defer cancel()
		go k.lookOut(ctx)
	}
	l := first
	defer func() {
		if got == nil { // the store or an Observer may have panicked
			k.giveUp(l)
		}
	}()
	for n := 0; ; n++ {
		again, err := k.try(l)
		if err == nil {
			return l, nil
		}
		if again {
			err = k.pause(n, err)
		}
		if !again || err != nil {
			k.giveUp(l) // before an Observer hears of it, who may call Close
			return nil, k.failed(l, err)
		}
		l = new(Lease)
	}
}

// enter registers k with the engine, which watches the clock and can be closed meanwhile.
func (k *call) enter() error {
	if k.ctx.Err() != nil {
		return k.withCause(nil)
	}
	var s section
	s.enter(&k.c.engine)
	defer s.leaveLater()
	if s.e.closing.phase != open {
		return ErrClosed
	}
	s.e.calls[k] = struct{}{}
	k.mark = s.e.clock.mark(s.now)
	return nil
}

// bound has Acquire end when within is over, unless it is 0.
func (k *call) bound(within time.Duration) context.CancelFunc {
	k.actx = k.cctx
	if within == 0 {
		return func() {}
	}
	var cancel context.CancelFunc
	k.actx, cancel = context.WithTimeout(k.cctx, within)
	return cancel
}

// leave ends k: the engine no longer counts it.
func (k *call) leave() {
	var s section
	s.enter(&k.c.engine)
	delete(s.e.calls, k)
	s.leave()
}

// giveUp ends what k has, and what it may have got by last, since nobody gets it. The engine releases it
// in the background, or k itself when there is no engine any more.
func (k *call) giveUp(last ...*Lease) {
	var s section
	var alone []*Lease
	s.enter(&k.c.engine)
	for _, leases := range [...][]*Lease{last, k.leases} {
		for _, l := range leases {
			if l.state == held {
				l.keepUntil = 0
				s.end(l, ErrReleased)
				s.release(l)
			}
			if s.e.closing.phase == stopped && l.state == ending && l.failure == nil {
				alone = append(alone, l)
			}
		}
	}
	s.arrive(k)
	delete(s.e.calls, k)
	s.leave()
	k.cancel(nil)
	if len(alone) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(&detached{k.ctx})
	defer cancel()
	for _, l := range alone {
		_ = l.finish(k.parting(ctx, cancel))
	}
}

// parting is how k releases its leases, with a ctx that does not end with the caller's: a lock
// must be released all the more when the work was canceled.
func (k *call) parting(ctx context.Context, cancel context.CancelFunc) parting {
	return parting{ctx, cancel, min(doBound, k.cfg.ttl), k.ctx}
}

// try asks the store once, with an owner of its own. It reports whether the error is that
// of a grant which came too late, so that asking again may do.
func (k *call) try(l *Lease) (again bool, err error) {
	*l = Lease{e: &k.c.engine, cfg: k.cfg, index: -1}
	l.grant = Grant{Key: k.key, Owner: newOwner(k.c.id), Shared: k.cfg.shared}
	req := Request{
		Key: k.key, Owner: l.grant.Owner, TTL: k.cfg.ttl, Shared: k.cfg.shared,
		Wait: k.waits(), Metadata: k.cfg.metadata,
	}
	if k.nested != nil {
		req.Under = k.nested.under
		k.asks(req.Owner)
	}
	if req.Wait {
		req.HeadStart = k.cfg.headStart
	}
	if k.c.caps.EarlyLoss {
		req.Lost = l.notice
	}
	if req.Wait && (k.limit() > 0 || len(k.cfg.observers) > 0 || k.op == opLead) {
		req.Waiting = func(r Record) { k.waiting(l, r) }
	}
	g, err := l.e.store.Acquire(k.actx, req)
	if err == nil {
		err = l.e.sound(&g)
	}
	if err != nil {
		if k.unknown(err) {
			k.undo(l)
		}
		return false, k.explain(err)
	}
	if k.cfg.suits(g.TTL, "") != nil {
		k.undo(l)
		return false, k.cfg.suits(g.TTL, fmt.Sprintf(" as granted by store %s, asked for %v", k.c.caps.Store, k.cfg.ttl))
	}
	return k.granted(l, g)
}

// granted makes l held, and decides whether the caller gets it.
func (k *call) granted(l *Lease, g Grant) (again bool, err error) {
	var ended error
	if k.ctx.Err() != nil {
		ended = k.withCause(nil)
	}
	var s section
	s.enter(l.e)
	l.grant.Token, l.grant.TTL, l.grant.Start = g.Token, g.TTL, g.Start
	k.hold(&s, l)
	if s.n > 0 {
		// Meanwhile Close does not wait for k: an Observer may have called it.
		delete(s.e.calls, k)
		s.leave()
		s.enter(l.e)
		if s.e.closing.phase == open {
			s.e.calls[k] = struct{}{}
		}
	}
	defer s.leaveLater()
	s.timeUp(l)
	switch {
	case s.e.closing.phase != open:
		return false, ErrClosed
	case k.nested != nil && k.nested.victim != nil: // its ctx has ended, too late to keep the grant away
		return false, k.nested.victim
	case l.lost != nil:
		return k.waits(), l.lost
	case ended != nil:
		return false, ended
	case l.ended != nil: // an Observer released it
		return false, l.ended
	}
	s.arrive(k)
	if k.op.runs() {
		l.endFn = k.cancel
	}
	l.keepUntil = s.now + k.cfg.minHold
	k.mark = s.e.clock.mark(s.now) // a DoAll asks for its next key
	return false, nil
}

// hold makes l held from its Start on, and ends it if it is over already. A jump that was
// seen after Start counts, and has l verify itself. One that was seen before, in a long
// wait, does not.
func (k *call) hold(s *section, l *Lease) {
	c, early := &s.e.clock, l.lost
	start := c.at(l.grant.Start, c.skew)
	jumped := c.jumpedSince(k.mark) && start <= c.jumped
	if jumped {
		start = c.at(l.grant.Start, k.mark.skew)
	}
	l.lost = nil
	s.hold(l, start)
	s.tell(k.ctx, l, Event{Kind: EventGranted, Waited: s.now - k.mark.at})
	switch {
	case early != nil: // this may be a second grant, by a request sent again
		s.lose(l, early.Reason, nil, 0)
	case l.until <= s.now:
		s.lose(l, ReasonExpired, nil, 0)
	case jumped && k.cfg.renewal:
		s.verify(l)
	}
}

// undo has the engine release what l's owner may have.
func (k *call) undo(l *Lease) {
	var s section
	s.enter(l.e)
	s.release(l)
	s.leaveLater()
}

// unknown reports whether a grant or a place in line may be left after err: not when the
// request was never sent, or was answered by a plain refusal. A Locker before the store, such as
// contrib/breakerlock's, says by a method NotSent of its error that it has sent nothing.
func (k *call) unknown(err error) bool {
	var notSent interface{ NotSent() }
	if errors.As(err, &notSent) || errors.Is(err, ErrInvalid) || errors.Is(err, ErrUnsupported) {
		return false
	}
	return k.waits() || !errors.Is(err, ErrHeld) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// explain turns an error of the store into the call's: it says who ended a call that ended
// by a context, and that the key is held only if the store has shown it.
func (k *call) explain(err error) error {
	rec, seen, rest := k.split(err)
	ours := k.cctx.Err() != nil // before ctx is asked, which may end now
	switch {
	case k.ctx.Err() != nil:
		rest = k.withCause(rest)
	case ours: // by Close, as the victim of a deadlock, or by the loss of a lease of DoAll
		return context.Cause(k.cctx)
	case k.limit() > 0 && k.actx.Err() != nil && errors.Is(err, context.DeadlineExceeded):
		return k.over(rec, seen, rest)
	case errors.Is(err, ErrHeld):
		rest = storeError(k.ctx, rest)
	default: // it may have been held once, but the store has failed since
		return storeError(k.ctx, err)
	}
	if seen {
		return k.held(rec, rest)
	}
	return rest
}

// over is the error of a call whose bound ended it.
func (k *call) over(rec Record, seen bool, err error) error {
	if !seen {
		return fmt.Errorf("%w: no answer within %v: %w", ErrUnavailable, k.limit(), ownError(err))
	}
	over := fmt.Errorf("the wait of %v is over", k.limit())
	if err != nil && err != context.DeadlineExceeded { //nolint:errorlint // alone it says nothing more
		over = fmt.Errorf("%w: %w", over, storeError(k.ctx, err))
	}
	return k.held(rec, over)
}

// held is the *HeldError of a key that was seen held.
func (k *call) held(rec Record, why error) error {
	return &HeldError{Record: rec, Err: why, SameClient: k.c.holds(rec)}
}

// holds reports whether one of r's holders is a lease of c.
func (c *Client) holds(r Record) bool {
	return slices.ContainsFunc(r.Holders, func(h Holder) bool { return strings.HasPrefix(h.Owner, c.id) })
}

// split tells apart what an error of Acquire says of holders, who may be known from the
// beginning of the wait as well, and the rest, which may be nil.
func (k *call) split(err error) (rec Record, seen bool, rest error) {
	rec.Key = k.key
	rest, seen = err, errors.Is(err, ErrHeld)
	var held *HeldError
	if errors.As(err, &held) {
		rec, rest = held.Record, held.Err
	} else if err == ErrHeld { //nolint:errorlint // alone it says nothing more
		rest = nil
	}
	if r := k.seen.Load(); r != nil {
		seen = true
		if len(rec.Holders) == 0 {
			rec = *r
		}
	}
	return rec, seen, rest
}

// withCause is err, which may be nil, as that of k's ctx, with the cause if that has one
// of its own.
func (k *call) withCause(err error) error {
	switch ended := k.ctx.Err(); {
	case err == nil:
		err = ended
	case !errors.Is(err, ended):
		err = fmt.Errorf("%w: %w", ended, err)
	}
	if cause := context.Cause(k.ctx); !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	return err
}

// pause waits before the store is asked again after late, the loss of a grant.
func (k *call) pause(n int, late error) error {
	t := time.NewTimer(k.cfg.pause(n, k.cfg.ttl))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-k.actx.Done():
		return k.explain(fmt.Errorf("%w: %w", k.actx.Err(), late))
	}
}

// waiting is Request.Waiting. It does not wait for observers, which may end the wait.
func (k *call) waiting(l *Lease, r Record) {
	k.seen.CompareAndSwap(nil, &r)
	front := 0
	for front < len(r.Waiters) && r.Waiters[front].Owner != l.grant.Owner {
		front++
	}
	var s section
	s.enter(l.e)
	tell := l.post(k.ctx, Event{
		Kind: EventContended, Queue: front, SameClient: k.c.holds(r), Waited: s.now - k.mark.at,
	})
	s.leaveLater()
	if tell {
		go l.observe()
	}
}

// failed is err as the caller gets it. l is that of the last try; nil if nothing was sent.
func (k *call) failed(l *Lease, err error) error {
	var held *HeldError
	same := errors.As(err, &held) && held.SameClient
	err = k.op.fail(k.key, err)
	ev := Event{Kind: EventFailed, SameClient: same, Err: err}
	if l == nil {
		ev.Store, ev.Key, ev.Shared = k.c.caps.Store, k.key, k.cfg.shared
		for _, o := range k.cfg.observers {
			o.Observe(k.ctx, ev)
		}
		return err
	}
	var s section
	s.enter(l.e)
	ev.Waited = s.now - k.mark.at
	s.tell(k.ctx, l, ev)
	s.leave()
	return err
}

// An owner is the id of its Client, by which that recognizes its own leases in a Record,
// and 128 random bits.
const (
	idBytes = 6
	idLen   = 8 // in base64
)

// newID returns a Client's part of its owners.
func newID() string {
	var bits [idBytes]byte
	_, _ = rand.Read(bits[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(bits[:])
}

// newOwner returns id and 128 random bits in the letters that a store takes.
func newOwner(id string) string {
	var bits [16]byte
	_, _ = rand.Read(bits[:]) // never fails
	var owner [idLen + 22]byte
	copy(owner[:], id)
	base64.RawURLEncoding.Encode(owner[idLen:], bits[:])
	return string(owner[:])
}
