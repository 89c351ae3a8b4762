package lock

import (
	"container/heap"
	"context"
	"slices"
	"sync"
	"time"
)

// engine keeps the leases of a Client: it renews them, ends them at their local deadlines,
// and releases in the background. One heap and one timer serve all of them; a lease that
// waits for its time costs no goroutine.
//
// All times are the clock's. mu guards what is below it and the mutable part of every
// Lease. While it is held neither the store nor any code of the application runs: see
// section.
type engine struct {
	store Locker
	name  string          // Capabilities.Store
	bg    context.Context // of calls in the background; ends when Close is done or gives up
	stop  context.CancelCauseFunc
	open  context.Context // ends when Close begins
	shut  context.CancelFunc

	mu      sync.Mutex
	clock   clock
	heap    leaseHeap   // held and ending leases, by when the engine must act on them
	ready   [2][]*Lease // due for a renewal, and behind those for a release; in the order in which they became so
	limiter limiter     // of the engine's own calls
	timer   *time.Timer
	timerAt time.Duration // when it fires by the monotonic clock; never if it is not set
	calls   map[*call]struct{}
	waits   map[string]*call // those that wait under leases, by key: see waitUnder.also

	looking  bool // for deadlocks
	lookedAt time.Duration
	closing  closing
}

// init makes e ready. There is no timer before the first call.
func (e *engine) init(store Locker) {
	e.store, e.name = store, store.Capabilities().Store
	e.bg, e.stop = context.WithCancelCause(context.Background())
	e.open, e.shut = context.WithCancel(context.Background())
	e.clock.read = systemClock
	e.calls, e.waits = make(map[*call]struct{}), make(map[string]*call)
	e.timerAt = never
}

// section is one critical section: e.mu is held from enter to leave. What concerns code of
// the application (contexts to end, events to tell) is noted meanwhile and done by leave,
// when the mutex is free. Most sections have one such chore at most, so the first costs no
// allocation.
type section struct {
	e    *engine
	now  time.Duration
	n    int
	one  chore
	more []chore
}

// chore ends contexts with a cause, or cancels a call, or tells l's events.
type chore struct {
	ends   [2]context.CancelCauseFunc // nil ones are skipped
	cause  error
	cancel func()
	tell   *Lease
}

// caller is who waits for a call: his ctx, which is for Observers only, and its error from
// before the section, in which that must not be asked.
type caller struct {
	ctx   context.Context
	ended error
}

func callerOf(ctx context.Context) caller { return caller{ctx, ctx.Err()} }

func (s *section) enter(e *engine) {
	*s = section{e: e}
	e.mu.Lock()
	var jump bool
	if s.now, jump = e.clock.look(); jump {
		s.jump()
	}
}

// leave ends the section, and does the chores: all contexts end before the first Observer
// runs, which may be slow.
func (s *section) leave() {
	s.unlock()
	s.observe()
}

// leaveLater is leave in a call that Close waits for: an Observer, who may call Close, is told in
// another goroutine.
func (s *section) leaveLater() {
	s.unlock()
	if s.n > 0 {
		late := *s
		go late.observe()
	}
}

// unlock begins the calls that are due, sets the timer, unlocks, and ends contexts.
func (s *section) unlock() {
	s.settle()
	s.dispatch()
	s.arm()
	s.e.mu.Unlock()
	s.one.run()
	for i := range s.more {
		s.more[i].run()
	}
}

// observe tells the events.
func (s *section) observe() {
	s.one.observe()
	for i := range s.more {
		s.more[i].observe()
	}
}

func (s *section) note(c chore) {
	if s.n == 0 {
		s.one = c
	} else {
		s.more = append(s.more, c)
	}
	s.n++
}

func (c *chore) run() {
	for _, end := range c.ends {
		if end != nil {
			end(c.cause)
		}
	}
	if c.cancel != nil {
		c.cancel()
	}
}

func (c *chore) observe() {
	if c.tell != nil {
		c.tell.observe()
	}
}

