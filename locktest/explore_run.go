package locktest

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// round is a plan that runs.
type round struct {
	*history
	h       Harness
	tb      testing.TB
	open    func() lock.Locker
	ctx     context.Context // of all calls; ends early when one is stuck
	stop    context.CancelFunc
	running sync.WaitGroup
	mu      sync.Mutex    // guards procs
	procs   []lock.Locker // those that are alive
	workers map[int]*worker
}

// roundTB is a testing.TB whose cleanups are a round's, not a test's.
type roundTB struct {
	testing.TB
	mu       sync.Mutex // guards cleanups
	cleanups []func()
}

func (r *roundTB) Cleanup(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cleanups = append(r.cleanups, f)
}

// finish runs the cleanups, the last first, and those that they add.
func (r *roundTB) finish() {
	for {
		r.mu.Lock()
		n := len(r.cleanups)
		if n == 0 {
			r.mu.Unlock()
			return
		}
		f := r.cleanups[n-1]
		r.cleanups = r.cleanups[:n-1]
		r.mu.Unlock()
		f()
	}
}

// round runs pl and returns what came of it, checked.
func (h Harness) round(t *testing.T, pl plan) *history {
	dog := watch(h.roundLimit(), fmt.Sprintf("Explore with seed %d", pl.seed), panics)
	defer dog.stop()
	var hist *history
	h.around(t, func(t *testing.T) {
		dog.arm()
		tb := &roundTB{TB: t}
		defer tb.finish()
		r := &round{
			h: h, tb: tb, open: h.New(tb), workers: map[int]*worker{},
			history: &history{plan: pl, ttl: h.ttl(), owners: map[string]*tenure{}},
		}
		r.ctx, r.stop = context.WithCancel(context.Background())
		defer r.stop()
		hist = r.history
		r.run()
	})
	if hist == nil {
		t.Fatal("Harness.Around has not called f by the time it returned: for Explore it must, so without t.Parallel")
	}
	return hist
}

// roundLimit is how long a round may take: its steps, their last calls, the wait until all
// is over, and the recovery from a fault.
func (h Harness) roundLimit() time.Duration { return 4*time.Minute + 300*h.ttl() }

func (r *round) run() {
	for range r.plan.procs {
		r.procs = append(r.procs, r.open())
	}
	if r.caps = r.procs[0].Capabilities(); r.ttl < r.caps.MinTTL {
		r.tb.Fatalf("locktest: Harness.TTL is %v: below the store's MinTTL of %v", r.ttl, r.caps.MinTTL)
	}
	r.begun = time.Now()
	r.fake = !monotonic(r.begun)
	var faults []step
	for _, s := range r.plan.steps {
		if s.kind == befalls {
			faults = append(faults, s)
			continue
		}
		r.running.Go(func() {
			r.until(s.at)
			r.step(s)
		})
	}
	for _, s := range faults { // on this goroutine, as the harness may require
		r.befall(s)
	}
	m := &model{history: r.history}
	if r.ended() {
		r.dismiss()
		r.settle(m)
	}
	left := r.flaws
	r.flaws = nil
	m.check()
	r.flaws = append(r.flaws, left...) // which say less of how it came
	if r.stop(); r.ended() {
		return
	}
	r.tb.(*roundTB).finish() // which may end what does not care for its ctx
	if !r.ended() && r.fake {
		panics(r.report()) // a bubble cannot be left
	}
}

// ended waits for all steps to end, for as long as they may take.
func (r *round) ended() bool {
	done := make(chan struct{})
	go func() { r.running.Wait(); close(done) }()
	limit := time.NewTimer(r.h.roundLimit() / 4)
	defer limit.Stop()
	select {
	case <-done:
		return true
	case <-limit.C:
		return false
	}
}

func (r *round) until(at time.Duration) { time.Sleep(at - r.now()) }

// proc is process n as it is now.
func (r *round) proc(n int) lock.Locker {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.procs[n]
}

func (r *round) step(s step) {
	l := r.proc(s.proc)
	switch s.kind {
	case does, limits:
		r.work(s)
	case crashes:
		r.crash(s)
	case acquires:
		if !s.shared || r.caps.Shared {
			r.live(l, s)
		}
	case inspects:
		r.inspect(l, s.proc, s.key, 2*r.ttl)
	case forces:
		if a, ok := lock.As[lock.Admin](l); ok {
			r.force(l, a, s)
		}
	}
}

// befall lets a fault happen, if the harness has it. A process that is severed is followed
// by another.
func (r *round) befall(s step) {
	do := r.h.fault(s.fault)
	if do == nil {
		return
	}
	r.until(s.at)
	c := r.add(&call{op: s.fault.String(), fault: s.fault, proc: s.proc, key: -1})
	heal := do(r.tb, r.proc(s.proc))
	if s.fault == Sever {
		next := r.open()
		r.mu.Lock()
		r.procs[s.proc] = next
		r.mu.Unlock()
	} else {
		time.Sleep(s.lasts)
	}
	if heal != nil {
		heal()
	}
	r.finish(context.Background(), c, func() {})
}

