package locktest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	lock "github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/semaphore"
)

func semaphores() group {
	const (
		most   = "Package semaphore lets at most n callers, in any number of processes, do a thing at once: use an API that allows four calls, or a license for eight seats."
		heavy  = "Light callers do not starve a heavy one, since nobody behind it in line can take what it waits for."
		dead   = "Each permit expires alone, a TTL after its process has died."
		first  = "The process whose turn it is waits for all slots of other processes at once, and takes whichever is free first."
		undone = "It undoes the waits that it does not need any more."
		n      = "A process that meets a permit of another n returns ErrInvalid, and takes nothing."
		weight = "A weight that is not from 1 to n is ErrInvalid."
		ends   = "fn's ctx ends when ctx ends or the first of its permits is lost."
		try    = "TryDo is Do without waiting: it returns ErrHeld if fewer than weight permits are free, or if callers of this Semaphore wait for permits. It does not stand in line."
		nested = "If ctx comes from the fn of a Do on the same key and Client that still holds permits, Do would wait for itself: it returns ErrDeadlock at once."
	)
	survives := declares("HoldSurvives restart", func(c lock.Capabilities) bool { return c.HoldSurvives.Has(lock.SurvivesRestart) })
	return group{"Semaphore", []row{
		{"AtMostN", most, plain, nil, func(e *env) { e.crowdOfPermits(0) }},
		{"AtMostNAfterSever", most, plain, needs(can(Sever)), func(e *env) { e.crowdOfPermits(Sever) }},
		{"AtMostNDuringAFreeze", most, plain, needs(can(Freeze)), func(e *env) { e.crowdOfPermits(Freeze) }},
		{"AtMostNDuringARestart", most, plain, needs(can(Restart), survives), func(e *env) { e.crowdOfPermits(Restart) }},
		{"HeavyIsNotStarved", heavy, plain, needs(declares("FIFO", hasFIFO)), heavyIsNotStarved},
		{"DeadPermitsPass", dead, plain, needs(can(Sever)), deadPermitsPass},
		{"WhicheverIsFreeFirst", first, plain, nil, whicheverIsFreeFirst},
		{"CancelLeavesNothing", undone, plain, nil, canceledPermits},
		{"AnotherN", n, plain, nil, anotherN},
		{"Weight", weight, plain, nil, badWeight},
		{"LossOfAPermit", ends, plain, needs(isAdmin), lossOfAPermit},
		{"EndsInTimeDuringAFreeze", ends, plain, needs(can(Freeze)), permitsWhenFrozen},
		{"TryDo", try, plain, nil, tryDoOfPermits},
		{"Deadlock", nested, plain, nil, nestedPermits},
	}}
}

type permitFunc = func(ctx context.Context, permits []semaphore.Permit) error

// permits is what the cases try of a [semaphore.Semaphore].
type permits interface {
	Do(ctx context.Context, weight int, fn permitFunc) error
	TryDo(ctx context.Context, weight int, fn permitFunc) error
}

// user is one more process on the keyspace, with a semaphore.
type user struct {
	permits
	l lock.Locker
}

// user returns one of a semaphore of n permits, whose TTL is ttl.
func (e *env) user(key string, n int, ttl time.Duration) user {
	u := user{l: e.open()}
	c := lock.New(u.l, lock.WithTTL(ttl))
	e.tb.Cleanup(func() {
		e.cancel()
		ctx, cancel := context.WithTimeout(context.Background(), e.farewell())
		defer cancel()
		_ = c.Close(ctx)
	})
	if e.h.newSemaphore != nil {
		u.permits = e.h.newSemaphore(e, c, key, n)
	} else {
		u.permits = semaphore.New(c, key, n)
	}
	return u
}

// gauge counts the permits in use whose leases have not ended. That a lease knows itself,
// however busy the machine.
type gauge struct {
	e       *env
	n       int
	mu      sync.Mutex // guards the rest
	using   map[*lock.Lease]bool
	started int
}

