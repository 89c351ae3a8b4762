package locktest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync/atomic"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func deadlocks() group {
	const (
		local  = "If it would close such a cycle among the leases and the waits of this Client, it returns ErrDeadlock at once, before anything is sent: a *DeadlockError that names the cycle. The others in it go on waiting."
		detect = "If it is the youngest in the cycle, it stops waiting and returns a *DeadlockError; the others get their keys once its fn has returned."
		alike  = "The youngest is the one whose newest lease has the highest token: the tokens are what all of them see alike, however their clocks differ, so only one gives up even if all look at the same time."
		twice  = "It lists all keys. If that shows a cycle, it lists them again, and returns the cycle only if the same owners still wait and hold in it: so they all did at one moment between the two looks."
		reader = "A shared one waits for an exclusive holder; where FIFO is declared it waits for readers as well, behind an exclusive waiter."
		line   = "Waiters that are merely ahead in line add nothing: what they wait for, those behind them wait for too."
	)
	seen := needs(isAdmin, declares("FIFO", hasFIFO))
	return group{"Deadlocks", []row{
		{"OneClient", local, both, nil, func(e *env) { e.localRing(2) }},
		{"RingInOneClient", local, both, nil, func(e *env) { e.localRing(3) }},
		{"OneVictimInOneClient", local, both, nil, localVictim},
		{"TwoClients", detect, both, seen, func(e *env) { e.ring(2) }},
		{"RingOverThree", alike, both, seen, func(e *env) { e.ring(3) }},
		{"ReaderBehindAWriter", reader, shared, seen, readerInTheRing},
		{"Converging", line, both, seen, converging},
		{"Dissolves", twice, both, seen, dissolves},
		{"LostReply", twice, both, append(needs(can(LoseReply)), seen...), lateInTheRing},
		{"Found", twice, both, seen, deadlockFound},
	}}
}

// chain are processes that hold a key each, and then ask for that of the next one, the last
// for that of the first.
type chain struct {
	e     *env
	by    []actor
	keys  []string
	holds []*work
	asks  []*work
}

// chain takes n keys in the case's mode, each by a process of its own, or all by one.
func (e *env) chain(n int, by func() actor) *chain {
	e.Helper()
	c := &chain{e: e, asks: make([]*work, n)}
	for range n {
		a, key := by(), e.key()
		c.by, c.keys = append(c.by, a), append(c.keys, key)
		c.holds = append(c.holds, e.do(e.ctx, a, key, e.with(e.long())))
	}
	return c
}

// ask has i ask for the next one's key, exclusively.
func (c *chain) ask(i int, opts ...lock.Option) *work {
	next := c.keys[(i+1)%len(c.keys)]
	w := c.e.begin(c.holds[i].ctx, c.by[i], next, append(opts, lock.WithTTL(c.e.long())))
	w.out <- nil // it has nothing to do
	c.asks[i] = w
	return w
}

// waits returns when i is known to wait for the next one's key.
func (c *chain) waits(i int) {
	c.e.Helper()
	c.e.contended(c.by[i], c.keys[(i+1)%len(c.keys)])
}

// victim waits for the first wait to end, and checks that it ended as that of a deadlock
// among all. It returns whose it was.
func (c *chain) victim() int {
	c.e.Helper()
	first := make(chan int, len(c.asks))
	for i, w := range c.asks {
		c.e.start(func() {
			select {
			case <-w.done:
				first <- i
			case <-c.e.ctx.Done():
			}
		})
	}
	select {
	case i := <-first:
		c.e.deadlocked(c.asks[i].err, c.keys...)
		return i
	case <-time.After(c.e.patience()):
		c.e.fail("ErrDeadlock for one of those who wait in a cycle", "they are still waiting, after %v", c.e.patience())
	}
	return 0
}

// resolved has the functions return, that of the victim first, and checks that all others get
// what they asked for.
func (c *chain) resolved(victim int) {
	c.e.Helper()
	n := len(c.keys)
	_ = c.holds[victim].leave(nil)
	for k := 1; k < n; k++ {
		i := (victim + n - k) % n // it waits for the one that has just left
		c.e.await(c.asks[i].done, "a wait to end when the victim's function has returned")
		if err := c.asks[i].err; err != nil {
			c.e.fail("one victim only: the others get the keys that they wait for", "%v", err)
		}
		_ = c.holds[i].leave(nil)
	}
}

// deadlocked checks that err is a *DeadlockError that names the keys, and no others.
func (e *env) deadlocked(err error, keys ...string) {
	e.Helper()
	var d *lock.DeadlockError
	if !errors.Is(err, lock.ErrDeadlock) || !errors.As(err, &d) {
		e.fail("a *DeadlockError, since the wait is part of a cycle", "%v", err)
	}
	e.covers(d.Deadlock, keys)
}

