package lock

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestFrozenStoreEndsLeaseBeforeTTL(t *testing.T) {
	hang := func(context.Context, Grant, renewFunc) (Grant, error) {
		time.Sleep(time.Minute) // it ignores its ctx as well
		return Grant{}, errIO
	}
	for name, renew := range map[string]func(context.Context, Grant, renewFunc) (Grant, error){
		"until the attempt's ctx ends": freezeRenew, "for longer than the TTL": hang, "by refusing": failRenew,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				f.onRenew(renew)
				f.onRelease(failRelease)
				start := time.Now()
				l := mustLock(t, client(t, f), "k")
				require.Equal(t, start.Add(deadline), l.Deadline())
				<-l.Context().Done()
				require.Equal(t, deadline, time.Since(start))
				lost := lossAs(t, ReasonUnreachable, l.Err())
				require.Equal(t, l.Token(), lost.Token)
				require.Error(t, lost.Err)
				require.Same(t, lost, context.Cause(l.Context()))
				require.True(t, f.held("k"), "the lease must end before the store's")
			})
		})
	}
}

func TestErrKnowsWithoutTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onRenew(freezeRenew)
		c := client(t, f)
		l := mustLock(t, c, "k")
		ctx := l.Context()
		c.engine.mu.Lock()
		c.engine.timer.Stop() // a scheduler that gives the timer no chance
		c.engine.mu.Unlock()
		time.Sleep(deadline - 1)
		require.NoError(t, l.Err())
		time.Sleep(time.Nanosecond)
		lostAs(t, ReasonExpired, l.Err())
		require.Error(t, ctx.Err(), "what Err knows the context tells")
	})
}

func TestRenewalBeginsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		for i := range 300 {
			mustLock(t, c, fmt.Sprint(i))
		}
		start := time.Now()
		time.Sleep(ttlTen / 2)
		var after []time.Duration
		for _, s := range f.sent("renew") {
			after = append(after, s.at.Sub(start))
		}
		require.Len(t, after, 300)
		require.GreaterOrEqual(t, slices.Min(after), ttlTen/4)
		require.LessOrEqual(t, slices.Max(after), ttlTen/3+ttlTen/2048+1)
		require.Greater(t, slices.Max(after)-slices.Min(after), ttlTen/20, "jittered")
	})
}

func TestRenewalIsRetriedAfterErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		var n atomic.Int32
		f.onRenew(func(ctx context.Context, g Grant, renew renewFunc) (Grant, error) {
			switch n.Add(1) % 4 {
			case 1:
				return Grant{}, errIO
			case 2:
				return freezeRenew(ctx, g, renew)
			case 3:
				_, _ = renew(ctx, g)
				return Grant{}, context.DeadlineExceeded // applied, the reply lost
			}
			return renew(ctx, g)
		})
		l := mustLock(t, client(t, f), "k")
		time.Sleep(time.Hour)
		require.NoError(t, l.Err())
		require.True(t, f.held("k"))
		require.Greater(t, n.Load(), int32(1000))
	})
}

func TestRenewalFollowsNoCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		ctx, cancel := context.WithCancel(t.Context())
		l, err := client(t, f).Lock(ctx, "k")
		require.NoError(t, err)
		cancel()
		time.Sleep(time.Minute)
		require.NoError(t, l.Err())
		require.NoError(t, l.Context().Err())
	})
}

func TestRenewalAttemptIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		var longest, last atomic.Int64
		f.onRenew(func(ctx context.Context, _ Grant, _ renewFunc) (Grant, error) {
			began := time.Now()
			<-ctx.Done()
			longest.Store(max(longest.Load(), int64(time.Since(began))))
			last.Store(time.Now().UnixNano())
			return Grant{}, ctx.Err()
		})
		l := mustLock(t, client(t, f), "k")
		<-l.Context().Done()
		synctest.Wait()
		require.Equal(t, ttlTen/6, time.Duration(longest.Load()))
		require.LessOrEqual(t, last.Load(), l.Deadline().UnixNano())
	})
}

func TestStoreSaysLost(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		reason LostReason
	}{
		"bare": {ErrLost, 0}, "with reason": {&LostError{Reason: ReasonForced}, ReasonForced},
		"wrapped": {fmt.Errorf("store: %w", &LostError{Reason: ReasonTaken, Err: errIO}), ReasonTaken},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				var at time.Time
				f.onRenew(func(context.Context, Grant, renewFunc) (Grant, error) {
					at = time.Now()
					return Grant{}, c.err
				})
				l := mustLock(t, client(t, f), "k")
				<-l.Context().Done()
				require.Equal(t, at, time.Now(), "at once")
				lost := lossAs(t, c.reason, l.Err())
				require.Equal(t, errors.Is(c.err, errIO), errors.Is(lost, errIO))
				time.Sleep(time.Minute)
				require.Len(t, f.sent("renew"), 1)
				require.Empty(t, f.sent("release"))
			})
		})
	}
}

func TestHungRenewalsDelayNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onRenew(func(ctx context.Context, g Grant, renew renewFunc) (Grant, error) {
			if g.Key[0] == 'h' {
				time.Sleep(time.Hour)
			}
			return renew(ctx, g)
		})
		c := client(t, f)
		var hung, sound []*Lease
		for i := range maxYoung + 50 {
			hung = append(hung, mustLock(t, c, fmt.Sprint("h", i)))
		}
		for i := range 100 {
			sound = append(sound, mustLock(t, c, fmt.Sprint("s", i)))
		}
		time.Sleep(time.Minute)
		for _, l := range hung {
			lostAs(t, ReasonUnreachable, l.Err())
		}
		for _, l := range sound {
			require.NoError(t, l.Err())
			require.Less(t, ttlTen-time.Until(l.Deadline()), ttlTen/2)
		}
		time.Sleep(time.Hour)
	})
}

func TestFreshRenewalsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		var mu sync.Mutex
		running, most := 0, 0
		count := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			running += n
			most = max(most, running)
		}
		f.onRenew(func(ctx context.Context, g Grant, renew renewFunc) (Grant, error) {
			count(1)
			defer count(-1)
			time.Sleep(youngFor - 1)
			return renew(ctx, g)
		})
		c := client(t, f)
		for i := range 1000 {
			mustLock(t, c, fmt.Sprint(i), WithTTL(600*time.Millisecond))
		}
		time.Sleep(5 * time.Second)
		mu.Lock()
		require.Equal(t, maxYoung, most)
		mu.Unlock()
		for i := range 1000 {
			require.True(t, f.held(fmt.Sprint(i)))
		}
	})
}

func TestRenewedDeadlineCountsFromBeforeTheSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onRenew(func(ctx context.Context, g Grant, renew renewFunc) (Grant, error) {
			g, err := renew(ctx, g)
			time.Sleep(time.Second) // the reply takes its time
			return g, err
		})
		l := mustLock(t, client(t, f), "k")
		start := time.Now()
		require.NoError(t, l.Renew(t.Context()))
		require.Equal(t, start.Add(deadline), l.Deadline())
	})
}

func TestLateRenewalRevivesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onRenew(func(_ context.Context, g Grant, _ renewFunc) (Grant, error) {
			time.Sleep(deadline)
			g.Start = time.Now()
			return g, nil // the store prolonged it
		})
		l := mustLock(t, client(t, f), "k")
		<-l.Context().Done()
		lost := lossAs(t, ReasonUnreachable, l.Err())
		require.Empty(t, f.sent("release"), "not while the renewal is in flight")
		time.Sleep(time.Minute)
		require.Same(t, lost, l.Err())
		released := f.sent("release")
		require.Len(t, released, 1)
		require.Equal(t, l.Token(), released[0].grant.Token)
		require.Equal(t, l.grant.Owner, released[0].grant.Owner)
		lostAs(t, ReasonUnreachable, l.Release(t.Context()))
	})
}

func TestUnreachableGrantIsReleasedWhenTheStoreIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onRenew(func(ctx context.Context, g Grant, renew renewFunc) (Grant, error) {
			_, _ = renew(ctx, g)
			return Grant{}, errIO // applied each time, the reply lost
		})
		f.onRelease(failRelease)
		l := mustLock(t, client(t, f), "k")
		<-l.Context().Done()
		time.Sleep(time.Second)
		require.True(t, f.held("k"))
		f.onRelease(plainRelease)
		time.Sleep(time.Second)
		require.False(t, f.held("k"))
	})
}

// When the store is back, all leases renew within the longest pause.
func TestAllRenewWhenTheStoreIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onRenew(failRenew)
		c := client(t, f, WithBackoff(900*time.Millisecond, time.Second))
		var all []*Lease
		for i := range 100 {
			all = append(all, mustLock(t, c, fmt.Sprint(i)))
		}
		time.Sleep(ttlTen / 2)
		f.onRenew(plainRenew)
		back := time.Now()
		time.Sleep(time.Second)
		for _, l := range all {
			require.NoError(t, l.Err())
			require.GreaterOrEqual(t, time.Until(l.Deadline()), deadline-time.Since(back))
		}
	})
}

func TestWithoutRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		start := time.Now()
		l := mustLock(t, c, "k", WithRenewal(false))
		<-l.Context().Done()
		require.Equal(t, deadline, time.Since(start))
		lostAs(t, ReasonExpired, l.Err())
		require.Empty(t, f.sent("renew"))
		require.Empty(t, f.sent("release"))
	})
}

func TestGrantedTTLCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			g, err := acquire(ctx, r)
			g.TTL = 4 * time.Second
			return g, err
		})
		f.onRenew(freezeRenew)
		start := time.Now()
		l := mustLock(t, client(t, f), "k", WithDrift(time.Second))
		<-l.Context().Done()
		require.Equal(t, 3*time.Second, time.Since(start))
	})
}

func TestLargeDriftRenewsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		l := mustLock(t, client(t, f), "k", WithDrift(9*time.Second))
		time.Sleep(time.Minute)
		require.NoError(t, l.Err())
	})
}

func TestRenewByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		l := mustLock(t, c, "k", WithRenewal(false))
		for range 10 {
			time.Sleep(9 * time.Second)
			require.NoError(t, l.Renew(t.Context()))
			require.Equal(t, time.Now().Add(deadline), l.Deadline())
		}
		require.ErrorIs(t, l.Renew(nil), ErrInvalid) //nolint:staticcheck // that is the test

		ended, cancel := context.WithCancel(t.Context())
		cancel()
		err := l.Renew(ended)
		require.ErrorIs(t, err, context.Canceled)
		failedAs(t, "renew", "k", err)
		require.NoError(t, l.Err(), "the caller's ctx says nothing of the lease")

		f.onRenew(freezeRenew)
		lostAs(t, ReasonUnreachable, l.Renew(t.Context()))
		lostAs(t, ReasonUnreachable, l.Renew(t.Context()))

		f.onRenew(plainRenew)
		l = mustLock(t, c, "l")
		f.force("l", false)
		err = l.Renew(t.Context())
		failedAs(t, "renew", "l", err)
		lostAs(t, ReasonExpired, err)

		l = mustLock(t, c, "m")
		require.NoError(t, l.Release(t.Context()))
		require.ErrorIs(t, l.Renew(t.Context()), ErrReleased)
	})
}

func TestRenewByHandWaitsForTheEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		var running atomic.Int32
		f.onRenew(func(ctx context.Context, g Grant, renew renewFunc) (Grant, error) {
			require.Equal(t, int32(1), running.Add(1))
			defer running.Add(-1)
			time.Sleep(time.Second)
			return renew(ctx, g)
		})
		l := mustLock(t, client(t, f), "k")
		for len(f.sent("renew")) == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, l.Renew(short), context.DeadlineExceeded)
		require.NoError(t, l.Renew(t.Context()))
		require.Len(t, f.sent("renew"), 2)
		require.NoError(t, l.Err())
	})
}

func TestFailedRenewByHandIsRetriedByTheEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onRenew(failRenew)
		l := mustLock(t, client(t, f), "k")
		require.ErrorIs(t, l.Renew(t.Context()), errIO)
		f.onRenew(plainRenew)
		time.Sleep(time.Second)
		require.Len(t, f.sent("renew"), 2)
		require.NoError(t, l.Err())
	})
}

func TestHungRenewByHandLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onRenew(freezeRenew)
		l := mustLock(t, client(t, f), "k")
		f.onRenew(func(ctx context.Context, g Grant, renew renewFunc) (Grant, error) {
			f.onRenew(plainRenew)
			return freezeRenew(ctx, g, renew)
		})
		require.ErrorIs(t, l.Renew(t.Context()), ErrUnavailable)
		time.Sleep(time.Minute)
		require.NoError(t, l.Err())
	})
}

// TestCrowdGivesUpBesideAHolder: thousands of releases stand in the engine's queue, and take longer than
// the TTL of a lease that needs its renewal.
func TestCrowdGivesUpBesideAHolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onRelease(func(ctx context.Context, g Grant, release releaseFunc) error {
			time.Sleep(youngFor)
			return release(ctx, g)
		})
		c := client(t, f)
		l := mustLock(t, c, "k", WithTTL(time.Second))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var wg sync.WaitGroup
		for range 60 * maxYoung {
			wg.Go(func() { _, err := c.Lock(ctx, "k"); assertIs(t, err, context.Canceled) })
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		time.Sleep(2 * time.Second)
		require.NoError(t, l.Err())
	})
}
