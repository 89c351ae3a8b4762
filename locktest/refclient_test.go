package locktest

import (
	"context"
	"errors"
	"io"
	"iter"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

const (
	// nearby and farAway are how long a request takes to the server, and a reply back.
	nearby  = 100 * time.Microsecond
	farAway = 100 * time.Millisecond
	// resend is when a refClient gives up on a reply, once.
	resend = 300 * time.Millisecond
)

// refClient is one process on a refServer. The server's mutex guards its fields.
type refClient struct {
	s        *refServer
	skew     time.Duration            // for a flaw
	wakes    map[string]chan struct{} // of those who wait, by owner
	dead     bool                     // severed
	deaf     bool                     // wake-ups do not reach it
	withheld chan struct{}            // while replies are kept back: closed at its end
	strike   *refStrike               // while there is one
	greeted  atomic.Bool              // its connection has shaken hands
	versions map[string]int           // for a flaw
	suspect  bool                     // a waiter found the key free, and nobody had woken it
	handed   *refHold                 // what a release handed to a waiter of its own, for a flaw
	back     string                   // who came back after a restart, for a flaw

	tokenSkew time.Duration // for a flaw
	closed    chan struct{}
}

var (
	_ lock.Locker = (*refClient)(nil)
	_ lock.Admin  = (*refClient)(nil)
)

func (s *refServer) open(tb testing.TB, n int) *refClient {
	c := &refClient{s: s, wakes: map[string]chan struct{}{}, versions: map[string]int{}, closed: make(chan struct{})}
	if s.clientClock {
		c.skew = time.Duration(n%3-1) * 300 * time.Millisecond
	}
	if s.clientToken || s.headStartByClient {
		c.tokenSkew = time.Duration(n%3-1) * 300 * time.Millisecond
	}
	tb.Cleanup(func() {
		close(c.closed)
		s.late.Wait()
	})
	return c
}

// roundTrip sends a request, lets the server do it, and waits for the reply. When ctx
// ends before that, do may have been done or not.
func (c *refClient) roundTrip(ctx context.Context, do func(now time.Time)) error {
	if c.s.deafToCtx {
		ctx = context.WithoutCancel(ctx)
	}
	if c.s.handshakes && c.greeted.CompareAndSwap(false, true) {
		if err := c.roundTrip(ctx, func(time.Time) {}); err != nil {
			c.greeted.Store(false)
			return err
		}
	}
	if err := c.survive(ctx, false, do); err != nil {
		return err
	}
	if err := c.arrive(ctx, do); err != nil {
		return err
	}
	c.s.mu.Lock()
	do(time.Now().Add(c.skew))
	withheld := c.withheld
	c.s.mu.Unlock()
	time.Sleep(c.s.latency())
	if withheld != nil {
		select {
		case <-withheld:
		case <-ctx.Done():
		}
	}
	if err := c.survive(ctx, true, nil); err != nil {
		return err
	}
	return ctx.Err()
}

// arrive returns when the request is at the server, and the server awake.
func (c *refClient) arrive(ctx context.Context, do func(now time.Time)) error {
	time.Sleep(c.s.latency())
	for ctx.Err() == nil {
		c.s.mu.Lock()
		thaw, dead := c.s.thaw, c.dead
		c.s.mu.Unlock()
		if thaw == nil && !dead {
			return nil
		}
		if dead {
			thaw = c.closed
		}
		select {
		case <-thaw:
			if dead {
				return lock.ErrClosed
			}
		case <-ctx.Done():
			if (c.s.lateRequests || c.s.latePlaces || c.s.overtakes) && !dead {
				c.s.late.Go(func() { c.s.comeLate(thaw, do) })
			}
		}
	}
	return ctx.Err()
}

// retried is a roundTrip that is sent once more when the reply does not come.
func (c *refClient) retried(ctx context.Context, do func(now time.Time)) (sent time.Time, err error) {
	first, cancel := context.WithTimeout(ctx, resend)
	defer cancel()
	sent = time.Now()
	if err = c.roundTrip(first, do); err == nil || ctx.Err() != nil || c.s.tornIsFinal && errors.Is(err, io.ErrUnexpectedEOF) {
		return sent, err
	}
	sent = time.Now()
	return sent, c.roundTrip(ctx, do)
}

// wake wakes a waiter, unless it is awake. The server's mutex is held.
func (c *refClient) wake(owner string) {
	if c.deaf || c.dead || c.s.neverWakes {
		return
	}
	select {
	case c.wakes[owner] <- struct{}{}:
	default:
	}
}

func (c *refClient) listen(owner string) (wake chan struct{}, stop func()) {
	wake = make(chan struct{}, 1)
	if c.s.oneWakeForAll { // a channel that all of a process share
		owner = ""
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.wakes[owner] = wake
	return wake, func() {
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		delete(c.wakes, owner)
	}
}

func (c *refClient) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := c.s.checkRequest(req, c.Capabilities()); err != nil {
		return lock.Grant{}, err
	}
	req.Metadata = maps.Clone(req.Metadata)
	wake, stop := c.listen(req.Owner)
	defer stop()
	var held *lock.HeldError
	woken := false
	for {
		var h refHold
		var rec lock.Record
		asking, answered := c.bounded(ctx, held != nil)
		start, err := c.retried(asking, func(now time.Time) {
			var got *refHold
			if got, rec = c.s.acquire(c, req, now); got != nil {
				h = *got
			}
		})
		answered()
		if held != nil {
			c.judge(woken, h.req.Owner != "")
		}
		switch {
		case err != nil && held != nil:
			held.Err = err
			return lock.Grant{}, held
		case err != nil:
			return lock.Grant{}, err
		case h.req.Owner != "":
			token, err := c.token(ctx, req, h)
			return lock.Grant{Key: req.Key, Owner: req.Owner, Token: token, TTL: req.TTL, Start: start, Shared: req.Shared}, err
		}
		if held == nil {
			held = &lock.HeldError{Record: rec}
			if req.Wait && req.Waiting != nil {
				req.Waiting(rec)
			}
		}
		if !req.Wait {
			return lock.Grant{}, held
		}
		if woken, err = c.sleep(ctx, req, wake); err != nil {
			held.Err = err
			return lock.Grant{}, held
		}
		if g, ok := c.handedTo(req.Owner); ok {
			return g, nil
		}
	}
}

// token is h's, unless the store mints in a second step.
func (c *refClient) token(ctx context.Context, req lock.Request, h refHold) (token lock.Token, err error) {
	if !c.s.mintsLater {
		return h.token, nil
	}
	err = c.roundTrip(ctx, func(now time.Time) {
		k := c.s.key(req.Key, now)
		token = c.s.mint(k, req, now)
		if h := k.holder(req.Owner); h != nil {
			h.token = token
		}
	})
	return token, err
}

// sleep returns nil when it is time to look again, which is a waiter's heartbeat too.
// woken says that it was told so.
func (c *refClient) sleep(ctx context.Context, req lock.Request, wake chan struct{}) (woken bool, err error) {
	for {
		beat := min(req.TTL, 5*time.Second)
		if c.s.slowHeartbeat {
			beat = req.TTL
		}
		recheck := time.NewTimer(c.pause(beat))
		defer recheck.Stop()
		done := ctx.Done()
		if c.s.slowToCancel {
			done = nil
		}
		select {
		case <-wake:
			return true, nil
		case <-recheck.C:
			if !c.s.noRecheck {
				return false, nil
			}
			_ = c.roundTrip(ctx, func(now time.Time) { c.s.refresh(c.s.key(req.Key, now), c, req, now) })
		case <-done:
			return false, ctx.Err()
		case <-c.closed:
			return false, lock.ErrClosed
		}
	}
}

func (c *refClient) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	var lost error
	sent := time.Now()
	if err := c.roundTrip(ctx, func(now time.Time) { lost = c.s.renew(c, g, now) }); err != nil {
		return lock.Grant{}, err
	}
	if lost != nil {
		return lock.Grant{}, lost
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.versions[g.Owner]++
	g.Start = sent
	return g, nil
}

func (c *refClient) Release(ctx context.Context, g lock.Grant) error {
	var lost error
	if err := c.roundTrip(ctx, func(now time.Time) { lost = c.s.release(c, g, now) }); err != nil {
		c.passOn(false)
		return err
	}
	c.passOn(true)
	return lost
}

func (c *refClient) Inspect(ctx context.Context, key string) (rec lock.Record, err error) {
	if err := lock.CheckKey(key); err != nil {
		return lock.Record{}, err
	}
	err = c.roundTrip(ctx, func(now time.Time) { rec = c.s.record(key, c.s.key(key, now), now) })
	return rec, err
}

func (c *refClient) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	return func(yield func(lock.Record, error) bool) {
		var recs []lock.Record
		err := c.roundTrip(ctx, func(now time.Time) { recs = slices.Collect(c.s.list(prefix, now)) })
		if err != nil {
			yield(lock.Record{}, err)
			return
		}
		for _, rec := range recs {
			if !yield(rec, nil) {
				return
			}
		}
	}
}

func (c *refClient) ForceRelease(ctx context.Context, key, owner string) error {
	if err := lock.CheckKey(key); err != nil {
		return err
	}
	var lost error
	force := func(now time.Time) { lost = c.s.force(key, owner, now) }
	err := c.roundTrip(ctx, force)
	if err != nil && c.s.forcesTwice {
		err = c.roundTrip(ctx, force)
	}
	if err != nil {
		return err
	}
	return lost
}

func (c *refClient) Capabilities() lock.Capabilities {
	const all = lock.SurvivesRelease | lock.SurvivesExpiry | lock.SurvivesRecordLoss | lock.SurvivesRestart | lock.SurvivesFailover
	return lock.Capabilities{
		Store: "reference", Shared: true, FIFO: true, Priority: true, Push: true, EarlyLoss: true, MinTTL: time.Millisecond,
		TokenSurvives: all, HoldSurvives: all &^ lock.SurvivesRecordLoss,
	}
}
