package lock

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// wall is a wall clock that a test can make jump against the monotonic one.
type wall struct {
	ahead atomic.Int64
	// glitch is added to one reading only: a thread preempted between its two reads.
	glitch atomic.Int64
}

func (w *wall) install(c *Client) *wall {
	c.engine.clock.read = func() (time.Time, int64) {
		now := time.Now()
		return now, now.UnixNano() + w.ahead.Load() + w.glitch.Swap(0)
	}
	return w
}

func (w *wall) jump(d time.Duration) { w.ahead.Add(int64(d)) }

func TestJumpAheadEndsLeasesThatAreOver(t *testing.T) {
	for name, look := range map[string]func(l *Lease){
		"seen by Err":       func(l *Lease) { _ = l.Err() },
		"seen by the timer": func(*Lease) { time.Sleep(lookEvery) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := client(t, newFake())
				w := new(wall).install(c)
				l, other := mustLock(t, c, "k"), mustLock(t, c, "l")
				require.NoError(t, l.Err())
				w.jump(ttlTen)
				look(l)
				synctest.Wait()
				lostAs(t, ReasonExpired, context.Cause(other.Context()))
				lostAs(t, ReasonExpired, l.Err())
			})
		})
	}
}

func TestJumpCountsAsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		w := new(wall).install(c)
		start := time.Now()
		l := mustLock(t, c, "k", WithRenewal(false))
		w.jump(3 * time.Second)
		require.NoError(t, l.Err())
		require.Equal(t, start.Add(deadline-3*time.Second), l.Deadline())
		w.jump(time.Second)
		time.Sleep(lookEvery)
		synctest.Wait()
		require.Equal(t, start.Add(deadline-4*time.Second), l.Deadline())
		<-l.Context().Done()
		require.Equal(t, deadline-4*time.Second, time.Since(start))
		lostAs(t, ReasonExpired, l.Err())
	})
}

func TestJumpHasLeasesVerified(t *testing.T) {
	for name, d := range map[string]time.Duration{
		"ahead": 2 * time.Second, "back": -2 * time.Second, "back by an hour": -time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				c := client(t, f)
				w := new(wall).install(c)
				sound := mustLock(t, c, "sound")
				gone := mustLock(t, c, "gone")
				unrenewed := mustLock(t, c, "unrenewed", WithRenewal(false))
				f.force("gone", false)
				end := unrenewed.Deadline()
				w.jump(d)
				require.NoError(t, sound.Err())
				synctest.Wait()
				require.Len(t, f.sent("renew"), 2, "verified at once")
				require.Equal(t, time.Now().Add(deadline), sound.Deadline())
				lostAs(t, ReasonExpired, gone.Err())
				require.Equal(t, end.Add(-max(d, 0)), unrenewed.Deadline())
				time.Sleep(time.Minute)
				require.NoError(t, sound.Err())
			})
		})
	}
}

func TestJumpWithoutVerificationEndsLease(t *testing.T) {
	for name, d := range map[string]time.Duration{"ahead": time.Second, "back": -time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				c := client(t, f)
				w := new(wall).install(c)
				l := mustLock(t, c, "k")
				f.onRenew(freezeRenew)
				start := time.Now()
				w.jump(d)
				require.NoError(t, l.Err())
				<-l.Context().Done()
				require.Equal(t, ttlTen/verifyPart, time.Since(start))
				lostAs(t, ReasonUnreachable, l.Err())
				require.Greater(t, len(f.sent("renew")), 1, "tried more than once")
			})
		})
	}
}

// A reply to a renewal that was sent before the jump says nothing about the time after.
func TestRenewalInFlightVerifiesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		w := new(wall).install(c)
		var n atomic.Int32
		f.onRenew(func(ctx context.Context, g Grant, renew renewFunc) (Grant, error) {
			if n.Add(1) == 1 {
				g, err := renew(ctx, g)
				time.Sleep(600 * time.Millisecond) // the reply is on its way; ctx is ignored
				return g, err
			}
			return freezeRenew(ctx, g, renew)
		})
		l := mustLock(t, c, "k")
		for n.Load() == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		w.jump(time.Second)
		jumped := time.Now()
		require.NoError(t, l.Err())
		<-l.Context().Done()
		require.Equal(t, ttlTen/verifyPart, time.Since(jumped))
		require.GreaterOrEqual(t, n.Load(), int32(2), "asked again after the reply")
	})
}

func TestJumpCancelsTheRenewalInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		w := new(wall).install(c)
		f.onRenew(freezeRenew) // a connection that died while the machine slept
		l := mustLock(t, c, "k")
		for len(f.sent("renew")) == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		f.onRenew(plainRenew)
		w.jump(time.Second)
		require.NoError(t, l.Err())
		time.Sleep(time.Nanosecond)
		require.Len(t, f.sent("renew"), 2)
		require.NoError(t, l.Err())
		require.Less(t, ttlTen-time.Until(l.Deadline()), time.Second)
	})
}

