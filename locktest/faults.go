package locktest

import (
	"context"
	"errors"
	"fmt"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// holdSurvives checks that a grant outlives f as far as s is declared, or else that its
// loss is told. s is 0 for a fault that no grant may mind.
func holdSurvives(f Fault, s lock.Survival) func(*env) {
	return func(e *env) {
		a, b, key := e.open(), e.open(), e.key()
		h := e.mustAcquire(a, e.request(key))
		heal := e.fault(f, a)
		time.Sleep(e.ttl / 2)
		heal()
		next, err := e.settled(b, e.rival(key))
		renewal := e.settledRenewal(h)
		if !live(h) {
			e.skip(fmt.Sprintf("%v took longer than a TTL of %v", f, h.g.TTL))
		}
		switch {
		case e.caps.HoldSurvives.Has(s):
			if err == nil || renewal != nil {
				e.fail(fmt.Sprintf("a live grant to survive %v, as declared", f),
					"another's try: %v; its own renewal: %v", err, renewal)
			}
		case f == LoseRecord && err != nil && renewal == nil:
			e.skip("the fault did not bite: the grant is still there")
		case err == nil && !errors.Is(renewal, lock.ErrLost):
			e.fail("ErrLost from a renewal when another has the key", "%v", renewal)
		case err == nil && e.caps.TokenSurvives.Has(s) && next.g.Token <= h.g.Token:
			e.fail(fmt.Sprintf("a token above %d after %v, as declared", h.g.Token, f), "%d", next.g.Token)
		}
	}
}

// recovery is how long a store and its clients may take to be back after a fault.
func (e *env) recovery() time.Duration { return 20*time.Second + 5*e.ttl + e.starved() }

// settled tries until the store, after a fault, has an answer: a grant or ErrHeld. It
// undoes what a try that ended otherwise may have left.
func (e *env) settled(l lock.Locker, req lock.Request) (h held, err error) {
	e.Helper()
	unknown := ""
	e.eventually("an answer to Acquire after the fault", e.recovery(), func() (bool, string) {
		if unknown != "" {
			if err := e.tryRelease(l, lock.Grant{Key: req.Key, Owner: unknown}); err != nil {
				return false, fmt.Sprint("undo: ", err)
			}
			unknown = ""
		}
		h = held{l: l, req: anew(req)}
		err = e.call("Acquire", func(ctx context.Context) (err error) {
			h.asked = time.Now()
			h.g, err = l.Acquire(ctx, h.req)
			h.answered = time.Now()
			return err
		})
		if err == nil || errors.Is(err, lock.ErrHeld) {
			return true, ""
		}
		unknown = h.req.Owner
		return false, err.Error()
	})
	return h, err
}

// settledRenewal renews until the store, after a fault, has an answer: nil or ErrLost.
func (e *env) settledRenewal(h held) (err error) {
	e.Helper()
	e.eventually("an answer to Renew after the fault", e.recovery(), func() (bool, string) {
		_, err = e.tryRenew(h)
		return err == nil || errors.Is(err, lock.ErrLost), fmt.Sprint(err)
	})
	return err
}
