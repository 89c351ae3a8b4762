package locktest

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// refHarness is the reference store with these flaws, in fake time. wrap, if not nil,
// is put around each Locker.
func refHarness(f flaws, wrap func(*refClient) lock.Locker) Harness {
	faults := map[Fault]func(*refClient) func(){
		Sever:      (*refClient).sever,
		Freeze:     (*refClient).freeze,
		LoseReply:  (*refClient).loseReply,
		LoseWakeup: (*refClient).loseWakeup,
		LoseRecord: func(c *refClient) func() { return c.forget(true, true) },
		Restart:    func(c *refClient) func() { return c.restart() },
		Failover:   func(c *refClient) func() { return c.forget(f.failoverDropsHolds, f.failoverDropsTokens) },
	}
	h := Harness{
		Around: synctest.Test,
		Faults: map[Fault]func(testing.TB, lock.Locker) func(){},
		New: func(tb testing.TB) func() lock.Locker {
			s, n := newRefServer(f), 0
			return func() lock.Locker {
				c := s.open(tb, n)
				n++
				if wrap == nil {
					return c
				}
				return wrap(c)
			}
		},
	}
	h.LosePart = func(_ testing.TB, l lock.Locker, key string, k int) bool {
		c, _ := lock.As[*refClient](l)
		return c.s.losePart(key, k)
	}
	h.Strike = func(_ testing.TB, l lock.Locker, s Strike) (func() bool, func()) {
		c, _ := lock.As[*refClient](l)
		return c.struckBy(s)
	}
	for fault, do := range faults {
		h.Faults[fault] = func(_ testing.TB, l lock.Locker) func() {
			c, _ := lock.As[*refClient](l)
			return do(c)
		}
	}
	return h
}

// refStrike is a Strike that goes on. The server's mutex guards seen and hit.
type refStrike struct {
	Strike
	seen   int
	hit    bool
	healed chan struct{}
}

var errBroken = errors.New("connection broken")

func (c *refClient) struckBy(s Strike) (struck func() bool, heal func()) {
	st := &refStrike{Strike: s, healed: make(chan struct{})}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.strike = st
	struck = func() bool {
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		return st.hit
	}
	return struck, func() {
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		c.strike = nil
		close(st.healed)
	}
}

// survive counts a message at the strike that goes on, and returns when and if it passes.
// A request that is held is done when it is delivered, also when nobody waits any more.
func (c *refClient) survive(ctx context.Context, reply bool, do func(now time.Time)) error {
	c.s.mu.Lock()
	st := c.strike
	if st == nil || st.Reply != reply {
		c.s.mu.Unlock()
		return nil
	}
	st.seen++
	hit := st.seen == st.K || st.Hold && st.seen > st.K
	st.hit = st.hit || hit
	c.s.mu.Unlock()
	switch {
	case !hit:
		return nil
	case st.Torn:
		c.greeted.Store(false)
		return io.ErrUnexpectedEOF
	case !st.Hold:
		c.greeted.Store(false)
		return errBroken
	}
	select {
	case <-st.healed:
		return nil
	case <-ctx.Done():
	}
	if !reply {
		c.s.late.Go(func() { c.deliver(st, do) })
	}
	return ctx.Err()
}

func (c *refClient) deliver(st *refStrike, do func(now time.Time)) {
	select {
	case <-st.healed:
		time.Sleep(c.s.latency())
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		do(time.Now().Add(c.skew))
	case <-c.closed:
	}
}

func (c *refClient) sever() func() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.dead = true
	c.s.changed("")
	return nil
}

func (c *refClient) freeze() func() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	thaw := make(chan struct{})
	c.s.thaw = thaw
	return func() {
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		c.s.thaw = nil
		if c.s.thawDropsHolds {
			c.s.drop(true, false)
		}
		close(thaw)
	}
}

func (c *refClient) loseReply() func() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	withheld := make(chan struct{})
	c.withheld = withheld
	return func() {
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		c.withheld = nil
		close(withheld)
	}
}

func (c *refClient) loseWakeup() func() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.deaf = true
	return func() {
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		c.deaf = false
	}
}

func (c *refClient) forget(holds, tokens bool) func() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.drop(holds, tokens)
	return nil
}

func (s *refServer) drop(holds, tokens bool) {
	defer s.changed("")
	for _, k := range s.keys {
		if holds {
			k.holders, k.line = nil, nil
		}
		if tokens {
			k.token = 0
		}
	}
}
