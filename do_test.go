package lock

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

var errWork = errors.New("work failed")

func TestDo(t *testing.T) {
	type key struct{}
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		var inner context.Context
		ctx := context.WithValue(t.Context(), key{}, "value")
		err := c.Do(ctx, "k", func(ctx context.Context, l *Lease) error {
			inner = ctx
			require.Equal(t, "k", l.Key())
			require.Equal(t, Token(1), l.Token())
			require.Equal(t, "value", ctx.Value(key{}))
			require.NoError(t, ctx.Err())
			time.Sleep(time.Hour)
			return l.Err()
		})
		require.NoError(t, err)
		require.False(t, f.held("k"))
		require.ErrorIs(t, context.Cause(inner), ErrReleased)
		require.Equal(t, errWork, c.TryDo(t.Context(), "k", func(context.Context, *Lease) error { return errWork }),
			"unwrapped")
		require.Empty(t, c.engine.calls)
	})
}

func TestDoReleasesOnPanicAndGoexit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		require.PanicsWithValue(t, "boom", func() {
			_ = c.Do(t.Context(), "k", func(context.Context, *Lease) error { panic("boom") })
		})
		require.False(t, f.held("k"))
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = c.Do(t.Context(), "k", func(context.Context, *Lease) error {
				runtime.Goexit()
				return nil
			})
		}()
		<-done
		require.False(t, f.held("k"))
		require.Len(t, f.sent("release"), 2)
		require.Empty(t, c.engine.calls)
	})
}

func TestDoJoinsTheLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, result := range []error{nil, errWork} {
			f := newFake()
			f.onRenew(freezeRenew)
			start := time.Now()
			err := client(t, f).Do(t.Context(), "k", func(ctx context.Context, _ *Lease) error {
				<-ctx.Done()
				require.Equal(t, deadline, time.Since(start))
				lostAs(t, ReasonUnreachable, context.Cause(ctx))
				time.Sleep(time.Minute) // Do waits for it always
				return result
			})
			require.Equal(t, deadline+time.Minute, time.Since(start))
			lostAs(t, ReasonUnreachable, err)
			failedAs(t, "do", "k", err)
			if result != nil {
				require.ErrorIs(t, err, result)
			}
		}
	})
}

func TestDoFindsTheLossAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		err := client(t, f).TryDo(t.Context(), "k", func(context.Context, *Lease) error {
			f.force("k", false)
			return nil
		})
		failedAs(t, "trydo", "k", err)
		lostAs(t, ReasonTaken, err)

		err = client(t, f, WithRenewal(false)).Do(t.Context(), "k", func(context.Context, *Lease) error {
			time.Sleep(deadline) // to the instant, before any timer
			return nil
		})
		lostAs(t, ReasonExpired, err)
	})
}

func TestDoWithCanceledContextReleases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		ctx, cancel := context.WithCancel(t.Context())
		err := client(t, f).Do(ctx, "k", func(ctx context.Context, l *Lease) error {
			cancel()
			<-ctx.Done()
			require.NoError(t, l.Err(), "the lease is not the caller's ctx")
			require.NoError(t, l.Context().Err())
			time.Sleep(time.Minute)
			require.NoError(t, l.Err())
			return ctx.Err()
		})
		require.Equal(t, context.Canceled, err)
		require.False(t, f.held("k"))
	})
}

func TestDoReleaseIsBounded(t *testing.T) {
	freeze := func(ctx context.Context, _ Grant, _ releaseFunc) error {
		<-ctx.Done()
		return ctx.Err()
	}
	for name, c := range map[string]struct{ ttl, bound time.Duration }{
		"by five seconds": {ttlTen, doBound}, "by the TTL": {time.Second, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				f.onRelease(freeze)
				var start time.Time
				err := client(t, f, WithTTL(c.ttl)).Do(t.Context(), "k", func(context.Context, *Lease) error {
					start = time.Now()
					return nil
				})
				require.NoError(t, err, "the work is done: it must not be repeated")
				require.Equal(t, c.bound, time.Since(start))
				f.onRelease(plainRelease)
				time.Sleep(5 * time.Second)
				if c.ttl > c.bound {
					require.Greater(t, len(f.sent("release")), 1, "retried in the background")
				}
			})
		})
	}
}

func TestDoRetriesAFailedRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onRelease(failRelease)
		start := time.Now()
		seen := new(recorder)
		err := client(t, f, WithObserver(seen)).Do(t.Context(), "k", func(context.Context, *Lease) error { return nil })
		require.NoError(t, err)
		require.Zero(t, time.Since(start))
		require.Equal(t, EventReleased, seen.last().Kind)
		require.ErrorIs(t, seen.last().Err, errIO)
		f.onRelease(plainRelease)
		time.Sleep(time.Second)
		require.False(t, f.held("k"))
	})
}

func TestReleaseInsideDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		err := client(t, f).Do(t.Context(), "k", func(ctx context.Context, l *Lease) error {
			require.NoError(t, l.Release(ctx))
			require.ErrorIs(t, context.Cause(ctx), ErrReleased)
			return nil
		})
		require.NoError(t, err)
		require.Len(t, f.sent("release"), 1)
	})
}

func TestDoDetachesItsRelease(t *testing.T) {
	type key struct{}
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		ctx, cancel := context.WithCancelCause(context.WithValue(t.Context(), key{}, "value"))
		var kept context.Context
		f.onRelease(func(ctx context.Context, g Grant, release releaseFunc) error {
			kept = ctx
			require.NoError(t, ctx.Err())
			require.NoError(t, context.Cause(ctx))
			require.Equal(t, "value", ctx.Value(key{}), "for traces")
			return release(ctx, g)
		})
		_ = client(t, f).Do(ctx, "k", func(context.Context, *Lease) error {
			cancel(errWork)
			return nil
		})
		require.ErrorIs(t, kept.Err(), context.Canceled)
	})
}

// Do's ctx ends when the Client hears that the lock was forced: at once if the store tells it,
// else at the next renewal. Until then another may hold the key beside it.
func TestDoHearsOfAForcedLoss(t *testing.T) {
	for _, early := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			f.caps.EarlyLoss = early
			err := client(t, f).Do(t.Context(), "k", func(ctx context.Context, _ *Lease) error {
				forced := time.Now()
				f.force("k", true)
				<-ctx.Done()
				after := time.Since(forced)
				if early {
					require.Zero(t, after)
					return nil
				}
				require.Len(t, f.sent("renew"), 1)
				require.Equal(t, f.sent("renew")[0].at, time.Now())
				require.LessOrEqual(t, after, ttlTen/3)
				return nil
			})
			require.ErrorIs(t, err, ErrLost)
		})
	}
}
