package locktest

import (
	"fmt"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// promptWakeups are about each end of a grant, or of a place in line, that lets somebody
// move up.
func promptWakeups() group {
	const prompt = "Wake-ups are hints. A release must wake the next waiter promptly if Push is declared, and a lost wake-up must cost no more than a bounded recheck."
	push := declares("Push", hasPush)
	return group{"WakeupsAreHints", []row{
		{"PromptAfterForceRelease", prompt, both, needs(push, isAdmin), promptAfterForce},
		{"PromptAfterForceReleaseOfReaders", prompt, shared, needs(push, isAdmin), promptAfterForceOfReaders},
		{"PromptAfterTheLastReader", prompt, shared, needs(push), promptAfterLastReader},
		{"PromptForAllReaders", prompt, shared, needs(push), promptForAllReaders},
		{"PromptAfterAnUndo", prompt, both, needs(push), promptAfterUndo},
		{"PromptAfterAnUndoAtTheHead", prompt, shared, needs(push, declares("FIFO", hasFIFO)), promptAfterUndoAtHead},
	}}
}

func promptAfterForce(e *env) {
	a, b, c, key := e.open(), e.open(), e.open(), e.key()
	e.fastest("ForceRelease to wake the next waiter promptly", e.quick(), func() time.Duration {
		blocker := e.lasting(a, e.rival(key))
		w := e.wait(b, e.request(key))
		forced := time.Now()
		e.force(c, blocker)
		return w.since(forced)
	})
}

// promptAfterForceOfReaders has an operator end all readers that a writer waits for.
func promptAfterForceOfReaders(e *env) {
	a, b, c, key := e.open(), e.open(), e.open(), e.key()
	e.fastest("ForceRelease of the last reader to wake a writer promptly", e.quick(), func() time.Duration {
		one, last := e.hold(a, key), e.hold(c, key)
		w := e.wait(b, e.rival(key))
		e.force(c, one)
		forced := time.Now()
		e.force(c, last)
		return w.since(forced)
	})
}

// since releases what w was granted, and says how long that came after begin.
func (w *waiter) since(begin time.Time) time.Duration {
	w.e.Helper()
	h := w.granted()
	w.e.mustRelease(h)
	return h.answered.Sub(begin)
}

// promptAfterLastReader has the last reader go from either process.
func promptAfterLastReader(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	for _, ls := range [][]lock.Locker{{a, b}, {b, a}, {b, b}} {
		e.fastest("the release of the last reader to wake a writer promptly", e.quick(), func() time.Duration {
			one, last := e.hold(ls[0], key), e.hold(ls[1], key)
			w := e.wait(b, e.rival(key))
			e.mustRelease(one)
			released := time.Now()
			e.mustRelease(last)
			return w.since(released)
		})
	}
}

func promptForAllReaders(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	e.fastest("a release to wake all readers who wait for it promptly", e.quick(), func() time.Duration {
		blocker := e.lasting(a, e.rival(key))
		var ws []*waiter
		for i := range 6 {
			ws = append(ws, e.wait([]lock.Locker{a, b}[i%2], e.request(key)))
		}
		released := time.Now()
		e.mustRelease(blocker)
		var took time.Duration
		for _, w := range ws {
			took = max(took, w.granted().answered.Sub(released))
		}
		for _, w := range ws {
			e.mustRelease(w.h)
		}
		return took
	})
}

// promptAfterUndo ends a grant as one does whose outcome is unknown.
func promptAfterUndo(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	e.fastest("the undo of a grant to wake the next waiter promptly", e.quick(), func() time.Duration {
		blocker := e.lasting(a, e.rival(key))
		w := e.wait(b, e.request(key))
		undone := time.Now()
		e.mustUndo(a, key, blocker.g.Owner)
		return w.since(undone)
	})
}

// promptAfterUndoAtHead: a writer gives up, and nothing stands between the readers behind
// it and the one who holds the key.
func promptAfterUndoAtHead(e *env) {
	a, b, c, key := e.open(), e.open(), e.open(), e.key()
	first := e.hold(a, key)
	for _, l := range []lock.Locker{a, b} {
		e.fastest("the undo of a place in line to wake those behind it promptly", e.quick(), func() time.Duration {
			writer := e.wait(b, e.rival(key))
			behind := []*waiter{e.wait(l, e.request(key)), e.wait(c, e.request(key))}
			undone := time.Now()
			writer.withdraw()
			return max(behind[0].since(undone), behind[1].since(undone))
		})
	}
	e.only(b, first)
}

func inspectInTime() group {
	const (
		until   = "Holder.ExpiresIn: until its TTL is over; negative = unknown"
		waiters = "Record.WaiterCount: of all live waiters"
	)
	return group{"Inspect", []row{
		{"RenewedHolder", until, both, nil, inspectRenewed},
		{"DeadWaiter", waiters, both, needs(can(Sever), declares("FIFO", hasFIFO)), inspectDeadWaiter},
	}}
}

// inspectRenewed looks at a grant between the end that it had first and the one that it
// has since it was renewed.
func inspectRenewed(e *env) {
	a, b := e.open(), e.open()
	e.attempts(func() bool {
		h, r, ok := e.renewedLate(a)
		if !ok {
			return false
		}
		time.Sleep(time.Until(h.answered.Add(h.g.TTL + h.g.TTL/8)))
		asked := time.Now()
		got := holder(e.mustInspect(b, h.g.Key), h.g.Owner)
		answered := time.Now()
		if !live(r) {
			return false
		}
		if got == nil {
			e.fail("a renewed grant in its record", "nobody, %v after its first TTL was over", answered.Sub(h.answered.Add(h.g.TTL)))
		}
		slack := e.caps.ExpirySlack + e.ttl/4 + drift(r.g.TTL)
		least, most := r.end().Sub(answered)-slack, r.answered.Add(r.g.TTL).Sub(asked)+slack
		if in := got.ExpiresIn; in >= 0 && (in < least || in > most) {
			e.fail(fmt.Sprintf("ExpiresIn from %v to %v", least, most), "%v", in)
		}
		return true // r may be over before a Release arrives
	})
}

func inspectDeadWaiter(e *env) {
	a, b, dying, key := e.open(), e.open(), e.open(), e.key()
	blocker := e.lasting(a, e.rival(key))
	dead, living := e.wait(dying, e.brief(key)), e.wait(b, e.request(key))
	e.fault(Sever, dying)
	e.eventually("a dead waiter not to be in the record", e.heartbeat(e.ttl)+e.patience(), func() (bool, string) {
		rec := e.mustInspect(a, key)
		return !inLine(rec, dead.h.req.Owner), fmt.Sprintf("%+v", rec.Waiters)
	})
	e.inspectLine(a, []*waiter{living})
	e.mustRelease(blocker)
	e.mustRelease(living.granted())
}
