package locktest

import (
	"testing"
	"testing/synctest"

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
		Restart:    func(c *refClient) func() { return c.forget(f.restartDropsHolds, f.restartDropsTokens) },
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
	for fault, do := range faults {
		h.Faults[fault] = func(_ testing.TB, l lock.Locker) func() {
			c, _ := lock.As[*refClient](l)
			return do(c)
		}
	}
	return h
}

func (c *refClient) sever() func() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.dead = true
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
	for _, k := range s.keys {
		if holds {
			k.holders, k.line = nil, nil
		}
		if tokens {
			k.token = 0
		}
	}
}