// use uses ps for d, and reports more than n. What has not ended when it is looked at had not
// ended when the look began.
func (g *gauge) use(ctx context.Context, ps []semaphore.Permit, d time.Duration) error {
	g.mu.Lock()
	g.started++
	for _, p := range ps {
		g.using[p.Lease] = true
	}
	in := 0
	for l := range g.using {
		if l.Err() == nil {
			in++
		}
	}
	g.mu.Unlock()
	if in > g.n {
		g.e.report(fmt.Sprintf("at most %d permits at a time", g.n), "%d", in)
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range ps {
		delete(g.using, p.Lease)
	}
	return context.Cause(ctx)
}

func (g *gauge) starts() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.started
}

// crowdOfPermits has callers of all weights in three processes, one of which meets f.
func (e *env) crowdOfPermits(f Fault) {
	const n = 3
	key := e.key()
	g := &gauge{e: e, n: n, using: make(map[*lock.Lease]bool)}
	ttl := e.long()
	if f != 0 { // what is lost by it is to pass
		ttl = e.ttl
	}
	users := []user{e.user(key, n, ttl), e.user(key, n, ttl), e.user(key, n, ttl)}
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	var working sync.WaitGroup
	for i := range 12 {
		working.Add(1)
		e.start(func() {
			defer working.Done()
			for round := 0; round < 2 || f != 0 && ctx.Err() == nil; round++ {
				weight := 1 + (i+round)%n
				err := users[i%len(users)].Do(ctx, weight, func(ctx context.Context, ps []semaphore.Permit) error {
					return g.use(ctx, ps, e.ttl/20)
				})
				if err != nil && f == 0 {
					e.report("nil, as the function returned", "%v", err)
				}
				if err != nil { // what fails at once is not to spin
					select {
					case <-time.After(e.ttl / 20):
					case <-ctx.Done():
					}
				}
			}
		})
	}
	if f != 0 {
		e.until(g, 3)
		heal := e.fault(f, users[0].l)
		time.Sleep(3 * e.ttl / 2)
		heal()
		e.until(g, g.starts()+5) // it goes on
		cancel()
	}
	done := make(chan struct{})
	go func() { working.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(2*e.recovery() + 100*e.pace):
		e.fail("all callers to be served", "%d were", g.starts())
	}
}

// until waits until so many functions have begun.
func (e *env) until(g *gauge, starts int) {
	e.Helper()
	e.eventually(fmt.Sprintf("%d functions to run", starts), 2*e.recovery(), func() (bool, string) {
		now := g.starts()
		return now >= starts, fmt.Sprint(now)
	})
}

// heavyIsNotStarved has light callers come again and again in two processes, more than can
// be served, and a heavy one in a third.
func heavyIsNotStarved(e *env) {
	const n = 3
	key := e.key()
	g := &gauge{e: e, n: n, using: make(map[*lock.Lease]bool)}
	ctx, stop := context.WithCancel(e.ctx)
	defer stop()
	lights := []user{e.user(key, n, e.long()), e.user(key, n, e.long())}
	for i := range 12 {
		e.start(func() {
			for ctx.Err() == nil {
				err := lights[i%2].Do(ctx, 1, func(ctx context.Context, ps []semaphore.Permit) error {
					return g.use(ctx, ps, e.ttl/100)
				})
				if err != nil {
					time.Sleep(e.tick())
				}
			}
		})
	}
	e.until(g, 2*n)
	heavy := e.user(key, n, e.long())
	for range 6 { // without a line, some may be lucky
		served := make(chan error, 1)
		e.start(func() {
			served <- heavy.Do(e.ctx, n, func(ctx context.Context, ps []semaphore.Permit) error {
				return g.use(ctx, ps, 0)
			})
		})
		before := g.starts()
		select {
		case err := <-served:
			if err != nil {
				e.fail("a heavy caller to be served", "%v", err)
			}
		case <-time.After(2 * e.patience()):
			e.fail("a heavy caller to be served", "%d light ones were meanwhile", g.starts()-before)
		}
	}
}

