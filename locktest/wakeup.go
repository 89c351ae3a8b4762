package locktest

import (
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func wakeups() group {
	const (
		hints   = served
		trouble = "Once in line, what may pass (a restart, an election, a refused connection, a full disk, a read-only or busy server, throttling, a timeout) must end the wait only after Patience without an answer; what cannot pass (a missing right, a wrong type, a missing table) must end it at once."
		waits   = "Waiting, if not nil, is called once when the wait begins, with what is known of holders and line."
	)
	return group{"WakeupsAreHints", []row{
		{"Prompt", hints, both, needs(declares("Push", hasPush)), promptWakeup},
		{"LostWakeup", hints, both, needs(declares("Push", hasPush), can(LoseWakeup)), lostWakeup},
		{"EveryWaiter", hints, both, nil, everyWaiterIsWoken},
		{"FromOneProcess", hints, both, nil, everyWaiterOfOneProcess},
		{"EachMessageOfAWait", trouble, both, needs(canStrike), waitStruck},
		{"WaitingIsCalledOnce", waits, both, nil, waitingIsCalledOnce},
		{"NoWaitingForATry", waits, both, nil, noWaitingForTry},
	}}
}

// quick is far less than a recheck of a waiter with a long TTL, and far more than a
// hand-over takes.
func (e *env) quick() time.Duration { return max(e.ttl/2, 200*time.Millisecond) + 2*e.pace }

func promptWakeup(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	e.fastest("a release to wake the next waiter promptly", e.quick(), func() time.Duration {
		blocker := e.lasting(a, e.rival(key))
		w := e.wait(b, e.request(key))
		released := time.Now()
		e.mustRelease(blocker)
		return w.since(released)
	})
}

func lostWakeup(e *env) {
	a, limit := e.open(), 5*time.Second+e.caps.ExpirySlack
	e.soon("a waiter to have the key though its wake-up was lost", limit, func() time.Duration {
		b, key := e.open(), e.key()
		blocker := e.lasting(a, e.rival(key))
		w := e.wait(b, e.request(key))
		defer e.fault(LoseWakeup, b)()
		return w.after(blocker, limit)
	})
}

func everyWaiterIsWoken(e *env) { e.line(e.open(), e.open(), e.open()) }

func everyWaiterOfOneProcess(e *env) { e.line(e.open()) }

// line lets some wait on each of ls, and checks that all are served.
func (e *env) line(ls ...lock.Locker) {
	e.Helper()
	key := e.key()
	blocker := e.lasting(ls[0], e.rival(key))
	var ws []*waiter
	for range 4 {
		for _, l := range ls {
			ws = append(ws, e.wait(l, e.request(key)))
		}
	}
	e.mustRelease(blocker)
	e.served(ws...)
	e.vacant(ls[0], key)
}

func waitingIsCalledOnce(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	blocker := e.lasting(a, e.rival(key))
	w := e.wait(b, e.request(key))
	if w.record.Key != key && w.record.Key != "" {
		e.fail("Request.Waiting to be called with the record of "+key, "%+v", w.record)
	}
	for _, h := range w.record.Holders {
		if h.Owner != blocker.g.Owner {
			e.fail("Request.Waiting to be told of the holder "+blocker.g.Owner, "%+v", w.record)
		}
	}
	time.Sleep(e.ttl) // for rechecks, of which none is the beginning of a wait
	e.mustRelease(blocker)
	e.mustRelease(w.granted())
	if n := w.calls.Load(); n != 1 {
		e.fail("Request.Waiting to be called once", "%d calls", n)
	}
}

func noWaitingForTry(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	w := e.ask(e.ctx, b, waiting(e.request(key)))
	e.mustRelease(w.granted())
	blocker := e.lasting(a, e.rival(key))
	try := e.ask(e.ctx, b, e.request(key))
	try.returned("ErrHeld", e.patience())
	if n := w.calls.Load() + try.calls.Load(); n != 0 {
		e.fail("Request.Waiting to be called when a wait begins only", "%d calls, for one who got a free key and one who did not ask to wait", n)
	}
	e.mustRelease(blocker)
}
