package lock

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// hold is the minimum hold of the tests.
const hold = 8 * time.Second

// freeAfter is how long from start on key is held.
func freeAfter(f *fake, key string, start time.Time) time.Duration {
	for f.held(key) {
		time.Sleep(time.Millisecond)
	}
	return time.Since(start)
}

func nop(context.Context, *Lease) error { return nil }

func TestMinHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		seen := new(recorder)
		c := client(t, f, WithMinHold(hold), WithObserver(seen))
		for name, do := range map[string]func() error{
			"do":    func() error { return c.Do(t.Context(), "k", nop) },
			"trydo": func() error { return c.TryDo(t.Context(), "k", nop) },
			"doall": func() error {
				return c.DoAll(t.Context(), []string{"k", "l"}, func(context.Context, []*Lease) error { return nil })
			},
			"lock":           func() error { return mustLock(t, c, "k").Release(t.Context()) },
			"with no ctx":    func() error { return mustLock(t, c, "k").Release(canceled()) },
			"with its own":   func() error { l := mustLock(t, c, "k"); return l.Release(l.Context()) },
			"released twice": func() error { l := mustLock(t, c, "k"); _ = l.Release(t.Context()); return l.Release(t.Context()) },
		} {
			start, goroutines := time.Now(), runtime.NumGoroutine()
			require.NoError(t, do(), name)
			require.Zero(t, time.Since(start), name)
			require.LessOrEqual(t, runtime.NumGoroutine(), goroutines, "a timer, and nothing else")
			for range c.Held() {
				t.Error("it has ended for its holder")
			}
			require.Empty(t, f.sent("renew"))
			require.Equal(t, hold, freeAfter(f, "k", start).Truncate(time.Second), name)
			synctest.Wait()
			require.Equal(t, EventReleased, seen.last().Kind)
			require.NoError(t, seen.last().Err)
			require.Equal(t, hold, seen.last().Held)
		}
	})
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// A minimum hold that is over makes no difference.
func TestMinHoldOfLongWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		require.NoError(t, client(t, f, WithMinHold(hold)).Do(t.Context(), "k", func(context.Context, *Lease) error {
			time.Sleep(hold)
			return nil
		}))
		require.False(t, f.held("k"))
	})
}

// While a renewal is in flight, or due, the hold stands too.
func TestMinHoldBesideARenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f, WithMinHold(hold))
		f.onRenew(func(ctx context.Context, g Grant, renew renewFunc) (Grant, error) {
			time.Sleep(time.Second)
			return renew(ctx, g)
		})
		start := time.Now()
		l := mustLock(t, c, "k")
		for len(f.sent("renew")) == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		released := time.Now()
		require.NoError(t, l.Release(t.Context()))
		require.Zero(t, time.Since(released))
		require.Equal(t, hold, freeAfter(f, "k", start).Truncate(time.Second))
		require.Len(t, f.sent("renew"), 1)
	})
}

// Leases that are let go while they stand in line for a renewal are kept, too.
func TestMinHoldOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f, WithMinHold(hold))
		w := new(wall).install(c)
		start := time.Now()
		var all []*Lease
		for i := range 3 * maxYoung {
			all = append(all, mustLock(t, c, fmt.Sprint(i)))
		}
		f.onRenew(freezeRenew)
		w.jump(time.Second) // has all of them renewed at once, and few can begin
		require.NoError(t, all[0].Err())
		time.Sleep(time.Nanosecond)
		for _, l := range all {
			require.NoError(t, l.Release(t.Context()))
		}
		time.Sleep(time.Second)
		require.Less(t, len(f.sent("renew")), len(all))
		require.Empty(t, f.sent("release"))
		for len(f.sent("release")) == 0 {
			time.Sleep(time.Millisecond)
		}
		require.GreaterOrEqual(t, time.Since(start), hold-time.Second)
		time.Sleep(time.Second)
		require.Len(t, f.sent("release"), len(all))
	})
}

// A machine that sleeps beyond the hold and a TTL releases when it wakes up: if only its clock
// was set, the key is still taken.
func TestMinHoldAcrossASleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		seen := new(recorder)
		c := client(t, f, WithMinHold(hold), WithObserver(seen))
		w := new(wall).install(c)
		require.NoError(t, c.Do(t.Context(), "k", nop))
		w.jump(time.Minute)
		time.Sleep(2 * time.Second)
		require.Equal(t, []string{"granted", "released"}, seen.kinds())
		require.NoError(t, seen.last().Err)
		require.False(t, f.held("k"))
	})
}

