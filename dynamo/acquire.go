package dynamo

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// acquisition is one Acquire: one grant, however many writes it takes.
//
// The first write is blind: its condition is that the lock is free, and that its token is
// above all before. If that fails the old item says why, and the next write, if there is
// one, is made for that item.
//
// After a write of unknown outcome each further one is on condition that the item still is
// what was read since. So of all that were sent no more than one takes effect: a blind one
// that comes late finds a token that is not below its own, an informed one another item.
type acquisition struct {
	l         *Locker
	req       lock.Request
	sent      map[lock.Token]moment // what may have been granted, and when it was sent
	doubt     bool                  // the outcome of a write is unknown
	token     lock.Token            // the highest asked for
	seen      map[string]sighting
	last      lock.Record   // as of the last refusal
	frees     time.Duration // until the first of its holders is over
	why       error         // what it is due to, other than a holder
	place     *place        // in line, if it waits
	begun     bool          // it has been refused, or stood behind another
	rests     time.Time     // until when it may leave the lock to others; zero: it does not
	grown     int           // how much its pauses have grown
	intended  int64         // until when an intent makes readers hold back, as far as is known
	announced bool          // an intent of this writer may be there
}

// sighting is a holder's expiry, and since when it has been seen unchanged. It is kept by
// the monotonic clock, for holders whose expiry was stamped by a clock gone wrong.
type sighting struct {
	expiry int64
	since  time.Time
}

func (l *Locker) acquisition(req lock.Request) *acquisition {
	req.Metadata = maps.Clone(req.Metadata)
	return &acquisition{l: l, req: req, sent: make(map[lock.Token]moment, 1)}
}

// try asks for the lock, beginning with a blind write, or with a read that costs less if
// the lock is likely to be held. It returns a *HeldError when it is.
func (a *acquisition) try(ctx context.Context, look bool) (g lock.Grant, err error) {
	err = a.l.repeat(ctx, func(ctx context.Context, n int) error {
		g, err = a.attempt(ctx, look, attemptLimit(a.req.TTL, n))
		if a.place != nil && ctx.Err() == nil {
			a.l.lines.asked(a.req.Key, err)
		}
		return err
	})
	return g, err
}

func (a *acquisition) attempt(ctx context.Context, look bool, limit time.Duration) (g lock.Grant, err error) {
	var it *item
	if look || a.doubt {
		if it, err = a.l.read(ctx, a.req.Key, a.doubt, limit); err != nil {
			return g, err
		}
	}
	return a.negotiate(ctx, it, limit)
}

// negotiate writes until one write is granted, or an item shows that the lock is held.
// it may be nil: nothing is known.
func (a *acquisition) negotiate(ctx context.Context, it *item, limit time.Duration) (lock.Grant, error) {
	for {
		m, err := a.l.now(ctx)
		if err != nil {
			return lock.Grant{}, err
		}
		if h, sent := a.own(it); h != nil {
			renewed := h.expiry != sent.upper+micros(a.req.TTL) // by another process, for this owner
			if !sent.behind(m) && (storekit.Elapsed(sent.local) < a.req.TTL || renewed) {
				return a.grant(h.token, sent), nil
			}
			if it, err = a.withdraw(ctx, it, limit); err != nil {
				return lock.Grant{}, err
			}
			continue
		}
		if it != nil {
			if held := a.blocked(it, m); held != nil {
				return lock.Grant{}, held
			}
		}
		if it != nil && !a.fits(it) {
			if it, err = a.makeRoom(ctx, it, m, limit); err != nil {
				return lock.Grant{}, err
			}
			continue
		}
		u, token := a.compose(it, m)
		a.sent[a.token] = m
		at, old, err := a.l.write(ctx, a.req.Key, u, limit)
		switch {
		case err != nil:
			if undone(err) {
				delete(a.sent, a.token)
			} else {
				a.doubt = true
			}
			return lock.Grant{}, err
		case old != nil:
			if h, _ := a.own(old); h == nil {
				delete(a.sent, a.token)
			}
			it = old
		case m.off(at.came, at.date):
			a.doubt, a.sent[a.token] = true, m.tooLow() // until the table has shown that it is gone
			if it, err = a.l.read(ctx, a.req.Key, true, limit); err != nil {
				return lock.Grant{}, err
			}
		case storekit.Elapsed(m.local) >= a.req.TTL:
			a.doubt = true // the next attempt reads whether it is over, or renewed by another process
			return lock.Grant{}, fmt.Errorf("lock: dynamo: DynamoDB took longer to answer than the TTL of %v: %w", a.req.TTL, errUnanswered)
		default:
			return a.grant(token, m), nil
		}
	}
}