// covers checks that d goes through the keys, each once.
func (e *env) covers(d lock.Deadlock, keys []string) {
	e.Helper()
	var named []string
	for _, w := range d.Cycle {
		named = append(named, w.Key)
	}
	if slices.Sort(named); !slices.Equal(named, slices.Sorted(slices.Values(keys))) {
		e.fail(fmt.Sprintf("a cycle over the keys %q", keys), "%v", d)
	}
}

// localRing lets the last one close the cycle: only that one is told, and at once.
func (e *env) localRing(n int) {
	e.Helper()
	a := e.actor()
	c := e.chain(n, func() actor { return a })
	for i := range n - 1 {
		c.ask(i)
		c.waits(i)
	}
	last := c.ask(n - 1)
	e.await(last.done, "a call that closes a cycle to return at once")
	e.deadlocked(last.err, c.keys...)
	for i := range n - 1 {
		c.asks[i].goesOn()
	}
	c.resolved(n - 1)
}

// localVictim has all ask at once.
func localVictim(e *env) {
	a := e.actor()
	c := e.chain(4, func() actor { return a })
	for i := range c.keys {
		c.ask(i)
	}
	c.resolved(c.victim())
}

// every is how often the processes of a case look.
func (e *env) every() lock.Option {
	return lock.WithDeadlockDetection(max(e.ttl/5, 5*e.pace, time.Millisecond))
}

// ring has n processes ask at once, and look at the same time.
func (e *env) ring(n int) {
	e.Helper()
	c := e.chain(n, e.actor)
	for i := range n {
		c.ask(i, e.every())
	}
	victim := c.victim()
	for _, w := range c.holds {
		if token := c.holds[victim].lease.Token(); w.lease.Token() > token {
			e.fail("the youngest to be the victim", "one with token %d, beside %d", token, w.lease.Token())
		}
	}
	c.resolved(victim)
}

// readerInTheRing: two readers would hold the key together, were it not for the writer that
// waits between them. That one has done nothing wrong, and is served in the end.
func readerInTheRing(e *env) {
	a, b, c := e.actor(), e.actor(), e.actor()
	read, other := e.key(), e.key()
	first := e.do(e.ctx, a, read, e.with(e.long()))
	second := e.do(e.ctx, b, other, []lock.Option{lock.WithTTL(e.long())})
	writer := e.begin(e.ctx, c, read, []lock.Option{lock.WithTTL(e.long())})
	e.contended(c, read)
	asks := []*work{
		e.begin(first.ctx, a, other, []lock.Option{lock.WithTTL(e.long()), e.every()}),
		e.begin(second.ctx, b, read, e.with(e.long(), e.every())),
	}
	ring := &chain{e: e, keys: []string{other, read}, holds: []*work{first, second}, asks: asks}
	for _, w := range asks {
		w.out <- nil
	}
	writer.out <- nil
	victim := ring.victim()
	_ = ring.holds[victim].leave(nil)
	if victim == 1 {
		e.await(asks[0].done, "the other wait to end when the victim's function has returned")
		_ = first.leave(nil)
	}
	e.await(writer.done, "the writer to be served")
	if victim == 0 {
		e.await(asks[1].done, "the other wait to end when the victim's function has returned")
		_ = second.leave(nil)
	}
	for i, w := range asks {
		if i != victim && w.err != nil {
			e.fail("one victim only: the others get the keys that they wait for", "%v", w.err)
		}
	}
	if writer.err != nil {
		e.fail("the writer, which is in line only, to get its key", "%v", writer.err)
	}
}

// lister is a process whose looks are counted. before, if set, is called with the number of
// each, from 1.
type lister struct {
	lock.Locker
	looks  atomic.Int64
	before atomic.Pointer[func(n int64)]
}

func (l *lister) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	n := l.looks.Add(1)
	if f := l.before.Load(); f != nil {
		(*f)(n)
	}
	admin, _ := lock.As[lock.Admin](l.Locker)
	return admin.List(ctx, prefix)
}

func (l *lister) ForceRelease(ctx context.Context, key, owner string) error {
	admin, _ := lock.As[lock.Admin](l.Locker)
	return admin.ForceRelease(ctx, key, owner)
}

func (l *lister) Unwrap() lock.Locker { return l.Locker }

// looked returns when l has begun n more looks.
func (e *env) looked(l *lister, n int64) {
	e.Helper()
	begun := l.looks.Load()
	e.eventually("a wait to look for deadlocks again and again", e.patience(), func() (bool, string) {
		return l.looks.Load() >= begun+n, fmt.Sprintf("%d looks", l.looks.Load()-begun)
	})
}