// The loss of a key that is kept is told to the Observer alone.
func TestMinHoldLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		seen := new(recorder)
		c := client(t, f, WithMinHold(hold), WithObserver(seen))
		l := mustLock(t, c, "k")
		require.NoError(t, l.Release(t.Context()))
		f.force("k", true)
		require.NoError(t, l.Release(t.Context()))
		require.ErrorIs(t, l.Err(), ErrReleased)
		time.Sleep(hold + time.Millisecond)
		require.Equal(t, []string{"granted", "released lost"}, seen.kinds())
		require.Len(t, f.sent("release"), 1)
	})
}

// A store that fails when the hold is over is asked again, for a TTL.
func TestMinHoldReleaseIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onRelease(failRelease)
		start := time.Now()
		require.NoError(t, client(t, f, WithMinHold(hold)).Do(t.Context(), "k", nop))
		time.Sleep(hold + time.Second/2)
		require.NotEmpty(t, f.sent("release"))
		f.onRelease(plainRelease)
		require.Less(t, freeAfter(f, "k", start), ttlTen)
	})
}

func TestCloseLeavesWhatIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		seen := new(recorder)
		c := New(f, WithTTL(ttlTen), WithMinHold(hold), WithObserver(seen))
		start := time.Now()
		require.NoError(t, c.Do(t.Context(), "done", nop))
		held := mustLock(t, c, "held")
		old := mustLock(t, c, "old", WithMinHold(time.Second))
		var wg sync.WaitGroup
		wg.Go(func() {
			require.NoError(t, c.Do(t.Context(), "running", func(ctx context.Context, _ *Lease) error {
				<-ctx.Done()
				time.Sleep(time.Second)
				return nil
			}))
		})
		time.Sleep(2 * time.Second)
		require.NoError(t, c.Close(t.Context()))
		wg.Wait()
		require.Equal(t, 3*time.Second, time.Since(start), "it waits for the function, not for the hold")
		require.Equal(t, []string{"old"}, keysOf(f.sent("release")))
		require.NoError(t, old.Release(t.Context()))
		require.ErrorIs(t, held.Err(), ErrClosed)
		require.NoError(t, held.Release(t.Context()))
		for _, key := range []string{"done", "held", "running"} {
			require.GreaterOrEqual(t, freeAfter(f, key, start), ttlTen-time.Second, key)
		}
		require.LessOrEqual(t, time.Since(start), ttlTen+3*time.Second, "a TTL after the last renewal")
		synctest.Wait()
		ends := map[string]int{}
		for _, e := range seen.events {
			if e.Kind != EventReleased {
				continue
			}
			ends[e.Key]++
			if e.Key == "old" {
				require.NoError(t, e.Err)
			} else {
				require.ErrorIs(t, e.Err, ErrClosed)
			}
		}
		require.Equal(t, map[string]int{"done": 1, "held": 1, "running": 1, "old": 1}, ends)
		require.Len(t, f.sent("release"), 1)
	})
}

// Close that has given up leaves it too, and the Do that still runs.
func TestCloseThatGivesUpLeavesWhatIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := New(f, WithTTL(ttlTen), WithMinHold(hold))
		var wg sync.WaitGroup
		wg.Go(func() {
			require.NoError(t, c.Do(t.Context(), "k", func(ctx context.Context, _ *Lease) error {
				<-ctx.Done()
				time.Sleep(time.Second)
				return nil
			}))
		})
		time.Sleep(time.Second)
		require.ErrorIs(t, c.Close(canceled()), context.Canceled)
		wg.Wait()
		require.Empty(t, f.sent("release"))
		require.True(t, f.held("k"))
	})
}

// What Close has left within its minimum hold is left, also if a renewal is answered after that.
func TestKeptEndsOnceBesideARenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, seen := newFake(), new(recorder)
		f.onRenew(func(ctx context.Context, g Grant, renew renewFunc) (Grant, error) {
			time.Sleep(time.Second)
			return renew(context.WithoutCancel(ctx), g)
		})
		c := New(f, WithTTL(ttlTen), WithMinHold(hold), WithObserver(seen))
		mustLock(t, c, "k")
		for len(f.sent("renew")) == 0 {
			time.Sleep(time.Millisecond)
		}
		require.NoError(t, c.Close(t.Context()))
		time.Sleep(2 * time.Second)
		require.Equal(t, []string{"granted", "released"}, seen.kinds())
		require.Empty(t, f.sent("release"))
	})
}

