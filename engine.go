package lock

import (
	"container/heap"
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxFresh is how many of the engine's calls to the store run at once, not counting
	// those older than freshFor: a store that hangs on some keys delays no other.
	maxFresh = 256
	freshFor = 25 * time.Millisecond
)

// engine keeps the leases of a Client: it renews them, ends them at their local
// deadlines, and sends what must be sent in the background. One heap and one timer serve
// all; a lease that waits for its time costs no goroutine.
//
// All times are the clock's. mu guards everything below it and the mutable part of every
// Lease. It is never held while the store, an Observer or a context's cancel runs: what
// they are to be told is put into effects and done after unlock.
type engine struct {
	store Locker
	name  string          // Capabilities.Store
	bg    context.Context // of what runs in the background; ends when Close is done or gives up
	stop  context.CancelCauseFunc

	mu      sync.Mutex
	clock   clock
	heap    leaseHeap           // held leases, and those whose release is the engine's
	failing map[*Lease]struct{} // those in it that wait to try again
	ready   []*Lease            // due, in the order in which they became so
	fresh   int                 // calls that run and are not aged
	young   []*op               // calls by begin, from the oldest that may still be fresh
	// answered is when the last of them was answered; newest is the begin of the latest
	// that was.
	answered, newest time.Duration
	timer            *time.Timer
	timerAt          time.Duration // when it will fire by the monotonic clock; never if it is not set
	calls            map[*call]struct{}
	closing          closing
}

// init makes e ready. It starts nothing: there is no timer before the first call.
func (e *engine) init(store Locker) {
	e.store, e.name = store, store.Capabilities().Store
	e.bg, e.stop = context.WithCancelCause(context.Background())
	e.clock.read = systemClock
	e.failing = make(map[*Lease]struct{})
	e.calls = make(map[*call]struct{})
	e.timerAt = never
}

// op is one call to the store for a lease. A lease has at most one at a time, so that a
// renewal can neither outlive a release nor be overtaken by one.
type op struct {
	grant  Grant // as sent
	renews bool  // as opposed to releases
	began  time.Duration
	skew   time.Duration // the clock's when it began: the reply proves no more than that
	jumps  uint64
	cancel context.CancelFunc
	free   chan struct{} // closed when the lease is free again; made by who waits for it

	// inStore: the store has been asked and has not answered. Its goroutine may also wait
	// for a processor before that, or for mu after: then more of them would be no help.
	inStore atomic.Bool

	caller    bool // it is not the engine's: Renew or Release was called
	back      bool // the store has answered
	abandoned bool // the caller's ctx ended it: no failure of the store
	fresh     bool // counted in engine.fresh
}

// wait returns a channel that is closed when o's lease is free again. e.mu is held.
func (o *op) wait() <-chan struct{} {
	if o.free == nil {
		o.free = make(chan struct{})
	}
	return o.free
}

// lock locks mu and returns the time. A jump of the clock is dealt with on the way.
func (e *engine) lock(fx *effects) time.Duration {
	e.mu.Lock()
	now, jump := e.clock.look()
	if jump {
		e.jump(now, fx)
	}
	return now
}

// unlock sets the timer for what was planned since lock, unlocks, and then carries out
// what the world outside is to be told.
func (e *engine) unlock(now time.Duration, fx *effects) {
	e.dispatch(now)
	e.settle(now)
	e.arm(now)
	e.mu.Unlock()
	fx.run()
}

// arm sets the timer if something comes before the time it is set to. It is never set
// back: a timer that fires for nothing once a second is cheaper than one that is moved
// for every lease.
func (e *engine) arm(now time.Duration) {
	if e.closing.stopped || len(e.heap)+len(e.calls) == 0 {
		return // nor is there anything to look at the clock for
	}
	at := now + lookEvery
	if len(e.heap) > 0 {
		at = min(at, e.heap[0].at)
	}
	if len(e.ready) > 0 && len(e.young) > 0 {
		at = min(at, max(now+time.Millisecond, e.answered+freshFor, e.young[0].began+freshFor))
	}
	if at-e.clock.skew >= e.timerAt {
		return
	}
	e.timerAt = at - e.clock.skew
	if e.timer == nil {
		e.timer = time.AfterFunc(max(at-now, 0), e.tick)
		return
	}
	e.timer.Reset(max(at-now, 0))
}

// tick is the timer's: it ends the leases whose time is over and takes up those that are
// due.
func (e *engine) tick() {
	var fx effects
	now := e.lock(&fx)
	e.timerAt = never
	if !e.closing.stopped {
		e.due(now, &fx)
	}
	e.unlock(now, &fx)
}

func (e *engine) due(now time.Duration, fx *effects) {
	for len(e.heap) > 0 && e.heap[0].at <= now {
		l := e.heap[0]
		if !e.expire(l, now, fx) {
			e.enqueue(l)
		}
	}
}

// enqueue puts l in line for a call to the store.
func (e *engine) enqueue(l *Lease) {
	delete(e.failing, l)
	l.queued = true
	e.ready = append(e.ready, l)
	e.plan(l)
}

// dispatch starts goroutines for the leases that are ready, as far as maxFresh allows.
func (e *engine) dispatch(now time.Duration) {
	for len(e.ready) > 0 {
		l, o, ctx := e.next(now)
		if l == nil {
			return
		}
		go e.work(ctx, l, o)
	}
}

