package locktest

import (
	"fmt"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func deadHolders() group {
	const pass = "Dead holders pass. A key whose holder died must be acquirable within TTL + Capabilities.ExpirySlack, by a first try without Wait too."
	return group{"DeadHoldersPass", []row{
		{"FirstTry", pass, both, nil, func(e *env) { e.firstTry(false) }},
		{"Waiter", pass, both, nil, func(e *env) { e.waiterSucceeds(false) }},
		{"KilledHolder", pass, both, needs(can(Sever)), func(e *env) { e.firstTry(true) }},
		{"KilledHolderAndWaiter", pass, both, needs(can(Sever)), func(e *env) { e.waiterSucceeds(true) }},
		{"BesideALivingReader", pass, shared, nil, deadBesideLivingReader},
		{"ManyKeys", pass, plain, nil, deadHolderOfManyKeys},
	}}
}

func deadWaiters() group {
	const skipped = "Dead waiters are skipped. A waiter must live by a heartbeat of min(TTL, 5 s): a dead one must not block the line for longer than that."
	return group{"DeadWaitersAreSkipped", []row{
		{"ByTheNext", skipped, both, needs(can(Sever)), deadWaiterBeforeAnother},
		{"AfterALongTime", skipped, both, needs(can(Sever)), longDeadWaiter},
		{"ByATry", skipped, both, needs(can(Sever)), deadWaiterBeforeTry},
		{"WithALongTTL", skipped, plain, needs(can(Sever)), deadWaiterWithLongTTL},
		{"BehindALivingReader", skipped, shared, needs(can(Sever)), deadWaiterBehindReader},
	}}
}

// firstTry: nobody touches the key until its holder must be over, and then somebody
// gets it at once. A holder that does not renew is as good as dead; kill makes sure.
func (e *env) firstTry(kill bool) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.mustAcquire(a, e.brief(key))
	if kill {
		e.fault(Sever, a)
	}
	time.Sleep(time.Until(e.overdue(h)))
	next, err := e.tryAcquire(b, e.rival(key))
	if err != nil {
		e.fail(fmt.Sprintf("the first try to get the key, %v after a grant with a TTL of %v", time.Since(h.answered), h.g.TTL), "%v", err)
	}
	e.mustRelease(next)
}

// waiterSucceeds is firstTry for one who stands in line already.
func (e *env) waiterSucceeds(kill bool) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.mustAcquire(a, e.brief(key))
	w := e.ask(e.ctx, b, waiting(e.rival(key)))
	if kill {
		e.fault(Sever, a)
	}
	next := w.grantedWithin(e.overdueIn(h.g.TTL))
	e.only(b, next)
	e.mustRelease(next)
}

// deadBesideLivingReader: each reader lives by its own renewals. One that renews must
// not keep another's grant.
func deadBesideLivingReader(e *env) {
	a, b, c, key := e.open(), e.open(), e.open(), e.key()
	living := e.hold(b, key)
	dead := e.mustAcquire(a, e.brief(key))
	for time.Now().Before(e.overdue(dead)) {
		e.mustRenew(living)
		time.Sleep(e.tick())
	}
	if rec := e.mustInspect(c, key); holder(rec, dead.g.Owner) != nil {
		e.fail("the dead reader to be gone", "%+v", rec.Holders)
	}
	e.mustRelease(living)
	e.free(c, key)
}

// deadHolderOfManyKeys: what one process held passes key by key.
func deadHolderOfManyKeys(e *env) {
	a, b := e.open(), e.open()
	var hs []held
	for range 20 {
		hs = append(hs, e.mustAcquire(a, e.brief(e.key())))
	}
	last := hs[len(hs)-1]
	time.Sleep(time.Until(e.overdue(last)))
	for _, h := range hs {
		e.free(b, h.g.Key)
	}
}

// lineBehindDead is a line with a dead waiter of that TTL at its head, in front of a key
// that is held.
func (e *env) lineBehindDead(ttl time.Duration) (blocker held, other lock.Locker) {
	e.Helper()
	a, dying, key := e.open(), e.open(), e.key()
	blocker = e.lasting(a, e.rival(key))
	req := e.request(key)
	req.TTL = ttl
	e.wait(dying, req)
	e.fault(Sever, dying)
	return blocker, e.open()
}

// heartbeat is how long a dead waiter of that TTL may block the line.
func (e *env) heartbeat(ttl time.Duration) time.Duration {
	return min(ttl, 5*time.Second) + e.caps.ExpirySlack
}

func deadWaiterBeforeAnother(e *env) { e.passDeadWaiter(e.ttl) }

// deadWaiterWithLongTTL: what was handed to a dead waiter is not held for its TTL.
func deadWaiterWithLongTTL(e *env) { e.passDeadWaiter(e.long()) }

func (e *env) passDeadWaiter(ttl time.Duration) {
	e.soon("the next waiter to have the key, past a dead one", e.heartbeat(ttl), func() time.Duration {
		blocker, b := e.lineBehindDead(ttl)
		return e.wait(b, e.request(blocker.g.Key)).after(blocker, e.heartbeat(ttl))
	})
}

// after releases blocker, and then what w was granted. It says how long that took to come: limit may
// pass before w is woken.
func (w *waiter) after(blocker held, limit time.Duration) time.Duration {
	w.e.Helper()
	released := time.Now()
	w.e.mustRelease(blocker)
	h := w.grantedWithin(limit)
	w.e.mustRelease(h)
	return h.answered.Sub(released)
}

// deadWaiterBehindReader: readers are served together. What a dead one was handed then is not
// held for its TTL either.
func deadWaiterBehindReader(e *env) {
	beat := e.heartbeat(e.long())
	e.soon("reader and writer to have the key, past a dead reader", beat, func() time.Duration {
		a, b, dying, key := e.open(), e.open(), e.open(), e.key()
		blocker := e.lasting(a, e.rival(key))
		living, req := e.wait(b, e.request(key)), e.request(key)
		req.TTL = e.long()
		e.wait(dying, req)
		e.fault(Sever, dying)
		took := living.after(blocker, beat)
		next := e.ask(e.ctx, a, waiting(e.rival(key)))
		h := next.grantedWithin(beat)
		e.mustRelease(h)
		return max(took, h.answered.Sub(h.asked))
	})
}

// longDeadWaiter: once the heartbeat is over, the dead one costs nothing but a recheck.
func longDeadWaiter(e *env) {
	e.soon("the next waiter to have the key, past one that died long ago", 0, func() time.Duration {
		blocker, b := e.lineBehindDead(e.ttl)
		w := e.wait(b, e.request(blocker.g.Key))
		time.Sleep(e.heartbeat(e.ttl) + e.ttl)
		w.still()
		return w.after(blocker, 0)
	})
}

func deadWaiterBeforeTry(e *env) {
	const want = "a try to get the key, past a dead waiter"
	e.soon(want, e.heartbeat(e.ttl), func() time.Duration {
		blocker, b := e.lineBehindDead(e.ttl)
		released := time.Now()
		e.mustRelease(blocker)
		e.eventually(want, e.heartbeat(e.ttl)+e.ttl+e.starved(), func() (bool, string) {
			h, err := e.tryAcquire(b, e.request(blocker.g.Key))
			if err == nil {
				e.mustRelease(h)
			}
			return err == nil, fmt.Sprint(err)
		})
		return time.Since(released)
	})
}
