package locktest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func capabilities() group {
	const (
		declared = "Capabilities.Shared: Request.Shared is served"
		refused  = "A capability that is not declared is refused with ErrUnsupported, never silently approximated."
		constant = "Capabilities says what the store promises. It must be constant and do no I/O."
		fifo     = "Capabilities.FIFO: waiters are served in the order of arrival"
		early    = "Lost, if not nil, is an early notice that the grant is gone. A store that declares EarlyLoss calls it at most once, under no mutex of its own, never for a loss that it learns of after the holder's own Release, maybe before Acquire returns."
		minTTL   = "Capabilities.MinTTL: less is ErrInvalid before any I/O"
	)
	return group{"Capabilities", []row{
		{"Constant", constant, plain, nil, capabilitiesAreConstant},
		{"Shared", declared, shared, nil, readersTogether},
		{"SharedIsRefused", refused, plain, needs(lacks("Shared", hasShared)), func(e *env) {
			e.isRefused("a shared request", func(req *lock.Request) { req.Shared = true })
		}},
		{"PriorityIsRefused", refused, both, needs(lacks("Priority", hasPriority)), func(e *env) {
			e.isRefused("a head start", func(req *lock.Request) { req.HeadStart = time.Second })
		}},
		{"FIFO", fifo, both, needs(declares("FIFO", hasFIFO)), unlessLate(servedInOrder)},
		{"FIFOInACrowd", fifo, plain, needs(declares("FIFO", hasFIFO)), unlessLate(func(e *env) { e.compete(e.crowd, nobody).inOrder() })},
		{"FIFOOfReadersAndWriters", fifo, shared, needs(declares("FIFO", hasFIFO)), unlessLate(readersBehindWriter)},
		{"EarlyLoss", early, both, needs(declares("EarlyLoss", hasEarlyLoss), isAdmin), earlyLoss},
		{"EarlyLossOfARenewedGrant", early, both, needs(declares("EarlyLoss", hasEarlyLoss), isAdmin), earlyLossOfRenewed},
		{"NoLossAfterRelease", early, both, nil, noLossAfterRelease},
		{"MinTTL", minTTL, both, nil, minTTLWorks},
	}}
}

func capabilitiesAreConstant(e *env) {
	a, b := e.open(), e.open()
	c := a.Capabilities()
	e.mustRelease(e.mustAcquire(a, e.request(e.key())))
	for _, l := range []lock.Locker{a, b} {
		if again := l.Capabilities(); again != c {
			e.fail(fmt.Sprintf("the same Capabilities from each Locker and at each time: %+v", c), "%+v", again)
		}
	}
	if c.Store == "" || c.MinTTL < 0 || c.ExpirySlack < 0 {
		e.fail("a name in Store, and no negative MinTTL or ExpirySlack", "%+v", c)
	}
}

// isRefused asks for what is not declared.
func (e *env) isRefused(what string, ask func(*lock.Request)) {
	a, b, key := e.open(), e.open(), e.key()
	for _, wait := range []bool{false, true} {
		req := e.request(key)
		req.Wait = wait
		ask(&req)
		err := e.call("Acquire", func(ctx context.Context) error {
			_, err := a.Acquire(ctx, req)
			return err
		})
		if !errors.Is(err, lock.ErrUnsupported) {
			e.fail("ErrUnsupported for "+what, "error %v", err)
		}
		e.vacant(b, key)
	}
}

// servedInOrder lets each waiter stand in line before the next comes. Shared ones are
// kept apart by exclusive ones, since tokens do not order them among themselves.
func servedInOrder(e *env) {
	ls := []lock.Locker{e.open(), e.open(), e.open()}
	key := e.key()
	blocker := e.lasting(ls[0], e.rival(key))
	var line []*waiter
	for i := range 12 {
		req := e.request(key)
		if i%2 == 1 {
			req.Shared = false
		}
		line = append(line, e.wait(ls[i%len(ls)], req))
	}
	e.inspectLine(ls[0], line)
	e.mustRelease(blocker)
	for i, w := range line {
		h := w.granted()
		for _, later := range line[i+1:] {
			later.still()
		}
		e.mustRelease(h)
	}
}

// inspectLine checks that Inspect shows ws, in that order.
func (e *env) inspectLine(l lock.Locker, ws []*waiter) {
	e.Helper()
	var want []string
	for _, w := range ws {
		want = append(want, w.h.req.Owner)
	}
	var seen []string
	rec := e.mustInspect(l, ws[0].h.req.Key)
	for _, w := range rec.Waiters {
		seen = append(seen, w.Owner)
	}
	if fmt.Sprint(want) != fmt.Sprint(seen) {
		e.fail(fmt.Sprintf("Record.Waiters in line order: %v", want), "%v", seen)
	}
	for i, w := range rec.Waiters {
		if w.Shared != ws[i].h.req.Shared || w.Waited < 0 {
			e.fail(fmt.Sprintf("waiter %d with shared %t, and no negative time", i, ws[i].h.req.Shared), "%+v", w)
		}
	}
}

