package lock_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

var errDown = errors.New("connection refused")

// counted is a store that counts looks, and tells of changes by way of watch.
type counted struct {
	*memory.Faulty
	looks atomic.Int64
	watch func(ctx context.Context, key string, changed func()) error
}

func newCounted() *counted {
	s := &counted{Faulty: memory.NewFaulty()}
	s.watch = s.Faulty.Watch
	return s
}

func (s *counted) Inspect(ctx context.Context, key string) (lock.Record, error) {
	s.looks.Add(1)
	if err := ctx.Err(); err != nil {
		return lock.Record{}, err
	}
	return s.Faulty.Inspect(ctx, key)
}

func (s *counted) Watch(ctx context.Context, key string, changed func()) error {
	return s.watch(ctx, key, changed)
}

// sight is a loop over a Watch of "k".
type sight struct {
	records atomic.Int64
	done    chan error // the last error
}

// watching runs f in fake time beside a Watch at s, which f must leave open.
func watching(t *testing.T, change func(s *counted), f func(t *testing.T, s *counted, c *lock.Client, w *sight)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s, w := newCounted(), &sight{done: make(chan error, 1)}
		if change != nil {
			change(s)
		}
		c := lock.New(s)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { w.done <- w.loop(ctx, c) }()
		synctest.Wait()
		f(t, s, c, w)
		cancel()
		require.ErrorIs(t, <-w.done, context.Canceled)
		require.NoError(t, c.Close(context.Background()))
	})
}

func (w *sight) loop(ctx context.Context, c *lock.Client) (last error) {
	for _, err := range c.Watch(ctx, "k") {
		if last = err; err == nil {
			w.records.Add(1)
		}
	}
	return last
}

// With push, a key that nobody holds costs no request, and one that somebody keeps costs a
// look in each TTL.
func TestWatchCosts(t *testing.T) {
	watching(t, nil, func(t *testing.T, s *counted, c *lock.Client, w *sight) {
		before := s.looks.Load()
		time.Sleep(24 * time.Hour)
		require.Equal(t, before, s.looks.Load())
		require.EqualValues(t, 1, w.records.Load())

		l, err := c.TryLock(t.Context(), "k")
		require.NoError(t, err)
		synctest.Wait()
		before = s.looks.Load()
		time.Sleep(time.Hour)
		require.Less(t, s.looks.Load()-before, int64(time.Hour/(lock.DefaultTTL/2)))
		require.EqualValues(t, 2, w.records.Load())
		require.NoError(t, l.Release(t.Context()))
		synctest.Wait()
		require.EqualValues(t, 3, w.records.Load())

		_, err = c.TryLock(t.Context(), "k", lock.WithRenewal(false))
		require.NoError(t, err)
		synctest.Wait()
		require.EqualValues(t, 4, w.records.Load())
		time.Sleep(lock.DefaultTTL + time.Millisecond)
		require.EqualValues(t, 5, w.records.Load(), "an expiry, which the store does not tell of")
	})
}

func unsupported(context.Context, string, func()) error { return lock.ErrUnsupported }

// Without push, a change shows when it is half a second old at the latest.
func TestWatchPolls(t *testing.T) {
	watching(t, func(s *counted) { s.watch = unsupported }, func(t *testing.T, s *counted, c *lock.Client, w *sight) {
		before := s.looks.Load()
		time.Sleep(time.Minute)
		require.InDelta(t, 120, s.looks.Load()-before, 2)
		_, err := c.TryLock(t.Context(), "k")
		require.NoError(t, err)
		time.Sleep(501 * time.Millisecond)
		require.EqualValues(t, 2, w.records.Load())
	})
}

// While the store cannot tell, Watch polls; once it can, it does not.
func TestWatchFindsItsWayBack(t *testing.T) {
	var down atomic.Bool
	down.Store(true)
	var cut atomic.Pointer[context.CancelFunc] // of the Watch that goes on
	broken := func(s *counted) {
		s.watch = func(ctx context.Context, key string, changed func()) error {
			if down.Load() {
				return errDown
			}
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			cut.Store(&cancel)
			return s.Faulty.Watch(ctx, key, changed)
		}
	}
	watching(t, broken, func(t *testing.T, s *counted, c *lock.Client, w *sight) {
		time.Sleep(time.Hour)
		require.Less(t, s.looks.Load(), int64(3600*6), "no more than six in a second")
		_, err := c.TryLock(t.Context(), "k", lock.WithRenewal(false), lock.WithTTL(time.Minute))
		require.NoError(t, err)
		time.Sleep(501 * time.Millisecond)
		require.EqualValues(t, 2, w.records.Load())
		time.Sleep(time.Hour)
		require.EqualValues(t, 3, w.records.Load())

		down.Store(false)
		time.Sleep(2 * time.Second)
		before := s.looks.Load()
		time.Sleep(time.Hour)
		require.Equal(t, before, s.looks.Load())

		s.Fail(errDown) // which breaks the watch
		time.Sleep(time.Second)
		s.Heal()
		time.Sleep(2 * time.Second)
		before = s.looks.Load()
		time.Sleep(time.Hour)
		require.Equal(t, before, s.looks.Load())
		require.EqualValues(t, 3, w.records.Load())

		down.Store(true)
		(*cut.Load())()
		time.Sleep(time.Second)
		for n := range int64(20) {
			require.EqualValues(t, 3+2*n, w.records.Load())
			l, err := c.TryLock(t.Context(), "k")
			require.NoError(t, err)
			time.Sleep(501 * time.Millisecond)
			require.EqualValues(t, 4+2*n, w.records.Load())
			require.NoError(t, l.Release(t.Context()))
			time.Sleep(501 * time.Millisecond)
		}
		before = s.looks.Load()
		time.Sleep(time.Minute)
		require.Less(t, s.looks.Load()-before, int64(60*6))
	})
}