// next takes the next lease that is ready and begins its call; nil if there is none, or
// too many calls are fresh.
func (e *engine) next(now time.Duration) (*Lease, *op, context.Context) {
	e.age(now)
	for len(e.ready) > 0 && e.fresh < maxFresh && !e.closing.stopped {
		l := e.ready[0]
		e.ready[0] = nil
		e.ready = e.ready[1:]
		l.queued = false
		limit := e.limit(l, now)
		if l.op != nil || limit <= 0 {
			e.plan(l) // it was released, lost or taken up by its holder meanwhile
			continue
		}
		ctx, cancel := context.WithTimeout(e.bg, limit)
		o := e.begin(l, now, l.phase == held, cancel)
		o.fresh = true
		e.fresh++
		e.young = append(e.young, o)
		return l, o, ctx
	}
	return nil, nil, nil
}

// limit is how long the next call for l may take; 0 if there is to be none.
func (e *engine) limit(l *Lease, now time.Duration) time.Duration {
	switch l.phase {
	case held:
		if l.verifying {
			return min(l.grant.TTL/verifyPart/3, l.end-now) // time for more than one
		}
		return min(l.grant.TTL/6, l.end-now)
	case leaving:
		return min(max(l.ttl()/3, time.Second), l.bound-now)
	}
	return 0
}

// begin makes a call the one of l.
func (e *engine) begin(l *Lease, now time.Duration, renews bool, cancel context.CancelFunc) *op {
	l.op = &op{
		grant: l.grant, renews: renews, cancel: cancel,
		began: now, skew: e.clock.skew, jumps: e.clock.jumps,
	}
	e.plan(l)
	return l.op
}

// age stops counting the calls that hang: those in the store for freshFor, while it has
// answered later ones or none at all. Where it answers all in order, but slowly, more
// calls at once would only make it slower.
func (e *engine) age(now time.Duration) {
	for len(e.young) > 0 {
		o := e.young[0]
		if o.fresh {
			silent := e.answered+freshFor <= now
			if o.began+freshFor > now || !o.inStore.Load() || o.began >= e.newest && !silent {
				return
			}
		}
		e.retire(o)
		e.young[0] = nil
		e.young = e.young[1:]
	}
}

func (e *engine) retire(o *op) {
	if o.fresh {
		o.fresh = false
		e.fresh--
	}
}

// work carries out l's call and then those of other leases that are ready.
func (e *engine) work(ctx context.Context, l *Lease, o *op) {
	for l != nil {
		o.inStore.Store(true)
		g, err := o.send(ctx, e.store)
		o.inStore.Store(false)
		o.cancel()

		var fx effects
		now := e.lock(&fx)
		e.retire(o)
		e.answered, e.newest = now, max(e.newest, o.began)
		if o.renews {
			e.renewed(context.Background(), l, o, g, err, now, &fx)
		} else {
			e.left(l, err, now, &fx)
		}
		now = e.free(l, o, now, &fx)
		l, o, ctx = e.next(now)
		e.unlock(now, &fx)
	}
}

func (o *op) send(ctx context.Context, store Locker) (Grant, error) {
	if o.renews {
		return store.Renew(ctx, o.grant)
	}
	return Grant{}, store.Release(ctx, o.grant)
}

// free ends o, the call of l, and returns the time. The observers see first how it went:
// the events of the next call for this lease must come after those of this one.
func (e *engine) free(l *Lease, o *op, now time.Duration, fx *effects) time.Duration {
	if fx.n > 0 {
		e.unlock(now, fx)
		*fx = effects{}
		now = e.lock(fx)
	}
	l.op = nil
	if o.free != nil {
		close(o.free)
	}
	e.plan(l)
	return now
}

// plan gives l its place in the heap, or takes it out.
func (e *engine) plan(l *Lease) {
	l.at = l.next()
	in := l.phase == held || l.phase == leaving
	switch {
	case in && l.index < 0:
		heap.Push(&e.heap, l)
	case in:
		heap.Fix(&e.heap, l.index)
	case l.index >= 0:
		heap.Remove(&e.heap, l.index)
	}
}

// next is when the next thing is to happen to l.
func (l *Lease) next() time.Duration {
	at := never
	if l.op == nil && !l.queued {
		at = l.due
	}
	if l.phase == held {
		at = min(at, l.end)
	}
	return at
}

// held returns the leases that have not ended.
func (e *engine) held() (ls []*Lease) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range e.heap {
		if l.phase == held && l.err == nil {
			ls = append(ls, l)
		}
	}
	return ls
}

// leaseHeap is ordered by at.
type leaseHeap []*Lease

func (h leaseHeap) Len() int           { return len(h) }
func (h leaseHeap) Less(i, j int) bool { return h[i].at < h[j].at }

func (h leaseHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push is heap.Interface's.
func (h *leaseHeap) Push(x any) {
	l := x.(*Lease)
	l.index = len(*h)
	*h = append(*h, l)
}

// Pop is heap.Interface's.
func (h *leaseHeap) Pop() any {
	old := *h
	n := len(old) - 1
	l := old[n]
	old[n] = nil // else a released lease would live as long as the array
	l.index = -1
	*h = old[:n]
	return l
}