// live is an owner's life.
func (r *round) live(l lock.Locker, s step) {
	if !r.caps.Priority {
		s.head = 0
	}
	t := &tenure{step: s, name: fmt.Sprintf("t%d", s.id)}
	t.owner = t.name + "-" + rand.Text()
	r.born(t)
	g, err := r.acquire(l, t)
	switch {
	case err == nil:
		for _, a := range s.acts {
			if time.Sleep(a.pause); r.ctx.Err() == nil {
				r.act(l, t, a, &g)
			}
		}
	case t.acquire.unknown() && s.undo:
		r.act(l, t, act{kind: undoes, limit: 2 * r.ttl}, &g)
	}
}

// born notes t, which is to acquire.
func (r *round) born(t *tenure) {
	r.history.mu.Lock()
	defer r.history.mu.Unlock()
	r.owners[t.owner], r.lives = t, append(r.lives, t)
}

func (r *round) acquire(l lock.Locker, t *tenure) (lock.Grant, error) {
	req := lock.Request{Key: keyName(t.key), Owner: t.owner, TTL: t.ttl, Shared: t.shared, Wait: t.wait, HeadStart: t.head}
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	if t.cancel {
		defer time.AfterFunc(t.limit, cancel).Stop()
	} else {
		ctx, cancel = context.WithTimeout(ctx, t.limit)
		defer cancel()
	}
	return r.ask(ctx, l, t, req)
}

// ask asks l for req, which is t's.
func (r *round) ask(ctx context.Context, l lock.Locker, t *tenure, req lock.Request) (lock.Grant, error) {
	told := func(c *call, to func(*tenure)) {
		c.t, c.proc, c.key = t, t.proc, t.key
		r.told(c, to)
	}
	lost, waiting := req.Lost, req.Waiting
	req.Lost = func(reason lock.LostReason) {
		c := &call{op: "lost", reason: reason}
		told(c, func(t *tenure) { t.losses = append(t.losses, c) })
		if lost != nil {
			lost(reason)
		}
	}
	var once sync.Once
	req.Waiting = func(rec lock.Record) {
		once.Do(func() {
			c := &call{op: "waiting"}
			told(c, func(t *tenure) { t.waiting = c })
		})
		if waiting != nil {
			waiting(rec)
		}
	}
	c := &call{op: "acquire", proc: t.proc, key: t.key, t: t}
	t.acquire = c
	asked := time.Now()
	r.add(c)
	if t.limit > 0 {
		c.limit = c.begin + t.limit
	}
	g, err := l.Acquire(ctx, req)
	answered := time.Now()
	r.finish(ctx, c, func() {
		c.grant, c.err, c.start = g, err, g.Start.Sub(r.begun)
		if t.worker != nil && r.fake {
			c.limit = c.end
		}
	})
	if err == nil {
		r.sane(c, held{req: req, g: g, asked: asked, answered: answered}, asked)
	}
	return g, err
}

// sane checks what a grant is by itself.
func (r *round) sane(c *call, h held, earliest time.Time) {
	if want, seen := h.flaw(earliest); want != "" {
		r.history.mu.Lock()
		defer r.history.mu.Unlock()
		r.found(ofGrants, want, seen, c)
	}
}

// act does a to the grant in g, which a renewal replaces.
func (r *round) act(l lock.Locker, t *tenure, a act, g *lock.Grant) {
	ctx, cancel := context.WithTimeout(r.ctx, a.limit)
	defer cancel()
	at := *g
	if a.kind == undoes {
		at = lock.Grant{Key: keyName(t.key), Owner: t.owner}
	}
	if next, err := r.send(ctx, l, t, a, at); a.kind == renews && err == nil {
		*g = next
	}
}

// send sends a, which is t's, to l.
func (r *round) send(ctx context.Context, l lock.Locker, t *tenure, a act, g lock.Grant) (next lock.Grant, err error) {
	c := r.add(&call{op: a.kind.String(), proc: t.proc, key: t.key, t: t})
	r.history.mu.Lock()
	if a.limit > 0 {
		c.limit = c.begin + a.limit
	}
	t.acts = append(t.acts, c)
	r.history.mu.Unlock()
	if a.kind == renews {
		next, err = l.Renew(ctx, g)
	} else {
		err = l.Release(ctx, g)
	}
	answered := time.Now()
	r.finish(ctx, c, func() { c.grant, c.err, c.start = next, err, next.Start.Sub(r.begun) })
	if a.kind == renews && err == nil {
		req := lock.Request{Key: g.Key, Owner: g.Owner, Shared: g.Shared}
		r.sane(c, held{req: req, g: next, asked: g.Start, answered: answered}, g.Start)
	}
	return next, err
}

