package locktest

import (
	"fmt"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// crowds are the cases of lines that several processes stand in when something happens to
// one of them, or to the store.
func crowds() []group {
	const (
		outlives = "Once in line, what may pass (a restart, an election, a refused connection, a full disk, a read-only or busy server, throttling, a timeout) must end the wait only after Patience without an answer; what cannot pass (a missing right, a wrong type, a missing table) must end it at once."
		skipped  = "Dead waiters are skipped. A waiter must live by a heartbeat of min(TTL, 5 s): a dead one must not block the line for longer than that."
	)
	return []group{
		{"AWaitOutlivesTheStoresTrouble", []row{
			{"LineDuringAFreeze", outlives, plain, needs(can(Freeze)), lineThrough(Freeze)},
			{"LineDuringARestart", outlives, plain, needs(can(Restart)), lineThrough(Restart)},
		}},
		{"DeadWaitersAreSkipped", []row{
			{"ManyOfThem", skipped, plain, needs(can(Sever)), manyDeadWaiters},
		}},
	}
}

// line is who waits for one key, the waiters of processes that die not among them.
type line struct {
	e       *env
	key     string
	waiters int
	ended   chan *waiter // their Acquires have returned
}

// lineUp is a line of n waiters whose processes take turns.
func (e *env) lineUp(key string, n int, ls ...lock.Locker) *line {
	e.Helper()
	l := &line{e: e, key: key, waiters: n, ended: make(chan *waiter, n)}
	for i := range n {
		req := e.rival(key)
		req.TTL = e.ttl // so that it looks often
		w := e.wait(ls[i%len(ls)], req)
		e.start(func() {
			<-w.done
			l.ended <- w
		})
	}
	return l
}

// served checks that each has the key once, one at a time, and the next within limit. It says how
// long it took the slowest to follow.
func (l *line) served(limit time.Duration) (slowest time.Duration) {
	e := l.e
	e.Helper()
	for n := range l.waiters {
		var w *waiter
		begun := time.Now()
		select {
		case w = <-l.ended:
		case <-time.After(limit):
			e.fail(fmt.Sprintf("one of %d waiters after the other to have the key, the next within %v", l.waiters, limit), "%d had it", n)
		}
		slowest = max(slowest, time.Since(begun))
		w.granted()
		time.Sleep(e.tick()) // for a grant that should not come
		select {
		case o := <-l.ended:
			if o.err == nil && live(o.h) && live(w.h) {
				e.fail("one grant at a time", "tokens %d and %d", w.h.g.Token, o.h.g.Token)
			}
			l.ended <- o
		default:
		}
		e.settledUndo(w.h.l, l.key, w.h.g.Owner)
	}
	return slowest
}

// lineThrough has a line go on through f, be it that all lose their places.
func lineThrough(f Fault) func(*env) {
	return func(e *env) {
		a, b, c, key := e.open(), e.open(), e.open(), e.key()
		h := e.mustAcquire(a, e.rival(key))
		l := e.lineUp(key, 12, a, b, c)
		e.trouble(f, b)
		e.settledUndo(a, key, h.g.Owner)
		l.served(e.recovery())
	}
}

// manyDeadWaiters: those who died together are skipped together.
func manyDeadWaiters(e *env) {
	e.soon("those who died together to be skipped together", e.heartbeat(e.ttl), func() time.Duration {
		a, dying, b, key := e.open(), e.open(), e.open(), e.key()
		h := e.lasting(a, e.rival(key))
		e.lineUp(key, 12, dying)
		e.fault(Sever, dying)
		l := e.lineUp(key, 2, a, b)
		e.mustRelease(h)
		return l.served(e.heartbeat(e.ttl) + e.patience())
	})
}
