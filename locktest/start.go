package locktest

import (
	"context"
	"fmt"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func start() group {
	const (
		early = "Start is a local time with a monotonic reading, no later than the store's own start of TTL: it was taken before the request was sent whose reply proved the grant."
		wait  = "After any wait the claim must be verified, and Start taken before the verification was sent."
	)
	return group{"StartIsEarly", []row{
		{"Bounds", early, both, nil, startBounds},
		{"LateReply", early, both, needs(canWithhold), startOfLateReply},
		{"LateRenewal", early, both, needs(canWithhold), startOfLateRenewal},
		{"AfterWait", wait, both, nil, startAfterWait},
	}}
}

// startBounds: held.flaw looks at each Start, and e.outlives at the whole term.
func startBounds(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.mustAcquire(a, e.brief(key))
	e.outlives(b, h)
}

// outlives takes the key as soon as h is over. The store granted it then, so by its own
// account h was over, and so it must be by the account that h's holder keeps: whatever
// the delays, that grant cannot be known here before h.end().
func (e *env) outlives(l lock.Locker, h held) {
	e.Helper()
	next := e.succeed(l, h.g.Key, e.overdueIn(h.g.TTL))
	if early := h.end().Sub(next.answered); early > drift(h.g.TTL) {
		e.fail(fmt.Sprintf("no other grant before Start + TTL (%v)", h.g.TTL), "one %v before it", early)
	}
}

// startOfLateReply: the TTL began when the request took effect. If Start is when the
// reply came, the holder believes in its grant after another has the key.
func startOfLateReply(e *env) {
	b := e.open()
	e.eachLateReply(func(a lock.Locker, t *trouble) bite {
		key := e.key()
		ctx, cancel := context.WithTimeout(e.ctx, 2*e.patience())
		defer cancel()
		t.begin()
		late := e.ask(ctx, a, e.brief(key))
		bit := t.effect(late, b, e.patience())
		time.Sleep(e.ttl / 2)
		t.heal()
		late.returned("Acquire to return", 4*e.patience())
		if late.err != nil { // there is no Start to be wrong
			e.settledUndo(a, key, late.h.req.Owner)
			e.undone(a, b, key, late.h.req.Owner)
			return min(bit, shallow)
		}
		e.outlives(b, late.h)
		return bit
	})
}

// startOfLateRenewal is startOfLateReply for Renew.
func startOfLateRenewal(e *env) {
	b := e.open()
	e.eachLateReply(func(a lock.Locker, t *trouble) bite {
		req := e.request(e.key())
		req.TTL = 2 * e.ttl
		h := e.mustAcquire(a, req)
		t.begin()
		renewed := make(chan error, 1)
		e.start(func() {
			ctx, cancel := context.WithTimeout(e.ctx, 2*e.patience())
			defer cancel()
			g, err := a.Renew(ctx, h.g)
			if err == nil {
				h.g = g
			}
			renewed <- err
		})
		time.Sleep(e.ttl / 2)
		bit := deep
		if len(renewed) > 0 || t.struck != nil && !t.struck() {
			bit = missed
		}
		t.heal()
		select {
		case err := <-renewed:
			if err != nil {
				return min(bit, shallow)
			}
			e.outlives(b, h)
		case <-time.After(4 * e.patience()):
			e.fail("Renew to return when its ctx ends", "it has not, %v after that", 2*e.patience())
		}
		return bit
	})
}

// startAfterWait lets the wait last for two TTLs. A Start from the beginning of the wait
// would be of a grant that is over; one from before the release by more than a request
// may be under way is not that of the verification.
func startAfterWait(e *env) {
	a, b := e.open(), e.open()
	e.fastest("a Start from the end of the wait, not before the key was released", e.ttl+e.pace, func() time.Duration {
		key := e.key()
		blocker := e.lasting(a, e.rival(key))
		w := e.wait(b, e.brief(key))
		time.Sleep(2 * e.ttl)
		released := time.Now()
		e.mustRelease(blocker)
		h := w.granted()
		e.outlives(a, h)
		return released.Sub(h.g.Start)
	})
}

func expiry() group {
	const stores = "Expiry is the store's. No client's wall clock may decide it."
	return group{"ExpiryIsTheStores", []row{
		{"SeenAlikeByAll", stores, both, nil, expirySeenByAll},
		{"AfterRenewal", stores, both, nil, expiryAfterRenewal},
		{"OfOneReader", stores, shared, nil, expiryOfOneReader},
	}}
}

// watched is a grant that nobody renews, and one who waits for its end.
type watched struct {
	h        held
	observer lock.Locker
	refused  time.Time // when its last try that was refused began
	next     *held     // what it got
}

// expirySeenByAll lets each of four processes watch a grant of the one before it. If a
// process's clock counted, some would find a grant too long or too short.
func expirySeenByAll(e *env) {
	ls := []lock.Locker{e.open(), e.open(), e.open(), e.open()}
	var ws []*watched
	for i, l := range ls {
		ws = append(ws, &watched{h: e.mustAcquire(l, e.brief(e.key())), observer: ls[(i+1)%len(ls)]})
	}
	e.watch(ws)
}

// watch tries for each until it gets the key, and checks that this was neither before
// the end of the grant nor later than a dead holder may block.
func (e *env) watch(ws []*watched) {
	e.Helper()
	for left := len(ws); left > 0; time.Sleep(e.tick()) {
		for _, w := range ws {
			if w.next != nil {
				continue
			}
			h, err := e.tryAcquire(w.observer, e.rival(w.h.g.Key))
			if err != nil {
				w.refused = h.asked
				e.inTime(w)
				continue
			}
			w.next = &h
			left--
			if early := w.h.end().Sub(h.answered); early > drift(w.h.g.TTL) {
				e.fail(fmt.Sprintf("no other grant before Start + TTL (%v)", w.h.g.TTL), "one %v before it", early)
			}
		}
	}
}

func (e *env) inTime(w *watched) {
	e.Helper()
	if late := w.refused.Sub(e.overdue(w.h)); late > 0 {
		e.fail(fmt.Sprintf("a grant with a TTL of %v to be over after as long", w.h.g.TTL), "ErrHeld for a try %v after that and the slack", late)
	}
}

// expiryAfterRenewal: what counts is the renewal, no more and no less.
func expiryAfterRenewal(e *env) {
	a, b := e.open(), e.open()
	e.attempts(func() bool {
		_, r, ok := e.renewedLate(a)
		if ok {
			e.watch([]*watched{{h: r, observer: b}})
		}
		return ok
	})
}

// expiryOfOneReader: a reader whose TTL is over is gone, though another is not.
func expiryOfOneReader(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	long := e.hold(b, key)
	short := e.mustAcquire(a, e.brief(key))
	e.expired(b, short)
	if early := time.Until(short.end()); early > drift(short.g.TTL) {
		e.fail("a reader to be there until Start + TTL", "it is gone %v before it", early)
	}
	e.only(a, long)
	e.mustBeHeld(a, e.rival(key))
	e.mustRelease(long)
	e.free(a, key)
}