func (r *round) inspect(l lock.Locker, proc, key int, limit time.Duration) *call {
	ctx, cancel := context.WithTimeout(r.ctx, limit)
	defer cancel()
	c := r.add(&call{op: "inspect", proc: proc, key: key})
	rec, err := l.Inspect(ctx, keyName(key))
	r.finish(ctx, c, func() { c.recs, c.err, c.limit = []lock.Record{rec}, err, c.begin+limit })
	return c
}

func (r *round) list(l lock.Locker) *call {
	c := r.add(&call{op: "list", proc: -1, key: -1})
	a, ok := lock.As[lock.Admin](l)
	if !ok {
		r.finish(context.Background(), c, func() {})
		return c
	}
	ctx, cancel := context.WithTimeout(r.ctx, r.patience())
	defer cancel()
	var recs []lock.Record
	var err error
	for rec, e := range a.List(ctx, "") {
		if e != nil {
			err = e
			break
		}
		recs = append(recs, rec)
	}
	r.finish(ctx, c, func() { c.recs, c.err = recs, err })
	return c
}

// force ends the grant of the owner of step target, if there is that owner, or of whoever has
// the key.
func (r *round) force(l lock.Locker, a lock.Admin, s step) {
	owner := ""
	if s.target == 0 {
		if c := r.inspect(l, s.proc, s.key, 2*r.ttl); c.err == nil && len(c.recs[0].Holders) > 0 {
			owner = c.recs[0].Holders[0].Owner
		}
	}
	r.history.mu.Lock()
	t := r.owners[owner]
	if i := slices.IndexFunc(r.lives, func(t *tenure) bool { return s.target != 0 && t.id == s.target }); i >= 0 {
		t = r.lives[i]
	}
	r.history.mu.Unlock()
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(r.ctx, 2*r.ttl)
	defer cancel()
	c := r.add(&call{op: "force", proc: s.proc, key: t.key, t: t})
	r.history.mu.Lock()
	c.limit = c.begin + 2*r.ttl
	t.forces = append(t.forces, c)
	r.history.mu.Unlock()
	err := a.ForceRelease(ctx, keyName(t.key), t.owner)
	r.finish(ctx, c, func() { c.err = err })
}

// settle looks at what is left when all calls are over: until it is over, or too old. Then
// the keys must be free.
func (r *round) settle(m *model) {
	l := r.open()
	for _, key := range r.plan.allKeys() {
		limit := m.deserted(key)
		for {
			c := r.inspect(l, -1, key, r.recovery()) // it may have to connect first, on a busy machine
			if c.err == nil && len(c.recs[0].Holders)+len(c.recs[0].Waiters) == 0 {
				break
			}
			if c.begin > limit && (c.err == nil || c.begin > limit+r.recovery()) {
				m.found(ofLeftovers, fmt.Sprintf("nothing to be left after %s", ms(limit)), r.describe(c), c)
				return
			}
			c.dull = true
			time.Sleep(max(r.ttl/50, time.Millisecond))
		}
		r.probe(l, m, key, limit)
	}
	for limit := r.now() + r.recovery(); ; time.Sleep(max(r.ttl/50, time.Millisecond)) {
		c := r.list(l)
		if len(c.recs) > 0 || c.err != nil && c.begin > limit {
			m.found(ofLeftovers, "List to yield nothing, and no error", r.describe(c), c)
		} else if c.err != nil {
			c.dull = true
			continue
		}
		return
	}
}

// probe takes key, which Inspect has shown free, as soon as it can be had, and gives it back.
func (r *round) probe(l lock.Locker, m *model, key int, limit time.Duration) {
	for n := 0; ; n++ {
		s := step{id: 1000*(key+1) + n, kind: acquires, at: r.now(), proc: -1, key: key, ttl: 4 * r.ttl, limit: r.patience()}
		s.acts = []act{{kind: releases, limit: r.patience()}}
		r.live(l, s)
		c := r.lives[len(r.lives)-1].acquire
		if c.err == nil {
			return
		}
		if c.begin > limit {
			m.found(ofLeftovers, fmt.Sprintf("the key to be free after %s", ms(limit)), r.describe(c), c)
			return
		}
		time.Sleep(max(r.ttl/50, time.Millisecond))
	}
}

// patience and recovery are an env's.
func (h *history) patience() time.Duration { return 5*time.Second + 2*h.ttl + starved(h.fake) }
func (h *history) recovery() time.Duration { return 20*time.Second + 5*h.ttl + starved(h.fake) }