// readersBehindWriter: a reader that comes to wait after a writer does not overtake it,
// though it could be beside the one that holds the key.
func readersBehindWriter(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	first := e.hold(a, key)
	writer := e.wait(b, e.rival(key))
	readers := []*waiter{e.wait(a, e.request(key)), e.wait(b, e.request(key))}
	e.mustRelease(first)
	w := writer.granted()
	for _, r := range readers {
		r.still()
	}
	e.mustRelease(w)
	for _, r := range readers {
		e.mustRelease(r.granted())
	}
}

// losses counts the calls of a Request.Lost.
type losses struct {
	mu      sync.Mutex // guards reasons
	reasons []lock.LostReason
}

func (n *losses) lost(r lock.LostReason) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reasons = append(n.reasons, r)
}

func (n *losses) seen() []lock.LostReason {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]lock.LostReason(nil), n.reasons...)
}

// notified is a request with a Lost, and what that was called with.
func notified(req lock.Request) (lock.Request, *losses) {
	n := new(losses)
	req.Lost = n.lost
	return req, n
}

// earlyLoss forces a grant, and looks at what its holder learns before it asks.
func earlyLoss(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	req, n := notified(e.request(key))
	h := e.mustAcquire(a, req)
	e.force(b, h)
	e.eventually("Request.Lost to be called after ForceRelease, as EarlyLoss declares", e.patience(), func() (bool, string) {
		return len(n.seen()) > 0, "it was not"
	})
	if r := n.seen()[0]; r != lock.ReasonForced && r != lock.ReasonTaken {
		e.fail(fmt.Sprintf("reason %v or %v", lock.ReasonForced, lock.ReasonTaken), "%v", r)
	}
	_, err := e.tryRenew(h)
	e.mustBeLost("Renew", err)
	e.mustBeLost("Release", e.tryRelease(a, h.g))
	e.free(b, key)
	if seen := n.seen(); len(seen) > 1 {
		e.fail("Request.Lost to be called at most once", "%v", seen)
	}
}

// earlyLossOfRenewed forces a grant that lives by its renewals, when a crowd of others has come:
// what a store keeps of a holder, so that it can tell it, must not end with the first TTL.
func earlyLossOfRenewed(e *env) {
	a, b := e.open(), e.open()
	told := e.repeatedly(4, e.ttl/8, func() bool {
		req, n := notified(e.brief(e.key()))
		h := e.mustAcquire(a, req)
		first := h.end()
		h.g.TTL = e.long()
		h, err := e.tryRenew(h)
		if err != nil {
			return false
		}
		var learned atomic.Bool // by a renewal: it came before the notice did
		if h.g.TTL < e.long() {
			e.start(func() {
				e.keep(h)
				learned.Store(true)
			})
		}
		time.Sleep(time.Until(first.Add(e.tick())))
		var others []*waiter
		for range 80 {
			other, _ := notified(e.request(e.key()))
			others = append(others, e.ask(e.ctx, a, other))
		}
		for _, w := range others {
			w.granted()
		}
		if _, err := e.tryRenew(h); err != nil {
			return false
		}
		e.force(b, h)
		e.eventually("Request.Lost to be called after ForceRelease, though the first TTL is over", e.patience(), func() (bool, string) {
			return len(n.seen()) > 0 || learned.Load(), "it was not"
		})
		return len(n.seen()) > 0
	})
	if !told {
		e.fail("Request.Lost to be called after ForceRelease, though the first TTL is over", "renewals told of the loss")
	}
}

// noLossAfterRelease gives the store every occasion to call Lost: the grant's end would
// have come, and another got the key.
func noLossAfterRelease(e *env) {
	a, b := e.open(), e.open()
	e.attempts(func() bool {
		key := e.key()
		req, n := notified(e.brief(key))
		h := e.mustAcquire(a, req)
		err := e.tryRelease(a, h.g)
		if time.Now().After(h.end()) {
			return false // the release was too late to be sure that it ended a live grant
		}
		if err != nil {
			e.fail("a nil error from the Release of a live grant", "%v", err)
		}
		next := e.mustAcquire(b, e.brief(key))
		time.Sleep(time.Until(e.overdue(next)))
		e.free(a, key)
		_, err = e.tryRenew(h)
		e.mustBeLost("Renew", err)
		if seen := n.seen(); len(seen) > 0 {
			e.fail("Request.Lost not to be called after the holder's own Release", "%v", seen)
		}
		return true
	})
}

// minTTLWorks: what comes of so short a TTL is for the machine to decide, but not
// whether it is valid.
func minTTLWorks(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	req := e.request(key)
	req.TTL = max(e.caps.MinTTL, 1)
	err := e.call("Acquire", func(ctx context.Context) error {
		_, err := a.Acquire(ctx, req)
		return err
	})
	if errors.Is(err, lock.ErrInvalid) {
		e.fail(fmt.Sprintf("a TTL of %v to be valid", req.TTL), "%v", err)
	}
	e.undone(a, b, key, req.Owner)
	req.TTL = e.caps.MinTTL - 1
	e.invalid(a, req, req.TTL.String())
	e.vacant(b, key)
}
