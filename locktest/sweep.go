package locktest

import (
	"context"
	"errors"
	"fmt"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// sweep calls try for each message of an operation, and each thing that can happen to it:
// the request is lost, its reply is, wholly or in part, or the request comes late. Each time
// it is with a Locker that was never used. try reports whether the operation was struck.
func (e *env) sweep(try func(l lock.Locker, t *trouble) bite) {
	e.Helper()
	struck := false
	for _, s := range []Strike{{}, {Reply: true}, {Reply: true, Torn: true}, {Hold: true}} {
		for s.K = 1; s.K <= mostMessages; s.K++ {
			l := e.open()
			t := &trouble{e: e, heal: func() {}, struck: func() bool { return false }, held: s.Hold}
			t.begin = func() {
				e.during = s.String()
				t.struck, t.heal = e.strike(l, s)
			}
			bit := try(l, t)
			t.heal()
			if bit == missed {
				break
			}
			struck = true
		}
	}
	e.during = ""
	if !struck {
		e.skip("no strike befell a message: does Harness.Strike or Harness.Proxy reach the Locker's own connections?")
	}
}

// acquireStruck: whatever is lost, there is one grant, or none once it was undone. A
// request that was held may come after its undo; then the TTL is the limit.
func acquireStruck(e *env) {
	b := e.open()
	e.sweep(func(a lock.Locker, t *trouble) bite {
		key := e.key()
		before := e.mustAcquire(b, e.rival(key))
		e.mustRelease(before)
		h := held{l: a, req: e.request(key)}
		if t.held {
			h.req = e.brief(key)
		}
		bit, err := t.call("Acquire", func(ctx context.Context) (err error) {
			h.asked = time.Now()
			h.g, err = a.Acquire(ctx, h.req)
			h.answered = time.Now()
			return err
		})
		t.heal()
		switch {
		case errors.Is(err, lock.ErrHeld):
			e.fail("a grant of a key that nobody holds, or the error of the lost message", "%v", err)
		case err != nil:
			e.settledUndo(a, key, h.req.Owner)
		case !t.held:
			e.higher(h, before)
			e.settledOnly(b, h)
			e.settledRelease(h)
		default:
			e.settledRelease(h)
		}
		if t.held {
			e.eventually("the key to be free, a TTL after a late request at the latest", e.overdueIn(e.ttl), func() (bool, string) {
				h, err := e.tryAcquire(b, e.rival(key))
				if err == nil {
					e.mustRelease(h)
				}
				return err == nil, fmt.Sprint(err)
			})
			return bit
		}
		e.undone(a, b, key, h.req.Owner)
		e.vacant(b, key)
		return bit
	})
}

// settledOnly is only, after a fault.
func (e *env) settledOnly(l lock.Locker, h held) {
	e.Helper()
	if err := e.settledRenewal(h); err != nil {
		e.fail("a nil error from the Renew of a live grant", "%v", err)
	}
	e.one(l, h)
}

// settledRelease releases until the store, after a fault, has an answer: nil or ErrLost.
func (e *env) settledRelease(h held) {
	e.Helper()
	e.eventually("an answer to Release after the fault", e.recovery(), func() (bool, string) {
		err := e.tryRelease(h.l, h.g)
		return err == nil || errors.Is(err, lock.ErrLost), fmt.Sprint(err)
	})
}

func renewalStruck(e *env) {
	b := e.open()
	e.sweep(func(a lock.Locker, t *trouble) bite {
		h := e.mustAcquire(a, e.request(e.key()))
		bit, err := t.call("Renew", func(ctx context.Context) error {
			_, err := a.Renew(ctx, h.g)
			return err
		})
		t.heal()
		if errors.Is(err, lock.ErrLost) {
			e.fail("a live grant to be renewed, or the error of the lost message", "%v", err)
		}
		e.settledOnly(b, h)
		e.settledRelease(h)
		return bit
	})
}

// releaseStruck: what is released may be another's at once, whom neither the message
// that comes late nor the Release that is repeated may concern. A try says whether it can be
// another's: while half of a quorum has released it, Inspect may say what it will.
func releaseStruck(e *env) {
	b := e.open()
	e.sweep(func(a lock.Locker, t *trouble) bite {
		key := e.key()
		h := e.mustAcquire(a, e.request(key))
		bit, err := t.call("Release", func(ctx context.Context) error { return a.Release(ctx, h.g) })
		next, refused := e.tryAcquire(b, e.rival(key))
		if refused != nil {
			if err == nil || !errors.Is(refused, lock.ErrHeld) {
				e.fail("a grant of a key that was released", "%v", refused)
			}
			t.heal()
			e.settledRelease(h)
			next = e.mustAcquire(b, e.rival(key))
		}
		t.heal()
		e.settledRelease(h)
		e.only(b, next)
		e.mustRelease(next)
		return bit
	})
}

func undoStruck(e *env) {
	b := e.open()
	e.sweep(func(a lock.Locker, t *trouble) bite {
		key := e.key()
		h := e.mustAcquire(a, e.request(key))
		undo := lock.Grant{Key: key, Owner: h.g.Owner}
		bit, _ := t.call("Release without a token", func(ctx context.Context) error { return a.Release(ctx, undo) })
		t.heal()
		e.settledUndo(a, key, h.g.Owner)
		e.undone(a, b, key, h.g.Owner)
		e.vacant(b, key)
		return bit
	})
}

// forceStruck: whoever ends a live grant is not told that there was none, whatever became of the reply.
func forceStruck(e *env) {
	b := e.open()
	e.sweep(func(a lock.Locker, t *trouble) bite {
		h := e.mustAcquire(b, e.request(e.key()))
		bit, err := t.call("ForceRelease", func(ctx context.Context) error {
			return adminOf(a).ForceRelease(ctx, h.g.Key, h.g.Owner)
		})
		t.heal()
		if errors.Is(err, lock.ErrLost) && live(h) {
			e.fail("ForceRelease to end a live grant, or the error of the lost message", "%v", err)
		}
		if err != nil {
			e.eventually("an answer to ForceRelease after the fault", e.recovery(), func() (bool, string) {
				err := e.forces(a, h.g.Key, h.g.Owner)
				return err == nil || errors.Is(err, lock.ErrLost), fmt.Sprint(err)
			})
		}
		_, err = e.tryRenew(h)
		e.mustBeLost("Renew", err)
		e.vacant(b, h.g.Key)
		return bit
	})
}

// waitStruck breaks a message of one who stands in line while the key becomes free.
func waitStruck(e *env) {
	b := e.open()
	e.sweep(func(a lock.Locker, t *trouble) bite {
		key := e.key()
		blocker := e.lasting(b, e.rival(key))
		w := e.wait(a, e.request(key))
		t.begin()
		e.mustRelease(blocker)
		if t.held {
			for begin := time.Now(); !t.struck() && !w.ended() && time.Since(begin) < e.patience(); {
				time.Sleep(e.tick())
			}
			time.Sleep(e.ttl / 4)
			t.heal()
		}
		h := w.grantedWithin(e.recovery())
		bit := missed
		if t.struck() {
			bit = shallow
		}
		t.heal()
		e.settledOnly(b, h)
		e.settledRelease(h)
		return bit
	})
}