// A lease that a jump has ended while its renewal was in flight, which then succeeds, is
// given back.
func TestRenewalThatSucceedsAfterTheJump(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		w := new(wall).install(c)
		f.onRenew(func(ctx context.Context, g Grant, renew renewFunc) (Grant, error) {
			g, err := renew(ctx, g)
			time.Sleep(500 * time.Millisecond)
			return g, err
		})
		l := mustLock(t, c, "k")
		for len(f.sent("renew")) == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		w.jump(ttlTen)
		lostAs(t, ReasonExpired, l.Err())
		time.Sleep(time.Second)
		require.Len(t, f.sent("release"), 1)
		require.False(t, f.held("k"))
	})
}

func TestJumpDuringAcquire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		w := new(wall).install(c)
		var sleep time.Duration
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			g, err := acquire(ctx, r)
			w.jump(sleep) // the machine sleeps between grant and reply
			return g, err
		})
		sleep = 4 * time.Second
		start := time.Now()
		l := mustLock(t, c, "k", WithRenewal(false))
		require.Equal(t, start.Add(deadline-sleep), l.Deadline())

		sleep = time.Minute
		_, err := c.TryLock(t.Context(), "l")
		lostAs(t, ReasonExpired, err)
		failedAs(t, "trylock", "l", err)
		time.Sleep(time.Nanosecond)
		require.False(t, f.held("l"), "given back")
	})
}

func TestJumpDuringRenewalCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		w := new(wall).install(c)
		l := mustLock(t, c, "k", WithRenewal(false))
		f.onRenew(func(ctx context.Context, g Grant, renew renewFunc) (Grant, error) {
			g, err := renew(ctx, g)
			w.jump(5 * time.Second)
			return g, err
		})
		time.Sleep(time.Second)
		require.NoError(t, l.Renew(t.Context()))
		require.Equal(t, time.Now().Add(deadline-5*time.Second), l.Deadline())
	})
}

// A jump in a long wait, seen before the claim was verified, is not the lease's.
func TestJumpWhileWaitingDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		w := new(wall).install(c)
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			time.Sleep(time.Minute)
			w.jump(time.Hour)
			time.Sleep(2 * lookEvery)
			return acquire(ctx, r)
		})
		l, err := c.Lock(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, time.Now().Add(deadline), l.Deadline())
	})
}

func TestIdleClientIgnoresJumps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := client(t, newFake())
		w := new(wall).install(c)
		require.NoError(t, mustLock(t, c, "k").Release(t.Context()))
		time.Sleep(time.Minute)
		w.jump(time.Hour)
		l := mustLock(t, c, "k")
		require.NoError(t, l.Err())
		require.Equal(t, time.Now().Add(deadline), l.Deadline())
	})
}

func TestClockIsComparedEverySecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := client(t, newFake())
		w := new(wall).install(c)
		l := mustLock(t, c, "k", WithTTL(time.Hour), WithRenewal(false))
		for range 100 {
			time.Sleep(900 * time.Millisecond)
			w.jump(2 * time.Hour)
			w.jump(-2 * time.Hour)
		}
		w.jump(time.Hour)
		jumped := time.Now()
		<-l.Context().Done()
		require.LessOrEqual(t, time.Since(jumped), lookEvery)
	})
}

func TestGlitchIsNoJump(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		w := new(wall).install(c)
		l := mustLock(t, c, "k")
		for _, d := range []time.Duration{time.Second, -time.Second} {
			w.glitch.Store(int64(d))
			require.NoError(t, l.Err())
			require.NoError(t, l.Err())
			synctest.Wait()
			require.Empty(t, f.sent("renew"))
			require.Equal(t, time.Now().Add(deadline), l.Deadline())
		}
	})
}

func TestSlewIsNoJump(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := client(t, newFake())
		w := new(wall).install(c)
		l := mustLock(t, c, "k", WithTTL(time.Hour))
		start := time.Now()
		for range 60 {
			w.jump(maxStep / 2)
			time.Sleep(lookEvery)
		}
		require.Equal(t, start.Add(time.Hour-36002*time.Millisecond), l.Deadline())
	})
}

func TestJumpWithManyLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		w := new(wall).install(c)
		var all []*Lease
		for i := range 1000 {
			all = append(all, mustLock(t, c, fmt.Sprint(i), WithTTL(time.Duration(5+i%10)*time.Second)))
		}
		w.jump(ttlTen)
		_ = all[0].Err()
		time.Sleep(time.Nanosecond)
		for i, l := range all {
			if i%10 <= 5 {
				lostAs(t, ReasonExpired, l.Err())
			} else {
				require.NoError(t, l.Err(), i)
			}
		}
		require.Len(t, f.sent("renew"), 400)
	})
}

// TestUnsentVerificationGivesBack: the engine is too busy to verify a lease after a jump. The store has
// it still, for all that is known, and gets it back.
func TestUnsentVerificationGivesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		w := new(wall).install(c)
		l := mustLock(t, c, "k")
		busy := func(m limiter) {
			c.engine.mu.Lock()
			defer c.engine.mu.Unlock()
			c.engine.limiter = m
		}
		busy(limiter{young: maxYoung, slots: []*slot{{until: never, counts: true}}})
		w.jump(-time.Second)
		require.NoError(t, l.Err())
		<-l.Context().Done()
		lostAs(t, ReasonUnreachable, l.Err())
		busy(limiter{})
		time.Sleep(time.Second)
		require.False(t, f.held("k"))
	})
}