// converging: all wait for one key, and hold what nobody on the way to it waits for.
func converging(e *env) {
	key := e.key()
	end := e.do(e.ctx, e.actor(), key, e.with(e.long()))
	var holds, asks []*work
	var last *lister
	var own string
	for range 3 {
		last, own = &lister{Locker: e.open()}, e.key()
		a := e.actorOn(last)
		outer := e.do(e.ctx, a, own, e.with(e.long()))
		w := e.begin(outer.ctx, a, key, []lock.Option{lock.WithTTL(e.long()), e.every()})
		w.out <- nil
		e.contended(a, key)
		holds, asks = append(holds, outer), append(asks, w)
	}
	outside := e.begin(e.ctx, e.actor(), own, []lock.Option{lock.WithTTL(e.long())})
	outside.out <- nil
	e.looked(last, 3)
	for _, w := range asks {
		w.goesOn()
	}
	_ = end.leave(nil)
	for i, w := range asks {
		e.await(w.done, "those who wait for one key to get it one after another")
		if w.err != nil {
			e.fail("no deadlock where waits converge", "%v", w.err)
		}
		_ = holds[i].leave(nil)
	}
	e.await(outside.done, "who waits under nothing to be served")
}

// dissolves: one of two gives up while the other, which is the younger, looks. Only who is the
// younger looks twice.
func dissolves(e *env) {
	l, observer := &lister{Locker: e.open()}, e.open()
	older, younger := e.actor(), e.actorOn(l)
	turn := 0
	c := e.chain(2, func() actor { turn++; return []actor{older, younger}[turn-1] })
	for n := 0; c.holds[1].lease.Token() <= c.holds[0].lease.Token(); n++ {
		if n == 8 {
			e.skip("the token of one key stays below that of another, which was granted before")
		}
		_ = c.holds[1].leave(nil)
		e.freed(observer, c.keys[1]) // by a grant of another, above which the next one is
		c.holds[1] = e.do(e.ctx, younger, c.keys[1], e.with(e.long()))
	}
	ctx, cancel := context.WithCancel(c.holds[0].ctx)
	gives := e.begin(ctx, older, c.keys[1], []lock.Option{lock.WithTTL(e.long())})
	e.contended(older, c.keys[1])
	gone := make(chan struct{})
	before := func(n int64) {
		if n != 2 {
			return
		}
		cancel()
		for e.ctx.Err() == nil {
			rec, err := observer.Inspect(e.ctx, c.keys[1])
			if err == nil && len(rec.Waiters) == 0 {
				break
			}
			time.Sleep(e.tick())
		}
		close(gone)
	}
	l.before.Store(&before)
	goes := c.ask(1, e.every())
	e.await(gone, "a cycle to be looked at twice")
	e.await(gives.done, "the one that gives up to return")
	e.looked(l, 3)
	goes.goesOn()
	_ = c.holds[0].leave(nil)
	e.await(goes.done, "the other to get the key")
	if goes.err != nil {
		e.fail("no deadlock where the cycle has dissolved", "%v", goes.err)
	}
	_ = c.holds[1].leave(nil)
}

// lateInTheRing: one of two has been granted what it waits for, and does not know it yet.
func lateInTheRing(e *env) {
	l := &lister{Locker: e.open()}
	late, other := e.actor(), e.actorOn(l)
	turn := 0
	c := e.chain(2, func() actor { turn++; return []actor{late, other}[turn-1] })
	_ = c.ask(0)
	c.waits(0)
	second := e.do(e.ctx, other, e.key(), e.with(e.long()))
	heal := e.fault(LoseReply, late.l)
	_ = c.holds[1].leave(nil)
	goes := e.begin(second.ctx, other, c.keys[0], []lock.Option{lock.WithTTL(e.long()), e.every()})
	goes.out <- nil
	e.looked(l, 3)
	heal()
	e.await(c.asks[0].done, "the one whose reply was lost to hear of its grant")
	goes.goesOn()
	_ = c.holds[0].leave(nil)
	e.await(goes.done, "the other to get the key")
	if err := errors.Join(c.asks[0].err, goes.err); err != nil {
		e.fail("no deadlock where a grant is on its way", "%v", err)
	}
	_ = second.leave(nil)
}

// deadlockFound looks as an operator does.
func deadlockFound(e *env) {
	admin, _ := lock.As[lock.Admin](e.open())
	c := e.chain(3, e.actor)
	e.finds(admin, nil)
	for i := range c.keys {
		e.finds(admin, nil)
		c.ask(i)
		c.waits(i)
	}
	e.finds(admin, c.keys)
}

// finds checks that there is one deadlock, over those keys, or none if there are none.
func (e *env) finds(admin lock.Admin, keys []string) {
	e.Helper()
	var found []lock.Deadlock
	err := e.call("FindDeadlocks", func(ctx context.Context) (err error) {
		found, err = lock.FindDeadlocks(ctx, admin)
		return err
	})
	if err != nil || len(found) != min(len(keys), 1) {
		e.fail(fmt.Sprintf("a deadlock over the keys %q if there are any", keys), "%v, error %v", found, err)
	}
	for _, d := range found {
		e.covers(d, keys)
	}
}
