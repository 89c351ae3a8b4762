package locktest

import (
	"context"
	"errors"
	"fmt"

	lock "github.com/seed-215fdefa/lock"
)

func release() group {
	const (
		yours = "Release is yours alone. Release must end the grant of that owner and token only; a stale one must return ErrLost and change nothing."
		undo  = "Without a token (Grant{Key, Owner}) it must undo an acquisition whose outcome is unknown, or a place in line, and return nil if there is nothing to undo."
	)
	return group{"ReleaseIsYoursAlone", []row{
		{"OfALiveGrant", yours, both, nil, releaseOfLiveGrant},
		{"Again", yours, both, nil, releaseAgain},
		{"OfAnExpiredGrant", yours, both, nil, releaseOfExpired},
		{"OfASucceededGrant", yours, both, nil, releaseOfSucceeded},
		{"OfASucceededGrantInOneProcess", yours, both, nil, releaseOfSucceededInOneProcess},
		{"OfAnOlderToken", yours, both, nil, releaseOfOlderToken},
		{"OfOneReader", yours, shared, nil, releaseOfOneReader},
		{"AfterALostReply", yours, both, needs(canWithhold), releaseAfterLostReply},
		{"EachMessage", yours, both, needs(canStrike), releaseStruck},
		{"UndoOfNothing", undo, both, nil, undoOfNothing},
		{"UndoOfAGrant", undo, both, nil, undoOfGrant},
		{"UndoOfAPlaceInLine", undo, both, nil, undoOfPlace},
		{"UndoOfOneOwnerOnly", undo, both, nil, undoOfOneOwnerOnly},
		{"EachMessageOfAnUndo", undo, both, needs(canStrike), undoStruck},
	}}
}

func releaseOfLiveGrant(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	for range 3 {
		e.mustRelease(e.hold(a, key))
		e.vacant(b, key)
	}
}

func releaseAgain(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.hold(a, key)
	e.mustRelease(h)
	e.mustBeLost("Release", e.tryRelease(a, h.g))
	e.vacant(b, key)
}

func releaseOfExpired(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.mustAcquire(a, e.brief(key))
	e.expired(b, h)
	e.mustBeLost("Release", e.tryRelease(a, h.g))
	e.vacant(b, key)
}

func releaseOfSucceeded(e *env) { releaseSucceeded(e, e.open(), e.open()) }

func releaseOfSucceededInOneProcess(e *env) {
	l := e.open()
	releaseSucceeded(e, l, l)
}

func releaseSucceeded(e *env, a, b lock.Locker) {
	for _, h := range e.stale(a, b) {
		next := e.hold(b, h.g.Key)
		e.mustBeLost("Release", e.tryRelease(a, h.g))
		e.only(b, next)
		e.mustBeHeld(a, e.rival(h.g.Key))
		e.mustRelease(next)
	}
}

func releaseOfOlderToken(e *env) {
	a, b := e.open(), e.open()
	h := e.older(a, b)
	e.mustBeLost("Release", e.tryRelease(a, h.g))
	h.g.Token++
	e.only(b, h)
	e.mustRelease(h)
}

func releaseOfOneReader(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	one, two := e.hold(a, key), e.hold(a, key)
	e.mustRelease(one)
	e.only(b, two)
	e.mustBeLost("Release", e.tryRelease(a, one.g))
	e.only(b, two)
	e.mustBeHeld(b, e.rival(key))
	e.mustRelease(two)
	e.vacant(b, key)
}

// releaseAfterLostReply: the release took effect, and is repeated since nobody said so.
func releaseAfterLostReply(e *env) {
	b := e.open()
	e.eachLateReply(func(a lock.Locker, t *trouble) bite {
		key := e.key()
		h := e.mustAcquire(a, e.request(key))
		bit, _ := t.call("Release", func(ctx context.Context) error { return a.Release(ctx, h.g) })
		if bit == missed {
			return missed
		}
		if holder(e.mustInspect(b, key), h.g.Owner) != nil { // it has not taken effect
			t.heal()
			e.settledRelease(h)
			return shallow
		}
		next := e.succeed(b, key, e.patience())
		t.heal()
		e.eventually("an answer to Release after the fault", e.recovery(), func() (bool, string) {
			err := e.tryRelease(a, h.g)
			return errors.Is(err, lock.ErrLost), fmt.Sprintf("error %v, not ErrLost", err)
		})
		e.only(b, next)
		return deep
	})
}

func undoOfNothing(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	e.mustUndo(a, key, e.request(key).Owner)
	e.vacant(b, key)
	h := e.hold(a, key)
	e.mustRelease(h)
	e.mustUndo(a, key, h.g.Owner)
	e.mustUndo(a, key, h.g.Owner)
	e.vacant(b, key)
}

func undoOfGrant(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.mustAcquire(a, e.request(key))
	e.mustUndo(a, key, h.g.Owner)
	e.vacant(b, key)
	_, err := e.tryRenew(h)
	e.mustBeLost("Renew", err)
	e.vacant(b, key)
}

// undoOfPlace: whoever is behind moves up, and the key goes to nobody who left.
func undoOfPlace(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	blocker := e.lasting(a, e.rival(key))
	left := e.wait(b, e.request(key))
	behind := e.wait(a, e.request(key))
	left.withdraw()
	e.undone(b, a, key, left.h.req.Owner)
	e.mustRelease(blocker)
	h := behind.granted()
	e.only(b, h)
	e.mustRelease(h)
	e.vacant(b, key)
}

// undoOfOneOwnerOnly: a's other grant and b's place in line stay as they are.
func undoOfOneOwnerOnly(e *env) {
	a, b, key, other := e.open(), e.open(), e.key(), e.key()
	h, o := e.hold(a, key), e.hold(a, other)
	w := e.wait(b, e.rival(key))
	e.mustUndo(a, key, e.request(key).Owner)
	e.mustUndo(a, key, o.g.Owner)
	e.mustUndo(b, key, e.request(key).Owner)
	w.still()
	e.only(b, h)
	e.only(b, o)
	e.mustRelease(h)
	w.granted()
}