// deadPermitsPass: those of the living stay, those of the dead pass, each by itself.
func deadPermitsPass(e *env) {
	const n = 3
	key := e.key()
	a, b := e.user(key, n, e.ttl), e.user(key, n, e.long())
	dead := e.useBy(a, 2)
	kept := e.useBy(b, 1)
	e.fault(Sever, a.l)
	err := e.call("Do", func(context.Context) error {
		ctx, cancel := context.WithTimeout(e.ctx, e.patience()+e.caps.ExpirySlack+e.ttl)
		defer cancel()
		return b.Do(ctx, 2, func(context.Context, []semaphore.Permit) error {
			for _, l := range dead.permits {
				if l.Err() == nil { // that its ctx has ended may be told late on a busy machine
					e.report("the permits of a dead one to end before another has them", "one goes on")
				}
			}
			return nil
		})
	})
	if err != nil {
		e.fail("the permits of a process that died", "%v", err)
	}
	if kept.ctx.Err() != nil {
		e.fail("a living process to keep its permit", "%v", context.Cause(kept.ctx))
	}
	if err := kept.leave(nil); err != nil {
		e.fail("nil, as the function returned", "%v", err)
	}
}

// useBy begins a Do of permits that are free.
func (e *env) useBy(u user, weight int) *work {
	e.Helper()
	return e.doing(func(w *work) error {
		return u.Do(e.ctx, weight, func(ctx context.Context, ps []semaphore.Permit) error {
			w.permits = map[int]lease{}
			for _, p := range ps {
				w.permits[p.Slot] = p.Lease
			}
			return w.run(ctx, nil)
		})
	})
}

// whicheverIsFreeFirst has one wait for permits of another process, and frees each in turn.
func whicheverIsFreeFirst(e *env) {
	const n = 3
	key := e.key()
	a, b := e.user(key, n, e.long()), e.user(key, n, e.long())
	held := []*work{e.useBy(a, 1), e.useBy(a, 1), e.useBy(a, 1)}
	for i, w := range held {
		done := e.waitsFor(e.ctx, b, key, 1)
		if err := w.leave(nil); err != nil {
			e.fail("nil, as the function returned", "%v", err)
		}
		select {
		case err := <-done:
			if err != nil {
				e.fail("a permit that is free", "%v", err)
			}
		case <-time.After(e.patience()):
			e.fail("a permit that is free, within "+e.patience().String(), "nothing")
		}
		held[i] = e.useBy(a, 1)
	}
	for _, w := range held {
		_ = w.leave(nil)
	}
}

// waitsFor begins a Do of permits that are not free, and returns when it stands in line.
func (e *env) waitsFor(ctx context.Context, u user, key string, weight int) <-chan error {
	e.Helper()
	done := make(chan error, 1)
	e.start(func() { done <- u.Do(ctx, weight, func(context.Context, []semaphore.Permit) error { return nil }) })
	e.eventually("a Do without permits to stand in line", e.patience(), func() (bool, string) {
		rec := e.mustInspect(u.l, key+"#semaphore/line")
		return len(rec.Holders)+len(rec.Waiters) > 0, "nobody does"
	})
	return done
}

// canceledPermits: neither a place in line nor what a heavy caller had already may stay.
func canceledPermits(e *env) {
	const n = 3
	key := e.key()
	a, b, c := e.user(key, n, e.long()), e.user(key, n, e.long()), e.open()
	w := e.useBy(a, 1)
	ctx, cancel := context.WithCancel(e.ctx)
	done := e.waitsFor(ctx, b, key, n)
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			e.fail("the error of ctx", "%v", err)
		}
	case <-time.After(e.patience()):
		e.fail("Do to return when its ctx ends", "it has not, in %v", e.patience())
	}
	if err := w.leave(nil); err != nil {
		e.fail("nil, as the function returned", "%v", err)
	}
	for _, part := range []string{"line", "slot/0", "slot/1", "slot/2"} {
		e.freed(c, key+"#semaphore/"+part)
	}
}

