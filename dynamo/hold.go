package dynamo

import (
	"context"
	"slices"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// renewal is one Renew. Each of its writes has a stamp of its own, and a late one cannot
// shorten what a later one has made of the lease.
type renewal struct {
	l    *Locker
	g    lock.Grant
	sent map[int64]moment // by expiry
}

func (r *renewal) try(ctx context.Context, n int) error {
	var it *item
	for {
		m, err := r.l.now(ctx)
		if err != nil {
			return err
		}
		if it != nil {
			if done, err := r.settle(it, m); done {
				return err
			}
		}
		u, expiry := r.compose(it, m)
		r.sent[expiry] = m
		at, old, err := r.l.write(ctx, r.g.Key, u, attemptLimit(r.g.TTL, n))
		switch {
		case err != nil:
			return err
		case old == nil && m.off(at.came, at.date):
			// Its end comes too early: renew again, by the time that the reply has told.
			it, r.sent[expiry] = nil, m.tooLow()
		case old == nil && storekit.Elapsed(m.local) >= r.g.TTL:
			it = nil // it may be over: renew again, or learn that it is lost
		case old == nil:
			r.g.Start = m.local
			return nil
		default:
			it = old
		}
	}
}

// compose makes the write: blind, on condition that the grant is live and ends earlier than
// it will; or for an item in which it ends later, since the clock was known less well then.
func (r *renewal) compose(it *item, m moment) (u *update, expiry int64) {
	u = new(update)
	expiry = m.upper + micros(r.g.TTL)
	path := u.holder(r.g)
	if it == nil {
		u.only(path(attrExpiry) + " < " + u.value(num(expiry)))
	} else {
		u.as(it)
		expiry = max(expiry, it.of(r.g.Owner).expiry+1)
	}
	u.live(r.g, path, it, m)
	u.sets = append(u.sets,
		path(attrExpiry)+" = "+u.value(num(expiry)),
		path(attrLease)+" = "+u.value(num(micros(r.g.TTL))))
	if r.g.Shared {
		u.touch()
	}
	return u, expiry
}

// settle says what a refused renewal comes to, unless another write is to be tried.
func (r *renewal) settle(it *item, m moment) (done bool, err error) {
	h := it.grant(r.g)
	if h == nil {
		return true, lost(it, r.g)
	}
	if sent, ok := r.sent[h.expiry]; ok && !sent.behind(m) && storekit.Elapsed(sent.local) < r.g.TTL {
		r.g.Start = sent.local
		return true, nil
	}
	if !h.live(r.g, m) {
		return true, lost(it, r.g)
	}
	return false, nil
}

// grant is g, or nil if it is not there.
func (it *item) grant(g lock.Grant) *holder {
	if h := it.of(g.Owner); h != nil && h.token == g.Token && h.shared == g.Shared {
		return h
	}
	return nil
}

// live tells whether g, which is there, may be renewed and released yet, if the item still is as it
// was read when that is written: so nobody has taken over. Bounds of DynamoDB's clock that were
// made anew are up to a second apart. While g's end is between them this machine's clock decides.
func (h *holder) live(g lock.Grant, m moment) bool {
	return h.expiry > m.upper || !m.over(h.expiry) && storekit.Elapsed(g.Start) < h.lease
}

// release is one Release of a grant whose token is known.
type release struct {
	l     *Locker
	g     lock.Grant
	doubt bool // the outcome of a write is unknown
	free  bool // nobody else holds the lock
	asked bool // another Locker may have asked for it
}

func (r *release) try(ctx context.Context, n int) error {
	var it *item
	for {
		m, err := r.l.now(ctx)
		if err != nil {
			return err
		}
		u := r.compose(it, m)
		_, old, err := r.l.write(ctx, r.g.Key, u, attemptLimit(r.g.TTL, n))
		switch {
		case err != nil:
			r.doubt = r.doubt || !undone(err)
			return err
		case old == nil:
			r.tidy(ctx, u.after, m)
			return nil
		case r.done(old):
			r.free = true
			return nil
		}
		if h := old.grant(r.g); h == nil || !h.live(r.g, m) {
			return lost(old, r.g)
		}
		it, r.asked = old, r.asked || old.floored
	}
}

// compose makes the write, on condition that the grant is live. An exclusive one leaves
// nothing but its token as the barrier: blind if there is no floor, or for an item as it was read.
func (r *release) compose(it *item, m moment) *update {
	u := new(update)
	u.live(r.g, u.holder(r.g), it, m)
	switch {
	case r.g.Shared:
		u.touch()
		u.remove(readerPrefix + r.g.Owner)
		u.deletes = append(u.deletes, r.g.Owner)
		zero := u.value(num(int64(0)))
		u.lighten("if_not_exists(" + u.holder(r.g)(attrWeight) + ", " + zero + ")")
		u.returns = types.ReturnValueAllNew
	case it == nil:
		u.absent(attrFloor)
		u.item = map[string]types.AttributeValue{attrOpen: num(r.g.Token)}
	default:
		u.same(it, attrFloor)
		u.removeWriter(it)
	}
	return u
}

// tidy looks at what a reader has left behind, and takes other readers away whose leases
// are over. New readers cannot see them, and as long as there is always one no writer comes
// to do it. It is not repeated when it fails: there will be another reader.
func (r *release) tidy(ctx context.Context, attrs map[string]types.AttributeValue, m moment) {
	if !r.g.Shared {
		r.free = true
		return
	}
	it, err := parse(r.g.Key, attrs)
	if err != nil {
		return
	}
	dead := it.dead(func(h holder) bool { return m.over(h.expiry) })
	r.free = len(it.readers) == len(dead)
	if len(dead) > 0 {
		_, _ = r.l.bury(ctx, r.g.Key, dead, minAttempt)
	}
}

// done tells whether an earlier write of this release, whose reply was lost, has ended the
// grant: it was there when that was sent, and is gone before it can have expired.
func (r *release) done(it *item) bool {
	if !r.doubt || it.of(r.g.Owner) != nil || slices.Contains(it.forced, r.g.Owner) {
		return false
	}
	return storekit.Vanished(r.g) == 0
}

// holder returns the way to an attribute of a grant: they are the item's own, or in the
// reader's map.
func (u *update) holder(g lock.Grant) func(attr string) string {
	if !g.Shared {
		return u.name
	}
	reader := u.name(readerPrefix + g.Owner)
	return func(attr string) string { return reader + "." + u.name(attr) }
}

// live adds the condition that a grant is there, with its token, and not over, or ends no earlier
// than in it, if that was read. Its holder judges by the upper bound of DynamoDB's clock: it has
// given up before another takes over.
func (u *update) live(g lock.Grant, path func(string) string, it *item, m moment) {
	if g.Shared {
		u.only(path(attrToken) + " = " + u.value(num(g.Token)))
	} else {
		u.compare(attrHolder, "=", identity(g.Token, g.Owner))
	}
	after := m.upper
	if it != nil {
		after = min(after, it.of(g.Owner).expiry-1)
	}
	u.only(path(attrExpiry) + " > " + u.value(num(after)))
}

// lost says how a grant was lost, as far as the item tells.
func lost(it *item, g lock.Grant) error {
	e := &lock.LostError{Token: g.Token}
	switch h := it.of(g.Owner); {
	case h != nil && h.token == g.Token:
		e.Reason = lock.ReasonExpired // it is there still: over by DynamoDB's clock
	case slices.Contains(it.forced, g.Owner):
		e.Reason = lock.ReasonForced
	case it.token > g.Token && (!g.Shared || len(it.holders()) > 0 || it.attrs[attrRev] == nil): // as a writer leaves it
		e.Reason = lock.ReasonTaken
	default:
		e.Reason = storekit.Vanished(g)
	}
	return e
}

// undo ends whatever owner has on the key, if anything, and refuses what it has asked for
// and may come late: it raises the barrier above every token that a blind write of the
// owner can have, which changes the item for an informed one.
func (l *Locker) undo(ctx context.Context, g lock.Grant) error {
	err := l.repeat(ctx, func(ctx context.Context, _ int) error {
		it, err := l.read(ctx, g.Key, true, maxAttempt)
		for err == nil && it != nil {
			var m moment
			if m, err = l.now(ctx); err == nil {
				_, it, err = l.write(ctx, g.Key, composeUndo(it, g.Owner, m), maxAttempt)
			}
		}
		return err
	})
	if err == nil {
		l.lines.released(g.Key)
	}
	return err
}

func composeUndo(it *item, owner string, m moment) *update {
	u := new(update)
	u.as(it)
	barrier := max(lock.Token(m.upper), it.barrier()) + 1
	h := it.of(owner)
	switch {
	case it.writer != nil && h == nil:
		u.set(attrFloor, num(barrier))
	case h != nil && !h.shared:
		u.open(it, barrier)
		u.removeHolderAttributes()
	default:
		u.open(it, barrier)
		if h != nil {
			u.removeHolder(it, *h)
		}
	}
	if it.intent.owner == owner {
		u.remove(attrIntent)
	}
	return u
}
