package lock

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		l := mustLock(t, client(t, f), "k")
		ctx := l.Context()
		f.onRelease(func(rctx context.Context, g Grant, release releaseFunc) error {
			require.ErrorIs(t, context.Cause(ctx), ErrReleased, "ended before the store is asked")
			require.Equal(t, l.Token(), g.Token)
			return release(rctx, g)
		})
		require.NoError(t, l.Release(t.Context()))
		require.ErrorIs(t, l.Err(), ErrReleased)
		require.False(t, f.held("k"))
		for range 3 {
			require.NoError(t, l.Release(t.Context()), "again is nil")
		}
		require.Len(t, f.sent("release"), 1)
		require.ErrorIs(t, context.Cause(l.Context()), ErrReleased)
		time.Sleep(time.Minute)
		require.Empty(t, f.sent("renew"))
		require.ErrorIs(t, l.Release(nil), ErrInvalid) //nolint:staticcheck // that is the test
	})
}

func TestContextMadeAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustLock(t, client(t, newFake()), "k")
		require.NoError(t, l.Release(t.Context()))
		<-l.Context().Done()
		require.ErrorIs(t, context.Cause(l.Context()), ErrReleased)
	})
}

func TestReleaseAfterError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		l := mustLock(t, client(t, f), "k")
		f.onRelease(failRelease)
		err := l.Release(t.Context())
		require.ErrorIs(t, err, errIO)
		failedAs(t, "release", "k", err)
		require.ErrorIs(t, l.Err(), ErrReleased)
		time.Sleep(5 * time.Second)
		require.Empty(t, f.sent("renew"), "not renewed any more")
		require.Greater(t, len(f.sent("release")), 1, "the Client goes on")
		require.ErrorIs(t, l.Release(t.Context()), errIO, "the caller may, too")
		f.onRelease(plainRelease)
		require.NoError(t, l.Release(t.Context()))
		require.False(t, f.held("k"))
		n := len(f.sent("release"))
		require.NoError(t, l.Release(t.Context()))
		time.Sleep(time.Minute)
		require.Len(t, f.sent("release"), n)
	})
}

// The first release was applied and its reply lost: the second is told that there is no
// grant, which is no loss.
func TestReleaseAfterLostReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		l := mustLock(t, client(t, f), "k")
		f.onRelease(func(ctx context.Context, g Grant, release releaseFunc) error {
			_ = release(ctx, g)
			return errIO
		})
		require.ErrorIs(t, l.Release(t.Context()), errIO)
		f.onRelease(plainRelease)
		require.NoError(t, l.Release(t.Context()))
	})
}

func TestReleaseFindsTheLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		l := mustLock(t, client(t, f), "k")
		f.force("k", false)
		for range 2 {
			err := l.Release(t.Context())
			failedAs(t, "release", "k", err)
			require.Equal(t, l.Token(), lossAs(t, ReasonTaken, err).Token)
			require.ErrorIs(t, l.Err(), ErrReleased)
		}
		require.Len(t, f.sent("release"), 1)
	})
}

func TestReleaseAfterLossSendsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		l := mustLock(t, client(t, f), "k", WithRenewal(false))
		time.Sleep(deadline)
		lostAs(t, ReasonExpired, l.Release(t.Context()))
		require.Empty(t, f.sent("release"))
	})
}

func TestReleaseWithEndedContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		l := mustLock(t, client(t, f), "k")
		f.onRelease(func(ctx context.Context, g Grant, release releaseFunc) error {
			if len(f.sent("release")) < 3 {
				return errIO
			}
			return release(ctx, g)
		})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := l.Release(ctx)
		require.ErrorIs(t, err, context.Canceled)
		failedAs(t, "release", "k", err)
		require.ErrorIs(t, l.Err(), ErrReleased)
		time.Sleep(time.Second)
		require.False(t, f.held("k"), "it goes on in the background, and is retried")
		require.NoError(t, l.Release(t.Context()))
		require.Len(t, f.sent("release"), 3)
	})
}

// Whoever releases need not wait for a renewal by hand that hangs, nor stay to have it canceled.
func TestReleaseWithEndedContextCancelsTheRenewal(t *testing.T) {
	for _, kept := range []time.Duration{0, hold} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			f.onRenew(freezeRenew)
			l := mustLock(t, client(t, f, WithMinHold(kept)), "k")
			start := time.Now()
			var wg sync.WaitGroup
			wg.Go(func() {
				err := l.Renew(context.Background())
				assertIs(t, err, ErrReleased)
				if errors.Is(err, ErrUnavailable) {
					t.Error(err)
				}
			})
			synctest.Wait()
			_ = l.Release(canceled())
			wg.Wait()
			require.Zero(t, time.Since(start))
			require.Equal(t, kept, freeAfter(f, "k", start).Truncate(time.Second))
		})
	}
}

func TestReleaseGoesOnWhenContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		l := mustLock(t, client(t, f), "k")
		f.onRelease(func(ctx context.Context, _ Grant, _ releaseFunc) error {
			<-ctx.Done()
			return ctx.Err()
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		require.ErrorIs(t, l.Release(ctx), context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(start))
		f.onRelease(plainRelease)
		time.Sleep(5 * time.Second)
		require.False(t, f.held("k"))
	})
}

func TestBackgroundReleaseEndsWithTheTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		l := mustLock(t, c, "k")
		f.onRelease(failRelease)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, l.Release(ctx), context.Canceled)
		time.Sleep(ttlTen + time.Second)
		n := len(f.sent("release"))
		require.Greater(t, n, 5)
		require.Less(t, n, 100)
		time.Sleep(time.Minute)
		require.Len(t, f.sent("release"), n)
		require.Empty(t, leftovers(c))
	})
}

func TestReleaseTakesOverFromTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		l := mustLock(t, client(t, f, WithBackoff(900*time.Millisecond, time.Second)), "k")
		f.onRelease(failRelease)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, l.Release(ctx), context.Canceled)
		time.Sleep(time.Nanosecond)
		require.ErrorIs(t, l.Release(t.Context()), errIO)
		f.onRelease(plainRelease)
		time.Sleep(ttlTen / 2)
		require.False(t, f.held("k"), "the background goes on after a release that failed")
	})
}

func TestReleaseCancelsTheRenewalInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		var inFlight sync.Mutex
		f.onRenew(func(ctx context.Context, g Grant, _ renewFunc) (Grant, error) {
			inFlight.Lock()
			defer inFlight.Unlock()
			<-ctx.Done()
			time.Sleep(100 * time.Millisecond) // it takes its time to come back
			g.Start = time.Now()
			return g, nil // and has even succeeded
		})
		f.onRelease(func(ctx context.Context, g Grant, release releaseFunc) error {
			require.True(t, inFlight.TryLock(), "release beside a renewal")
			inFlight.Unlock()
			return release(ctx, g)
		})
		l := mustLock(t, client(t, f), "k")
		for len(f.sent("renew")) == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		start := time.Now()
		require.NoError(t, l.Release(t.Context()))
		require.Equal(t, 100*time.Millisecond, time.Since(start))
		time.Sleep(time.Minute)
		require.ErrorIs(t, l.Err(), ErrReleased, "the reply revives nothing")
		require.Len(t, f.sent("renew"), 1)
		require.Len(t, f.sent("release"), 1)
	})
}

func TestReleaseBesideHungRenewalIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onRenew(func(context.Context, Grant, renewFunc) (Grant, error) {
			time.Sleep(8 * time.Second)
			return Grant{}, errIO
		})
		l := mustLock(t, client(t, f), "k")
		time.Sleep(ttlTen / 2)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, l.Release(ctx), context.DeadlineExceeded)
		require.Empty(t, f.sent("release"))
		time.Sleep(ttlTen)
		require.Len(t, f.sent("release"), 1, "once the renewal is back")
	})
}

func TestReleaseByMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onRelease(func(ctx context.Context, g Grant, release releaseFunc) error {
			time.Sleep(time.Second)
			return release(ctx, g)
		})
		l := mustLock(t, client(t, f), "k")
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { require.NoError(t, l.Release(t.Context())) })
		}
		wg.Wait()
		require.Len(t, f.sent("release"), 1)
	})
}

func TestEarlyLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		l := mustLock(t, c, "k")
		f.force("k", true)
		require.Error(t, l.Context().Err(), "told at once")
		lostAs(t, ReasonForced, l.Err())
		lostAs(t, ReasonForced, l.Release(t.Context()))
		require.Empty(t, f.sent("release"))

		l = mustLock(t, c, "k")
		lost := f.sent("acquire")[1].req.Lost
		require.NoError(t, l.Release(t.Context()))
		lost(ReasonForced) // no store should, but it changes nothing
		require.ErrorIs(t, l.Err(), ErrReleased)
	})
}

func TestNoNoticeFromStoresWithout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.caps.EarlyLoss = false
		mustLock(t, client(t, f), "k")
		require.Nil(t, f.sent("acquire")[0].req.Lost)
	})
}

// A context that ends with the lease must not keep it from being released.
func TestReleaseWithTheLeasesOwnContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		l := mustLock(t, c, "k")
		require.NoError(t, l.Release(l.Context()))
		require.False(t, f.held("k"))

		l = mustLock(t, c, "k")
		f.onRelease(func(ctx context.Context, _ Grant, _ releaseFunc) error {
			<-ctx.Done()
			return ctx.Err()
		})
		start := time.Now()
		err := l.Release(l.Context())
		require.ErrorIs(t, err, ErrUnavailable)
		require.ErrorContains(t, err, "the store has not answered")
		require.Equal(t, doBound, time.Since(start))
	})
}
