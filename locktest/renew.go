package locktest

import (
	"context"
	"errors"
	"fmt"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func renewal() group {
	const never = "Renew never creates. Renew must restart the TTL of a live grant of that owner and token, changing only TTL and Start, or return ErrLost, with the reason where known."
	return group{"RenewNeverCreates", []row{
		{"OfALiveGrant", never, both, nil, renewalOfLiveGrant},
		{"Extends", never, both, nil, renewalExtends},
		{"OfAnExpiredGrant", never, both, nil, renewalOfExpired},
		{"OfAReleasedGrant", never, both, nil, renewalOfReleased},
		{"OfASucceededGrant", never, both, nil, renewalOfSucceeded},
		{"OfASucceededGrantInOneProcess", never, both, nil, renewalOfSucceededInOneProcess},
		{"OfNoGrant", never, both, nil, renewalOfNoGrant},
		{"OfAnOlderToken", never, both, nil, renewalOfOlderToken},
		{"OfALostRecord", never, both, needs(can(LoseRecord)), renewalOfLostRecord},
		{"AfterALostReply", never, both, needs(canWithhold), renewalAfterLostReply},
		{"EachMessage", never, both, needs(canStrike), renewalStruck},
	}}
}

// older is h by the handle of a grant that its owner might have had before: with an earlier token.
func (e *env) older(a, b lock.Locker) held {
	key := e.key()
	e.mustRelease(e.mustAcquire(b, e.rival(key))) // so that there is an earlier one
	h := e.hold(a, key)
	h.g.Token--
	return h
}

func renewalOfOlderToken(e *env) {
	a, b := e.open(), e.open()
	h := e.older(a, b)
	_, err := e.tryRenew(h)
	e.mustBeLost("Renew", err)
	h.g.Token++
	e.only(b, h)
	e.mustRelease(h)
}

// renewalOfLiveGrant: e.tryRenew looks at what it returns.
func renewalOfLiveGrant(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.hold(a, key)
	for range 3 {
		h = e.mustRenew(h)
		e.one(b, h)
	}
	e.mustRelease(h)
}

// renewedLate takes a grant and renews it in the middle of its TTL. It reports false if
// the machine was too slow for that.
func (e *env) renewedLate(l lock.Locker) (h, renewed held, ok bool) {
	e.Helper()
	h = e.mustAcquire(l, e.brief(e.key()))
	time.Sleep(time.Until(h.answered.Add(h.g.TTL / 2)))
	renewed, err := e.tryRenew(h)
	if err != nil && live(h) {
		e.fail("a nil error from the Renew of a live grant", "%v", err)
	}
	return h, renewed, err == nil
}

// live reports whether what has just been answered was so while h was sure to be live.
func live(h held) bool { return time.Now().Before(h.end().Add(-drift(h.g.TTL))) }

// renewalExtends looks for the grant between the end that it had before it was renewed
// and the one it has then.
func renewalExtends(e *env) {
	a, b := e.open(), e.open()
	e.attempts(func() bool {
		h, r, ok := e.renewedLate(a)
		if !ok {
			return false
		}
		time.Sleep(time.Until(h.answered.Add(h.g.TTL + h.g.TTL/8)))
		_, err := e.tryAcquire(b, e.rival(h.g.Key))
		if !live(r) {
			return false
		}
		if err == nil {
			e.fail("the key to be held after the first TTL and before the renewed one is over", "a grant to another")
		}
		return true // r may be over before a Release arrives
	})
}

// lostReason checks that an error that is ErrLost does not claim one of the reasons.
func (e *env) lostReason(err error, wrong ...lock.LostReason) {
	e.Helper()
	var lost *lock.LostError
	if !errors.As(err, &lost) {
		return
	}
	for _, r := range wrong {
		if lost.Reason == r {
			e.fail("the reason of the loss, or none", "%v", err)
		}
	}
}

func renewalOfExpired(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.mustAcquire(a, e.brief(key))
	e.expired(b, h)
	_, err := e.tryRenew(h)
	e.mustBeLost("Renew", err)
	e.lostReason(err, lock.ReasonTaken, lock.ReasonForced)
	e.vacant(b, key)
}

func renewalOfReleased(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.hold(a, key)
	e.mustRelease(h)
	_, err := e.tryRenew(h)
	e.mustBeLost("Renew", err)
	e.vacant(b, key)
}

func renewalOfSucceeded(e *env) { renewSucceeded(e, e.open(), e.open()) }

func renewalOfSucceededInOneProcess(e *env) {
	l := e.open()
	renewSucceeded(e, l, l)
}

// renewSucceeded has two stale grants, an expired one and a released one, and next holds
// the keys of both.
func renewSucceeded(e *env, a, b lock.Locker) {
	for _, h := range e.stale(a, b) {
		next := e.hold(b, h.g.Key)
		_, err := e.tryRenew(h)
		e.mustBeLost("Renew", err)
		e.lostReason(err, lock.ReasonForced)
		e.only(b, next)
		e.mustRelease(next)
		e.vacant(b, h.g.Key)
	}
}

// stale returns grants that l had: an expired one, whose end other has seen, and a
// released one.
func (e *env) stale(l, other lock.Locker) []held {
	e.Helper()
	expired, released := e.mustAcquire(l, e.brief(e.key())), e.mustAcquire(l, e.request(e.key()))
	e.mustRelease(released)
	e.expired(other, expired)
	return []held{expired, released}
}

func renewalOfNoGrant(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	never := func() held {
		req := e.request(key)
		return held{l: a, req: req, g: lock.Grant{
			Key: key, Owner: req.Owner, Token: 1, TTL: req.TTL, Start: time.Now(), Shared: e.shared,
		}}
	}
	_, err := e.tryRenew(never())
	e.mustBeLost("Renew", err)
	e.vacant(b, key)
	h := e.hold(b, key)
	_, err = e.tryRenew(never())
	e.mustBeLost("Renew", err)
	e.only(b, h)
}

// renewalOfLostRecord: to write the record anew would be to create a grant, and might be
// beside another's.
func renewalOfLostRecord(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.mustAcquire(a, e.request(key))
	e.fault(LoseRecord, a)()
	if e.caps.HoldSurvives.Has(lock.SurvivesRecordLoss) {
		e.skip("the store declares that grants survive it")
	}
	err := e.settledRenewal(h)
	e.mustBeLost("Renew", err)
	e.vacant(b, key)
}

// renewalAfterLostReply: the renewal took effect, whatever its caller was told, so the
// next one must find the grant as it left it.
func renewalAfterLostReply(e *env) {
	b := e.open()
	e.eachLateReply(func(a lock.Locker, t *trouble) bite {
		h := e.mustAcquire(a, e.request(e.key()))
		bit, err := t.call("Renew", func(ctx context.Context) error {
			_, err := a.Renew(ctx, h.g)
			return err
		})
		t.heal()
		if errors.Is(err, lock.ErrLost) {
			e.fail("a live grant to be renewed, or the error of the lost reply", "%v", err)
		}
		err = e.settledRenewal(h)
		if err != nil && !live(h) {
			e.skip(fmt.Sprintf("the fault took longer than a TTL of %v", h.g.TTL))
		}
		if err != nil {
			e.fail(fmt.Sprintf("the next renewal of token %d to work", h.g.Token), "%v", err)
		}
		e.one(b, h)
		if bit != missed {
			bit = deep // as far as one can see
		}
		return bit
	})
}