// arm sets the timer if something is due before it fires. It is never set back: a timer
// that fires for nothing once a second is cheaper than one that is moved for every lease.
func (s *section) arm() {
	e := s.e
	if e.closing.phase == stopped || len(e.heap)+len(e.calls) == 0 {
		return // nothing needs the clock
	}
	at := s.now + lookEvery
	if len(e.heap) > 0 {
		at = min(at, e.heap[0].at)
	}
	if len(e.ready[0])+len(e.ready[1]) > 0 {
		at = min(at, e.limiter.freeAt(s.now))
	}
	if at-e.clock.skew >= e.timerAt {
		return
	}
	e.timerAt = at - e.clock.skew
	if e.timer == nil {
		e.timer = time.AfterFunc(max(at-s.now, 0), e.tick)
		return
	}
	e.timer.Reset(max(at-s.now, 0))
}

// tick is the timer's: it takes up the leases whose time has come.
func (e *engine) tick() {
	var s section
	s.enter(e)
	e.timerAt = never
	for e.closing.phase != stopped && len(e.heap) > 0 && e.heap[0].at <= s.now {
		l := e.heap[0]
		switch {
		case s.timeUp(l):
		case l.op != nil:
			s.giveUp(l)
			s.to(l, l.state, never)
		default:
			q := &e.ready[0]
			if l.state == ending {
				q = &e.ready[1]
			}
			*q = append(*q, l)
			s.to(l, l.state, never)
		}
	}
	s.leave()
}

// dispatch begins calls for the leases that are ready, as far as the limiter allows.
func (s *section) dispatch() {
	e := s.e
	for i := range e.ready {
		for q := &e.ready[i]; len(*q) > 0 && !e.limiter.full(s.now) && e.closing.phase != stopped; {
			l := (*q)[0]
			(*q)[0] = nil // else a released lease would live as long as the array
			*q = (*q)[1:]
			within := s.attempt(l)
			if within <= 0 {
				continue // it was lost, released or taken up by its holder meanwhile
			}
			ctx, cancel := context.WithCancel(e.bg)
			o := s.begin(l, s.now+within, cancel)
			e.limiter.begin(&o.slot, s.now)
			go e.work(ctx, l, o, l.grant)
		}
	}
}

// attempt is how long the engine's next call for l may take; 0 if there is to be none. A
// renewal gets a sixth of the TTL, but when the deadline is near, no more than leaves time
// for others after it.
func (s *section) attempt(l *Lease) time.Duration {
	left, ttl := l.until-s.now, l.ttl()
	switch {
	case l.op != nil, l.state == ending && s.now < l.keepUntil:
		return 0
	case l.state == held:
		return min(left, ttl/6, max(left/3, ttl/30))
	case l.state == ending:
		return min(left, max(ttl/3, time.Second))
	}
	return 0
}

// work carries out a call of the engine's own.
func (e *engine) work(ctx context.Context, l *Lease, o *op, g Grant) {
	o.slot.inStore.Store(true)
	g, err := l.send(ctx, o, g)
	o.slot.inStore.Store(false)
	o.cancel()
	var s section
	s.enter(e)
	e.limiter.end(&o.slot)
	s.answered(caller{ctx: context.Background()}, l, o, g, err)
	s.leave()
}

// send asks the store. It is all that happens outside of the mutex. Before a release it ends l's
// contexts: the section that has ended l may not have come to its chores yet.
func (l *Lease) send(ctx context.Context, o *op, g Grant) (Grant, error) {
	if !o.renews {
		l.e.mu.Lock()
		c := l.endings()
		l.e.mu.Unlock()
		c.run()
		return g, l.e.store.Release(ctx, g)
	}
	g, err := l.e.store.Renew(ctx, g)
	if err == nil {
		err = l.e.sound(&g)
	}
	return g, err
}

// held returns the leases that have not ended.
func (e *engine) held() []*Lease {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(e.heap), func(l *Lease) bool { return !l.live() })
}

// sleep pauses for d, or until ctx ends or Close begins.
func (e *engine) sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-e.open.Done():
	}
}

// leaseHeap is ordered by at.
type leaseHeap []*Lease

// place gives l its place by at, or takes it out.
func (h *leaseHeap) place(l *Lease, in bool) {
	switch {
	case in && l.index < 0:
		heap.Push(h, l)
	case in:
		heap.Fix(h, l.index)
	case l.index >= 0:
		heap.Remove(h, l.index)
	}
}

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
