package locktest

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// served is the sentence that a store breaks when not all of a crowd have their turn.
const served = "Wake-ups are hints. A release must wake the next waiter promptly if Push is declared, and a lost wake-up must cost no more than a bounded recheck."

// contest is a crowd that wants one key, each of its members from a goroutine of its
// own, and the history of who had it when.
//
// A tick orders what happens in this process: the store is seen from outside, so of two
// grants one was first only if it was seen to end before the other was seen to begin.
type contest struct {
	e     *env
	key   string
	clock atomic.Int64

	writers, readers atomic.Int32
	// counter is what the lock guards. It is read, and written a little later, by
	// holders of an exclusive grant. Each half is atomic only since the race detector
	// cannot see that a store on a network orders them.
	counter atomic.Int64

	limit time.Duration // for each, from Acquire to Release
	mu    sync.Mutex    // guards the rest
	turns []*turn
	errs  []error // of those who were not served
}

// turn is one grant of a contest, with the ticks at which things happened.
type turn struct {
	shared   bool
	asked    int64        // before Acquire
	waiting  atomic.Int64 // in Request.Waiting; 0: there was no wait
	granted  int64        // after Acquire
	released int64        // before Release
	g        lock.Grant
}

// crowdFor is how many compete: a store whose waiters poll needs longer for each, and so
// does one that is far away.
func crowdFor(c lock.Capabilities, pace time.Duration) int {
	n := 40
	if c.Push {
		n = 200
	}
	if pace > 0 {
		n = min(n, max(12, int(10*time.Second/pace)))
	}
	return n
}

// compete lets n callers in four processes have the key once each; those for whom
// reads says so share it. It checks that no one is beside whom he must not be beside.
func (e *env) compete(n int, reads func(i int) bool) *contest {
	e.Helper()
	c := &contest{e: e, key: e.key(), limit: 20*time.Second + 10*e.ttl + time.Duration(5*n)*e.pace + 4*e.starved()}
	ls := []lock.Locker{e.open(), e.open(), e.open(), e.open()}
	var crowd sync.WaitGroup
	writers := int64(0)
	for i := range n {
		if !reads(i) {
			writers++
		}
		crowd.Add(1)
		e.start(func() {
			defer crowd.Done()
			c.take(ls[i%len(ls)], reads(i))
		})
	}
	crowd.Wait()
	if len(c.errs) > 0 {
		e.sentence = served
		e.fail(fmt.Sprintf("each of %d callers to have the key for 1 ms within %v", n, c.limit),
			"%d had it, %d did not; the first error: %v", n-len(c.errs), len(c.errs), c.errs[0])
	}
	if seen := c.counter.Load(); seen != writers {
		e.fail(fmt.Sprintf("%d guarded increments to make %d", writers, writers), "%d", seen)
	}
	return c
}

// take has one turn. It may run on any goroutine.
func (c *contest) take(l lock.Locker, shared bool) {
	ctx, cancel := context.WithTimeout(c.e.ctx, c.limit)
	defer cancel()
	t := &turn{shared: shared, asked: c.clock.Add(1)}
	h := held{l: l, asked: time.Now(), req: lock.Request{
		Key: c.key, Owner: rand.Text(), TTL: c.e.long(), Shared: shared, Wait: true,
		Waiting: func(lock.Record) { t.waiting.Store(c.clock.Add(1)) },
	}}
	var err error
	h.g, err = l.Acquire(ctx, h.req)
	h.answered = time.Now()
	t.granted = c.clock.Add(1)
	if err != nil {
		c.failed(err)
		return
	}
	if want, seen := h.flaw(h.asked); want != "" {
		c.e.report(want, "%s", seen)
	}
	t.g = h.g
	c.use(t)
	t.released = c.clock.Add(1)
	if err := l.Release(ctx, h.g); err != nil {
		if ctx.Err() == nil {
			c.e.report("a nil error from the Release of a live grant", "%v", err)
		}
		c.failed(err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turns = append(c.turns, t)
}

func (c *contest) failed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.errs = append(c.errs, err)
}

// use is the critical section: long enough for others to get in if they can.
func (c *contest) use(t *turn) {
	mine, others := &c.writers, &c.readers
	if t.shared {
		mine, others = others, mine
	}
	n := mine.Add(1)
	defer mine.Add(-1)
	read := c.counter.Load()
	time.Sleep(time.Millisecond)
	if n > 1 && !t.shared || others.Load() > 0 {
		c.e.report("one exclusive grant at a time, and none beside a shared one",
			"token %d, shared %t, beside %d of its kind and %d others", t.g.Token, t.shared, n-1, others.Load())
	}
	if !t.shared {
		c.counter.Store(read + 1)
	}
}

// pairs calls f with every two turns of which the first is exclusive.
func (c *contest) pairs(f func(writer, other *turn)) {
	for _, w := range c.turns {
		if w.shared {
			continue
		}
		for _, o := range c.turns {
			if o != w {
				f(w, o)
			}
		}
	}
}

// tokensRise checks that who had the key later has the higher token.
func (c *contest) tokensRise() {
	c.e.Helper()
	c.pairs(func(w, o *turn) {
		first, second := w, o
		if o.released < w.granted {
			first, second = o, w
		}
		if first.g.Token >= second.g.Token {
			c.e.fail("the token of a later grant to be higher",
				"token %d (shared %t), and after its release token %d (shared %t)",
				first.g.Token, first.shared, second.g.Token, second.shared)
		}
	})
}

// inOrder checks that who stood in line before another came was served before him.
func (c *contest) inOrder() {
	c.e.Helper()
	c.pairs(func(w, o *turn) {
		first, second := w, o
		if o.asked < w.asked {
			first, second = o, w
		}
		stood := first.waiting.Load()
		if stood > 0 && stood < second.asked && first.granted > second.granted {
			c.e.fail("waiters to be served in the order of arrival",
				"one that stood in line at tick %d was granted the key at %d, one that came at %d had it at %d (shared %t and %t)",
				stood, first.granted, second.asked, second.granted, first.shared, second.shared)
		}
	})
}
