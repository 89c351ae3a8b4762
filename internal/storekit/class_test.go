package storekit

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

func TestRepeat(t *testing.T) {
	for _, c := range []struct {
		class  Class
		sends  int
		unsure bool
	}{{Final, 1, false}, {Busy, maxBusy, false}, {Unsent, maxSends, false}, {Unknown, maxSends, true}} {
		synctest.Test(t, func(t *testing.T) {
			sends := 0
			unsure, err := Repeat(t.Context(), classOf, func(_ context.Context, n int) error {
				require.Equal(t, sends, n)
				sends++
				time.Sleep(minBroken / 3)
				return failing(c.class)
			})
			require.Equal(t, failing(c.class), err)
			require.Equal(t, c.sends, sends)
			require.Equal(t, c.unsure, unsure)
		})
	}
}

// TestRepeatOutlivesBrokenConnections: a pool hands out more of them than Repeat sends requests that
// nobody answers.
func TestRepeatOutlivesBrokenConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		sends := 0
		_, err := Repeat(t.Context(), classOf, func(context.Context, int) error {
			if sends++; time.Since(began) < minBroken/2 {
				return failing(Unknown)
			}
			return nil
		})
		require.NoError(t, err)
		require.Greater(t, sends, maxSends)

		began = time.Now()
		_, err = Repeat(t.Context(), classOf, func(context.Context, int) error { return failing(Unknown) })
		require.Equal(t, failing(Unknown), err)
		require.Less(t, time.Since(began), 3*minBroken)
	})
}

func TestRepeatSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unsure, err := Repeat(t.Context(), classOf, func(_ context.Context, n int) error {
			return []error{failing(Unknown), failing(Busy), nil}[n]
		})
		require.NoError(t, err)
		require.True(t, unsure, "the first may have been done, or may be done yet")
	})
}

func TestRepeatEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		unsure, err := Repeat(ctx, classOf, func(ctx context.Context, n int) error {
			if n == 0 {
				return failing(Busy)
			}
			<-ctx.Done()
			return ctx.Err()
		})
		require.True(t, unsure, "the second may be done yet")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		var of *storeError
		require.ErrorAs(t, err, &of, "the trouble before")
	})
}

func TestWithinPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		err := WithinPatience(t.Context(), func(ctx context.Context) error {
			<-ctx.Done()
			return fmt.Errorf("%w: %w", lock.ErrInvalid, Ended(ctx, ctx.Err(), failing(Unknown)))
		})
		require.Equal(t, lock.Patience, time.Since(began))
		require.ErrorIs(t, err, lock.ErrUnavailable)
		require.NotErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, lock.ErrInvalid, "all else that it is")
		var of *storeError
		require.ErrorAs(t, err, &of)

		require.Equal(t, failing(Final), WithinPatience(t.Context(), func(context.Context) error { return failing(Final) }))

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err = WithinPatience(ctx, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		require.Equal(t, context.DeadlineExceeded, err, "the caller's own")
	})
}

func TestBackoff(t *testing.T) {
	b := Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond}
	for n := range 100 {
		limit := b.Max
		if n < 4 {
			limit = b.Min << n
		}
		for range 50 {
			p := b.Pause(n)
			require.Positive(t, p)
			require.LessOrEqual(t, p, limit)
		}
	}
}

// TestEndedHasTheNews: what a client says beside the end of ctx is not lost behind what the store said
// before.
func TestEndedHasTheNews(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	news := fmt.Errorf("%w: %w", ctx.Err(), errRefused)
	for _, err := range []error{Ended(ctx, news, failing(Busy)), unanswered(latest(ctx.Err(), news, failing(Busy)))} {
		require.ErrorIs(t, err, errRefused)
		var of *storeError
		require.ErrorAs(t, err, &of)
	}
	require.Equal(t, failing(Busy), latest(ctx.Err(), ctx.Err(), failing(Busy)), "no news")
	require.Equal(t, errRefused, latest(ctx.Err(), errRefused, failing(Busy)))
	require.Equal(t, news, Ended(ctx, news, nil))
}

func TestWithinPatienceSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		time.Sleep(lock.Patience / 3)
		err := WithinPatienceSince(t.Context(), began, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		require.ErrorIs(t, err, lock.ErrUnavailable)
		require.Equal(t, lock.Patience, time.Since(began))
	})
}
