package locktest

import (
	"context"
	"fmt"
	"strings"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func oneOwner() group {
	const one = "One owner, one grant. Inside one Acquire a store may send its request again after an unknown outcome; it must end up with one grant and one token."
	return group{"OneOwnerOneGrant", []row{
		{"Try", one, both, nil, oneGrantOfTry},
		{"Wait", one, both, nil, oneGrantOfWait},
		{"OwnerOfAnyLength", one, both, nil, ownerOfAnyLength},
		{"LateReply", one, both, needs(canWithhold), oneGrantOfLateReply},
		{"EachMessage", one, both, needs(canStrike), acquireStruck},
	}}
}

// one checks that what the store has is h, once, and nobody in line.
func (e *env) one(l lock.Locker, h held) {
	e.Helper()
	e.only(l, h)
	rec := e.mustInspect(l, h.g.Key)
	if rec.Holders[0].Shared != h.g.Shared || len(rec.Waiters) > 0 {
		e.fail(fmt.Sprintf("one holder, shared %t, and an empty line", h.g.Shared), "%+v", rec)
	}
	if rec.Token != 0 && rec.Token != h.g.Token {
		e.fail(fmt.Sprintf("token %d to be the highest granted", h.g.Token), "%d", rec.Token)
	}
}

func oneGrantOfTry(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.hold(a, key)
	e.one(b, h)
	e.mustRelease(h)
	e.vacant(b, key)
}

func oneGrantOfWait(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	blocker := e.lasting(a, e.rival(key))
	w := e.wait(b, e.request(key))
	e.mustRelease(blocker)
	h := w.granted()
	e.one(a, h)
	e.mustRelease(h)
	e.vacant(a, key)
}

func ownerOfAnyLength(e *env) {
	a, b := e.open(), e.open()
	for _, owner := range []string{"a", "-", "_", "0", strings.Repeat("Zz9-", lock.MaxOwnerLen/4)} {
		req := e.request(e.key())
		req.Owner = owner
		h := e.lasting(a, req)
		e.one(b, h)
		e.mustRelease(h)
	}
}

// oneGrantOfLateReply: Acquire may return a grant or an error, and may send its request
// as often as it likes.
func oneGrantOfLateReply(e *env) {
	b := e.open()
	e.eachLateReply(func(a lock.Locker, t *trouble) bite {
		key := e.key()
		before := e.mustAcquire(b, e.rival(key))
		e.mustRelease(before)
		ctx, cancel := context.WithTimeout(e.ctx, 2*e.patience())
		defer cancel()
		t.begin()
		late := e.ask(ctx, a, e.request(key))
		bit := t.effect(late, b, e.patience())
		time.Sleep(e.ttl / 2)
		t.heal()
		late.returned("Acquire to return", 4*e.patience())
		if late.err != nil {
			e.settledUndo(a, key, late.h.req.Owner)
			e.undone(a, b, key, late.h.req.Owner)
			return bit
		}
		e.higher(late.h, before)
		e.one(b, late.h)
		e.mustRelease(late.h)
		e.vacant(b, key)
		return bit
	})
}

// undone undoes what owner may have, and checks that nothing is left of it, long before
// a grant or a place in line would have ended by themselves.
func (e *env) undone(l, other lock.Locker, key, owner string) {
	e.Helper()
	e.mustUndo(l, key, owner)
	e.eventually("nothing to be left of an Acquire that failed and was undone", max(2*e.ttl, time.Second)+5*e.pace, func() (bool, string) {
		rec := e.mustInspect(other, key)
		return holder(rec, owner) == nil && !inLine(rec, owner), fmt.Sprintf("%+v", rec)
	})
}

func inLine(rec lock.Record, owner string) bool {
	for _, w := range rec.Waiters {
		if w.Owner == owner {
			return true
		}
	}
	return false
}
