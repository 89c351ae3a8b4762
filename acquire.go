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

// call is one Do, TryDo, Lock or TryLock.
type call struct {
	c   *Client
	op  operation
	key string
	cfg *config

	ctx    context.Context         // the caller's
	cctx   context.Context         // its child, which Close can end
	cancel context.CancelCauseFunc // of cctx
	actx   context.Context         // for Acquire: cctx, with a bound if there is one
	within boundContext            // the bound of actx
	limit  time.Duration           // 0: none
	wait   bool

	start time.Duration
	skew  time.Duration // the clock's at start
	jumps uint64
	seen  atomic.Pointer[Record] // who held the key when the wait began, if known
}

// acquire gets k a lease; first is the one to use, so that Do can have it in its own
// allocation. A grant that is over on arrival is given back, and a call that waits asks
// again. If there is an error, nothing is left of k but undos.
func (k *call) acquire(first *Lease) (*Lease, error) {
	if err := k.enter(); err != nil {
		k.cancel(nil)
		return nil, k.failed(nil, err)
	}
	for n, l := 0, first; ; n++ {
		again, err := k.try(l)
		if err == nil {
			return l, nil
		}
		if again {
			err = k.pause(n, err)
		}
		if !again || err != nil {
			k.leave()
			return nil, k.failed(l, err)
		}
		l = new(Lease)
	}
}

// enter registers k with the engine, which watches the clock and can be closed meanwhile.
func (k *call) enter() error {
	if err := k.ctx.Err(); err != nil {
		return k.withCause(err)
	}
	e := &k.c.engine
	var fx effects
	now := e.lock(&fx)
	if e.closing.begun {
		e.unlock(now, &fx)
		return ErrClosed
	}
	e.calls[k] = struct{}{}
	k.start, k.skew, k.jumps = now, e.clock.skew, e.clock.jumps
	bound := e.clock.local(now + k.limit)
	e.unlock(now, &fx)

	k.actx = k.cctx
	if k.limit > 0 {
		k.within.parent, k.within.deadline = k.cctx, bound
		k.actx = &k.within
	}
	return nil
}

// leave ends k: the engine no longer counts it, its contexts are freed.
func (k *call) leave() {
	k.c.engine.forget(k)
	if k.limit > 0 {
		k.within.end()
	}
	k.cancel(nil)
}

// try asks the store once, with an owner of its own. It reports whether the error is that
// of a grant which came too late, so that asking again may do.
func (k *call) try(l *Lease) (again bool, err error) {
	*l = Lease{e: &k.c.engine, cfg: k.cfg, index: -1, due: never}
	l.grant = Grant{Key: k.key, Owner: newOwner(k.c.id), Shared: k.cfg.shared}
	req := Request{
		Key: k.key, Owner: l.grant.Owner, TTL: k.cfg.ttl, Shared: k.cfg.shared,
		Wait: k.wait, Metadata: k.cfg.metadata,
	}
	if k.c.caps.EarlyLoss {
		req.Lost = l.notice
	}
	if k.wait && (k.limit > 0 || len(k.cfg.observers) > 0) {
		req.Waiting = func(r Record) { k.waiting(l, r) }
	}
	g, err := k.c.engine.store.Acquire(k.actx, req)
	if err == nil && (g.Token == 0 || g.TTL <= 0 || g.Start.IsZero()) {
		err = fmt.Errorf("store %s broke its contract: granted token %d, TTL %v, start %v",
			k.c.caps.Store, g.Token, g.TTL, g.Start)
	}
	if err == nil {
		g.TTL = min(g.TTL, MaxTTL) // the lease may end sooner, and no time overflows
	}
	if err != nil {
		return false, k.refused(l, err)
	}
	return k.granted(l, g)
}