// A store that cuts each Watch as soon as that has begun is not asked more often than one that
// does not push.
func TestWatchOfAStoreThatHangsUp(t *testing.T) {
	hangsUp := func(s *counted) {
		s.watch = func(_ context.Context, _ string, changed func()) error {
			changed()
			return errDown
		}
	}
	watching(t, hangsUp, func(t *testing.T, s *counted, _ *lock.Client, _ *sight) {
		time.Sleep(time.Hour)
		require.Less(t, s.looks.Load(), int64(3600*6))
	})
}

// An outage is yielded when it has lasted for Patience, and not before.
func TestWatchInAnOutage(t *testing.T) {
	for name, trouble := range map[string]func(*counted){
		"refused": func(s *counted) { s.Fail(errDown) },
		"unavailable, as the store says itself": func(s *counted) {
			s.Fail(fmt.Errorf("%w: no server", lock.ErrUnavailable))
		},
		"frozen": func(s *counted) { s.Freeze() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, w := newCounted(), &sight{done: make(chan error, 1)}
				c := lock.New(s)
				_, err := c.TryLock(t.Context(), "k")
				require.NoError(t, err)
				go func() { w.done <- w.loop(t.Context(), c) }()
				synctest.Wait()
				begun := time.Now()

				trouble(s)
				time.Sleep(20 * time.Second)
				s.Heal()
				time.Sleep(20 * time.Second)
				require.Empty(t, w.done, "it has outlived that")
				_, err = c.TryLock(t.Context(), "k") // the first was lost
				require.NoError(t, err)
				synctest.Wait()

				trouble(s)
				err = <-w.done
				var e *lock.Error
				require.ErrorAs(t, err, &e)
				require.Equal(t, "watch", e.Op)
				require.ErrorIs(t, err, lock.ErrUnavailable)
				require.NotErrorIs(t, err, context.Canceled)
				if name == "refused" {
					require.ErrorIs(t, err, errDown)
				}
				require.NotErrorIs(t, err, context.DeadlineExceeded)
				require.GreaterOrEqual(t, time.Since(begun), 40*time.Second+lock.Patience)
				require.Less(t, time.Since(begun), 40*time.Second+lock.DefaultTTL+lock.Patience+2*time.Second)
				s.Heal()
				require.NoError(t, c.Close(context.Background()))
			})
		})
	}
}

// A Watch does not begin in an outage: a wrong address is told.
func TestWatchIsToldThatTheStoreWasNeverThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w := newCounted(), new(sight)
		s.Fail(errDown)
		c := lock.New(s)
		begun := time.Now()
		err := w.loop(t.Context(), c)
		require.ErrorIs(t, err, lock.ErrUnavailable)
		require.ErrorIs(t, err, errDown)
		require.Zero(t, time.Since(begun))
		require.Zero(t, w.records.Load())

		s.Heal()
		s.Freeze()
		err = w.loop(t.Context(), c)
		require.ErrorIs(t, err, lock.ErrUnavailable)
		require.NotErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, lock.Patience, time.Since(begun))
		s.Heal()
		require.NoError(t, c.Close(t.Context()))
	})
}

// Close ends a Watch, also one that is in its body, and does not wait for it.
func TestWatchIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := lock.New(memory.New())
		n := 0
		for _, err := range c.Watch(t.Context(), "k") {
			if n++; n == 1 {
				require.NoError(t, err)
				require.NoError(t, c.Close(t.Context()))
				continue
			}
			require.ErrorIs(t, err, lock.ErrClosed)
		}
		require.Equal(t, 2, n)
	})
}

// A body that panics leaves nothing behind: the bubble would tell.
func TestWatchPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := lock.New(memory.New())
		require.Panics(t, func() {
			n := 0
			for _, err := range c.Watch(t.Context(), "k") {
				require.NoError(t, err)
				if n++; n == 2 {
					panic("the body")
				}
				_, err = c.TryLock(t.Context(), "k")
				require.NoError(t, err)
			}
		})
		require.NoError(t, c.Close(t.Context()))
	})
}