// What is kept of a Lock ends once, also if a Do keeps Close from coming to an end.
func TestCloseThatGivesUpTellsOnceOfWhatIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, seen := newFake(), new(recorder)
		c := New(f, WithTTL(ttlTen), WithMinHold(hold), WithObserver(seen))
		l := mustLock(t, c, "l")
		end := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			assertNoError(t, c.Do(t.Context(), "k", func(context.Context, *Lease) error { <-end; return nil }, WithMinHold(0)))
		})
		time.Sleep(time.Second)
		require.ErrorIs(t, c.Close(canceled()), context.Canceled)
		close(end)
		wg.Wait()
		require.NoError(t, l.Release(t.Context()))
		require.True(t, f.held("l"))
		require.Equal(t, []string{"granted", "granted", "released", "released"}, seen.kinds())
	})
}

// That a renewal has failed keeps no end from being told.
func TestCloseTellsOfWhatIsKeptAfterAFailedRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, seen := newFake(), new(recorder)
		c := New(f, WithTTL(ttlTen), WithMinHold(hold), WithObserver(seen))
		f.onRenew(failRenew)
		mustLock(t, c, "l")
		time.Sleep(ttlTen / 2)
		require.NoError(t, c.Close(t.Context()))
		require.Equal(t, "released", seen.last().Kind.String())
	})
}

// Who gets no lease keeps nothing.
func TestNothingIsKeptOfACallThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c, other := client(t, f, WithMinHold(hold)), client(t, f)
		mustLock(t, other, "b")
		require.ErrorIs(t, c.DoAll(t.Context(), []string{"a", "b"}, neverAll, WithWait(0)), ErrHeld)
		ctx, cancel := context.WithCancel(t.Context())
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			cancel()
			return acquire(ctx, r)
		})
		require.ErrorIs(t, c.Do(ctx, "c", never2), context.Canceled)
		synctest.Wait()
		require.False(t, f.held("a"))
		require.False(t, f.held("c"))

		late := true
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			g, err := acquire(ctx, r)
			if late {
				late = false
				g.Start = g.Start.Add(-ttlTen)
			}
			return g, err
		})
		start := time.Now()
		require.NoError(t, c.Do(t.Context(), "d", nop), "a call that asks again must not wait for what it has")
		require.Less(t, time.Since(start), time.Second)
	})
}

func TestMinHoldAndTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		for says, opts := range map[string][]Option{
			"minimum hold -1ns: must not be negative":                                               {WithMinHold(-1)},
			"minimum hold 10s with TTL 10s and drift 102ms: must be at most the TTL less the drift": {WithMinHold(ttlTen)},
			"minimum hold 9s with TTL 10s and drift 2s":                                             {WithMinHold(9 * time.Second), WithDrift(2 * time.Second)},
		} {
			err := c.Do(t.Context(), "k", never2, opts...)
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, says)
		}
		require.Empty(t, f.log)
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			r.TTL = 4 * time.Second
			return acquire(ctx, r)
		})
		err := c.Do(t.Context(), "k", never2, WithMinHold(5*time.Second))
		require.ErrorIs(t, err, ErrInvalid)
		require.ErrorContains(t, err, "minimum hold 5s with TTL 4s as granted by store fake, asked for 10s and drift 42ms")
		synctest.Wait()
		require.False(t, f.held("k"), "given back")
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) { return acquire(ctx, r) })
		start := time.Now()
		require.NoError(t, c.Do(t.Context(), "k", nop, WithMinHold(deadline)))
		require.InDelta(t, deadline, freeAfter(f, "k", start), float64(time.Millisecond))
	})
}

func TestNestedMinHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := client(t, newFake(), WithReentrant(true))
		require.NoError(t, c.Do(t.Context(), "k", func(ctx context.Context, _ *Lease) error {
			require.NoError(t, c.Do(ctx, "k", nop, WithMinHold(time.Second)))
			err := c.Do(ctx, "k", never2, WithMinHold(2*time.Second))
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, "WithMinHold 2s: the outer lease has 1s")
			return nil
		}, WithMinHold(time.Second)))
	})
}