// granted makes l held, unless that is over already.
func (k *call) granted(l *Lease, g Grant) (again bool, err error) {
	if drift := k.cfg.driftOf(g.TTL); drift >= g.TTL {
		k.undo(l)
		return false, fmt.Errorf("%w: drift %v with TTL %v as granted by store %s, asked for %v: drift must be less than the TTL",
			ErrInvalid, drift, g.TTL, k.c.caps.Store, k.cfg.ttl)
	}
	e := l.e
	ended := k.ctx.Err()
	var fx effects
	now := e.lock(&fx)
	l.grant.Token, l.grant.TTL, l.grant.Start = g.Token, g.TTL, g.Start
	fx.tell(k.ctx, l, EventGranted, now-k.start, nil)
	if fx.n > 0 {
		// Told before it is held, so that no event of the lease comes before this one.
		e.unlock(now, &fx)
		fx = effects{}
		now = e.lock(&fx)
	}
	k.hold(l, now)
	switch {
	case l.early:
		e.lose(l, l.reason, nil, now, &fx)
	case e.expire(l, now, &fx):
	case e.closing.begun:
		err = ErrClosed
	case ended != nil:
		err = k.withCause(ended)
	default:
		if k.op.runs() {
			l.endFn = k.cancel
		}
		e.unlock(now, &fx)
		return false, nil
	}
	// Nobody gets it: it is released, and a call that waits may ask again if that is
	// why it was lost.
	if l.lost != nil {
		again, err = k.wait, l.lost
	}
	e.end(l, ErrReleased, &fx)
	e.leave(l, now)
	e.unlock(now, &fx)
	return again, err
}

// hold makes l held from its Start on. A jump that was seen after Start counts, and has l
// verify itself. One that was seen before, in a long wait, does not.
func (k *call) hold(l *Lease, now time.Duration) {
	e := l.e
	start := e.clock.at(l.grant.Start, e.clock.skew)
	jumped := k.jumps != e.clock.jumps && start <= e.clock.jumped
	if jumped {
		start = e.clock.at(l.grant.Start, k.skew)
	}
	e.hold(l, start)
	if jumped && k.cfg.renewal {
		e.verify(l, now)
		e.plan(l)
	}
}

// refused takes an error of Acquire, has undone what it may have left, and returns the
// error to tell.
func (k *call) refused(l *Lease, err error) error {
	if k.unknown(err) {
		k.undo(l)
	}
	return k.explain(err)
}

// undo has the engine release what l's owner may have.
func (k *call) undo(l *Lease) {
	e := l.e
	var fx effects
	now := e.lock(&fx)
	l.told = true // there was no hold to tell the end of
	e.leave(l, now)
	e.unlock(now, &fx)
}

// unknown reports whether a grant or a place in line may be left after err: not when the
// request was never sent, or was answered by a plain refusal.
func (k *call) unknown(err error) bool {
	if errors.Is(err, ErrInvalid) || errors.Is(err, ErrUnsupported) {
		return false
	}
	return k.wait || !errors.Is(err, ErrHeld) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// explain turns an error of the store into the call's: it says who ended a call that ended
// by a context, and that the key is held only if the store has shown it.
func (k *call) explain(err error) error {
	rec, seen, rest := k.split(err)
	switch {
	case k.ctx.Err() != nil:
		rest = k.withCause(rest)
	case k.cctx.Err() != nil:
		return ErrClosed
	case k.limit > 0 && k.within.Err() != nil && errors.Is(err, context.DeadlineExceeded):
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
		return fmt.Errorf("%w: no answer within %v: %w", ErrUnavailable, k.limit, err)
	}
	over := fmt.Errorf("the wait of %v is over", k.limit)
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

// waiting is Request.Waiting.
func (k *call) waiting(l *Lease, r Record) {
	k.seen.CompareAndSwap(nil, &r)
	front := 0
	for front < len(r.Waiters) && r.Waiters[front].Owner != l.grant.Owner {
		front++
	}
	k.tell(l, Event{Kind: EventContended, Queue: front, SameClient: k.c.holds(r)})
}

// failed is err as the caller gets it. l is that of the last try, if there was one.
func (k *call) failed(l *Lease, err error) error {
	var held *HeldError
	same := errors.As(err, &held) && held.SameClient
	err = k.op.fail(k.key, err)
	k.tell(l, Event{Kind: EventFailed, SameClient: same, Err: err})
	return err
}

// tell has the observers see an event before the grant.
func (k *call) tell(l *Lease, ev Event) {
	if len(k.cfg.observers) == 0 {
		return
	}
	ev.Store, ev.Key, ev.Shared = k.c.caps.Store, k.key, k.cfg.shared
	if l != nil {
		if l.grant.Token == 0 {
			ev.Owner = l.grant.Owner
		}
		var fx effects
		now := l.e.lock(&fx)
		ev = ev.measured(now - k.start)
		l.e.unlock(now, &fx)
	}
	for _, o := range k.cfg.observers {
		o.Observe(k.ctx, ev)
	}
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