func anotherN(e *env) {
	key := e.key()
	four, eight := e.user(key, 4, e.long()), e.user(key, 8, e.long())
	for _, pair := range [][2]user{{four, eight}, {eight, four}} {
		w := e.useBy(pair[0], 1)
		for what, do := range map[string]func(context.Context, int, permitFunc) error{"Do": pair[1].Do, "TryDo": pair[1].TryDo} {
			err := e.call(what, func(ctx context.Context) error { return do(ctx, 1, e.noPermits) })
			if !errors.Is(err, lock.ErrInvalid) {
				e.fail("ErrInvalid from the "+what+" of a semaphore with another n", "%v", err)
			}
		}
		if err := w.leave(nil); err != nil {
			e.fail("nil, as the function returned", "%v", err)
		}
	}
}

// noPermits is a function that must not run.
func (e *env) noPermits(context.Context, []semaphore.Permit) error {
	e.report("the function not to run", "it ran")
	return nil
}

func badWeight(e *env) {
	u := e.user(e.key(), 3, e.long())
	for _, weight := range []int{-1, 0, 4} {
		err := e.call("Do", func(ctx context.Context) error { return u.Do(ctx, weight, e.noPermits) })
		if !errors.Is(err, lock.ErrInvalid) {
			e.fail(fmt.Sprintf("ErrInvalid from a Do of weight %d with 3 permits", weight), "%v", err)
		}
	}
}

func lossOfAPermit(e *env) {
	const n = 3
	key := e.key()
	u, c := e.user(key, n, e.long()), e.open()
	w := e.useBy(u, n)
	lost := w.permits[1]
	if lost == nil {
		e.fail("all permits, each of a slot", "none of slot 1")
	}
	e.evict(c, key+"#semaphore/slot/1")
	e.learns(lost)
	_ = e.lostBy(w.ctx)
	err := w.leave(errWork)
	if !errors.Is(err, lock.ErrLost) || !errors.Is(err, errWork) {
		e.fail("the loss and the function's error", "%v", err)
	}
}

func permitsWhenFrozen(e *env) {
	e.fastest("the function's ctx to end when the store is frozen", e.ttl, func() time.Duration {
		u := e.user(e.key(), 2, e.ttl)
		w := e.useBy(u, 2)
		heal := e.fault(Freeze, u.l)
		frozen := time.Now()
		var ended time.Time
		noted := make(chan struct{})
		context.AfterFunc(w.ctx, func() { ended = time.Now(); close(noted) })
		e.await(noted, "the function's ctx to end when the store is frozen")
		heal()
		if err := w.leave(nil); !errors.Is(err, lock.ErrLost) {
			e.fail("the loss from Do", "%v", err)
		}
		return ended.Sub(frozen)
	})
}

func tryDoOfPermits(e *env) {
	const n = 3
	key := e.key()
	a, b := e.user(key, n, e.long()), e.user(key, n, e.long())
	w := e.useBy(a, 2)
	nobody := func() (bool, string) {
		rec := e.mustInspect(b.l, key+"#semaphore/line")
		return len(rec.Holders)+len(rec.Waiters) == 0, fmt.Sprintf("%+v", rec)
	}
	e.eventually("the line to be left after Do has its permits", e.patience(), nobody)
	for _, u := range []user{a, b} {
		err := e.asks("TryDo", func(ctx context.Context) error { return u.TryDo(ctx, 2, e.noPermits) })
		e.onlyHeld("TryDo", err)
	}
	if ok, seen := nobody(); !ok {
		e.fail("nobody in line", "%s", seen)
	}
	err := e.call("TryDo", func(ctx context.Context) error {
		return b.TryDo(ctx, 1, func(context.Context, []semaphore.Permit) error { return errWork })
	})
	if !same(err, errWork) {
		e.fail("a TryDo of a permit that is free to run its function, and its error", "%v", err)
	}
	_ = w.leave(nil)
}

func nestedPermits(e *env) {
	u := e.user(e.key(), 3, e.long())
	w := e.useBy(u, 1)
	err := e.within(w, "Do", func(ctx context.Context) error { return u.Do(ctx, 3, e.noPermits) })
	if !errors.Is(err, lock.ErrDeadlock) {
		e.fail("ErrDeadlock from a nested Do", "%v", err)
	}
	_ = w.leave(nil)
}