func (a *acquisition) grant(token lock.Token, m moment) lock.Grant {
	return lock.Grant{
		Key: a.req.Key, Owner: a.req.Owner, Token: token, TTL: a.req.TTL, Start: m.local, Shared: a.req.Shared,
	}
}

// own finds the grant of a write whose reply was lost, and when that was sent. it may be nil.
func (a *acquisition) own(it *item) (h *holder, sent moment) {
	if it == nil {
		return nil, sent
	}
	h = it.of(a.req.Owner)
	if h == nil || h.shared != a.req.Shared {
		return nil, sent
	}
	sent, ok := a.sent[h.token]
	if !ok {
		return nil, sent
	}
	return h, sent
}

// earlier finds a live shared grant that another Acquire of this owner was given. This one may be a
// copy of that request which comes late, so it must not replace that grant. it may be nil.
func (a *acquisition) earlier(it *item, m moment) *holder {
	if it == nil || !a.req.Shared {
		return nil
	}
	if h := it.of(a.req.Owner); h != nil && h.shared && h.expiry > m.upper {
		return h
	}
	return nil
}

// blocked says who is in the way, or nil if nobody is.
func (a *acquisition) blocked(it *item, m moment) error {
	if a.earlier(it, m) != nil {
		return nil
	}
	live := it.writer != nil && !a.over(*it.writer, m)
	if a.req.Shared {
		live = live || it.intent.holds(m)
	} else {
		for _, r := range it.readers {
			live = !a.over(r, m) || live
		}
	}
	if !live {
		return nil
	}
	return a.refused(it, m, nil)
}

// refused notes who is in the way, and returns the error that says so, and why if that is
// not plain.
func (a *acquisition) refused(it *item, m moment, why error) error {
	a.last, a.frees, a.why = it.record(a.req.Key, m), lock.MaxTTL, why
	for _, h := range it.holders() {
		if left := m.left(h.expiry); left > 0 {
			a.frees = min(a.frees, left)
		}
	}
	return &lock.HeldError{Record: a.last, Err: why}
}

// over tells whether a holder's lease is over: by DynamoDB's clock, or since it has not
// been renewed for all of its length by this machine's monotonic clock.
func (a *acquisition) over(h holder, m moment) bool {
	if m.over(h.expiry) {
		return true
	}
	s, ok := a.seen[h.owner]
	if !ok || s.expiry != h.expiry {
		if a.seen == nil {
			a.seen = make(map[string]sighting)
		}
		a.seen[h.owner] = sighting{h.expiry, m.local}
		return false
	}
	return m.local.Sub(s.since) > h.lease+h.lease/drift+hostSkew
}

// compose makes the write for an item that does not block, or for one that is not known, and
// tells the token of the grant. A new one is DynamoDB's time, or one more than the last if that is
// not less.
func (a *acquisition) compose(it *item, m moment) (u *update, token lock.Token) {
	a.token = max(lock.Token(m.lower), a.token+1)
	if it != nil {
		a.token = max(a.token, it.barrier()+1)
	}
	u = new(update)
	informed := a.informed(it, m)
	if informed {
		u.as(it)
	} else {
		u.only("(attribute_not_exists(" + u.name(attrKey) + ") OR " +
			u.name(attrOpen) + " < " + u.value(num(a.token)) + ")")
	}
	switch h := a.earlier(it, m); {
	case h != nil:
		a.composeRenewal(it, h, m, u)
		return u, h.token
	case a.req.Shared:
		a.composeReader(it, m, u, informed)
	default:
		a.composeWriter(m, u, informed)
	}
	return u, a.token
}

// informed tells whether the write depends on the item as it was read: if somebody whose
// lease is over must make way, this owner is there already, or the outcome of an earlier write is
// unknown.
func (a *acquisition) informed(it *item, m moment) bool {
	switch {
	case it == nil:
		return false
	case a.doubt, it.of(a.req.Owner) != nil, it.writer != nil:
		return true
	case a.req.Shared:
		return a.amiss(it, m)
	}
	return it.attrs[attrReaders] != nil
}

// amiss tells of an item whose readers' weight is not as noted, or whose intent nobody can
// have: a blind write would go by that.
func (a *acquisition) amiss(it *item, m moment) bool {
	return it.weight != it.load() || it.intent.until >= m.upper
}

// composeWriter replaces the whole item: what it had belongs to nobody any more.
func (a *acquisition) composeWriter(m moment, u *update, informed bool) {
	if !informed {
		u.absent(attrReaders)
	}
	u.item = a.holder(m)
	u.item[attrHolder] = identity(a.token, a.req.Owner)
}

func (a *acquisition) composeReader(it *item, m moment, u *update, informed bool) {
	reader, weight := a.holder(m), a.weight()
	reader[attrWeight] = num(weight)
	if informed {
		u.set(attrWeight, num(a.load(it)+weight))
		if it.intent.until >= m.upper { // nobody has this one
			u.same(it, attrIntent)
			u.remove(attrIntent)
		}
	} else {
		u.absent(readerPrefix + a.req.Owner)
		u.absentOrLess(attrIntent, str(intent{until: m.upper}.String()))
		u.absentOrLess(attrWeight, num(maxWeight-weight+1))
		u.sets = append(u.sets, attrWeight+" = if_not_exists("+attrWeight+", "+u.value(num(int64(0)))+") + "+u.value(num(weight)))
	}
	token := u.value(num(a.token))
	u.sets = append(u.sets, u.name(attrToken)+" = "+token, u.name(attrOpen)+" = "+token)
	u.touch()
	reader[attrToken] = num(a.token)
	u.set(readerPrefix+a.req.Owner, &types.AttributeValueMemberM{Value: reader})
	u.adds = append(u.adds, u.name(attrReaders)+" "+u.value(&types.AttributeValueMemberSS{Value: []string{a.req.Owner}}))
	if it != nil && it.writer != nil {
		u.removeHolderAttributes()
	}
}

// composeRenewal keeps a grant that this owner has, and refuses the writes that it has sent since.
func (a *acquisition) composeRenewal(it *item, h *holder, m moment, u *update) {
	path := u.holder(lock.Grant{Owner: h.owner, Shared: true})
	u.sets = append(u.sets,
		path(attrExpiry)+" = "+u.value(num(max(h.expiry+1, m.upper+micros(a.req.TTL)))), // later with each renewal
		path(attrLease)+" = "+u.value(num(micros(max(h.lease, a.req.TTL)))))
	u.touch()
	u.open(it, a.token)
}

// holder has the attributes that writers and readers have alike.
func (a *acquisition) holder(m moment) map[string]types.AttributeValue {
	ttl := micros(a.req.TTL)
	return map[string]types.AttributeValue{
		attrExpiry: num(m.upper + ttl),
		attrInfo:   str(info{m.lower, ttl, a.req.Metadata}.String()),
	}
}

// withdraw takes back the grant that it shows, whose expiry comes too early or which may be over, and
// returns what is there then.
func (a *acquisition) withdraw(ctx context.Context, it *item, limit time.Duration) (*item, error) {
	a.doubt = true
	u := new(update)
	u.as(it)
	u.removeHolder(it, *it.of(a.req.Owner))
	_, old, err := a.l.write(ctx, a.req.Key, u, limit)
	if err == nil && old == nil {
		old, err = a.l.read(ctx, a.req.Key, true, limit)
	}
	return old, err
}

func micros(d time.Duration) int64 { return int64((d + time.Microsecond - 1) / time.Microsecond) }
