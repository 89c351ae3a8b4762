package breakerlock_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sony/gobreaker/v2"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/contrib/breakerlock"
	"github.com/seed-215fdefa/lock/internal/faulty"
	"github.com/seed-215fdefa/lock/locktest"
	"github.com/seed-215fdefa/lock/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestSuite runs the suite while the breaker is closed.
func TestSuite(t *testing.T) {
	locktest.Run(t, locktest.Harness{
		Around: synctest.Test,
		Faults: faults(),
		New: func(tb testing.TB) func() lock.Locker {
			store := memory.New()
			return func() lock.Locker {
				inner := store.Open()
				f := faulty.New(inner)
				tb.Cleanup(func() {
					f.Sever()
					_ = inner.Close()
				})
				return breakerlock.New(f, gobreaker.Settings{ReadyToTrip: func(gobreaker.Counts) bool { return false }})
			}
		},
	})
}

// faults are those of what is behind the breaker.
func faults() map[locktest.Fault]func(testing.TB, lock.Locker) func() {
	behind := faulty.Faults()
	for f, do := range behind {
		behind[f] = func(tb testing.TB, l lock.Locker) func() { return do(tb, l.(*breakerlock.Locker).Unwrap()) }
	}
	return behind
}

const ttl = time.Minute

// down is a store that has failed until the breaker opened.
func down(t *testing.T) (*memory.Faulty, *breakerlock.Locker, *lock.Client) {
	t.Helper()
	store := memory.NewFaulty()
	l := breakerlock.New(store, gobreaker.Settings{Timeout: time.Minute})
	c := lock.New(l, lock.WithTTL(ttl))
	t.Cleanup(func() {
		store.Heal()
		require.NoError(t, c.Close(context.Background()))
	})
	return store, l, c
}

func trip(t *testing.T, store *memory.Faulty, l *breakerlock.Locker, c *lock.Client) {
	t.Helper()
	store.Fail(errors.New("no route to host"))
	for n := 0; l.State() != gobreaker.StateOpen; n++ {
		require.Less(t, n, 10)
		_, err := c.TryLock(t.Context(), "k")
		require.ErrorIs(t, err, lock.ErrUnavailable)
	}
}

// TestFailsFast: a store that does not answer costs nothing while the breaker is open, and is
// tried again after its timeout.
func TestFailsFast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, l, c := down(t)
		trip(t, store, l, c)
		store.Freeze()
		begin := time.Now()
		for _, take := range []func(context.Context, string, ...lock.Option) (*lock.Lease, error){c.Lock, c.TryLock} {
			_, err := take(t.Context(), "k")
			require.ErrorIs(t, err, lock.ErrUnavailable)
			require.ErrorIs(t, err, gobreaker.ErrOpenState)
		}
		require.Zero(t, time.Since(begin))
		store.Heal()
		time.Sleep(time.Minute + 1)
		lease, err := c.TryLock(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, gobreaker.StateClosed, l.State())
		require.NoError(t, lease.Release(t.Context()))
	})
}

// counting counts the undos that come to the store, and closes of it.
type counting struct {
	*memory.Faulty
	undos, closes atomic.Int64
}

func (c *counting) Release(ctx context.Context, g lock.Grant) error {
	if g.Token == 0 {
		c.undos.Add(1)
	}
	return c.Faulty.Release(ctx, g)
}

func (c *counting) Close() error {
	c.closes.Add(1)
	return errors.New("closed")
}

// TestNothingIsSent: a refused acquire leaves nothing to undo, neither for the store, which has
// enough to do, nor for Close. One that was sent is undone, also while the breaker is open.
func TestNothingIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &counting{Faulty: memory.NewFaulty()}
		l := breakerlock.New(store, gobreaker.Settings{Timeout: time.Hour})
		c := lock.New(l, lock.WithTTL(ttl))
		trip(t, store.Faulty, l, c)
		synctest.Wait()
		require.Positive(t, store.undos.Load(), "of what was sent")
		time.Sleep(2 * ttl)
		sent := store.undos.Load()
		store.Freeze()
		for range 100 {
			_, err := c.TryLock(t.Context(), "k")
			require.ErrorIs(t, err, gobreaker.ErrOpenState)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.Lock(ctx, "k")
		require.ErrorIs(t, err, gobreaker.ErrOpenState)
		time.Sleep(2 * ttl)
		require.Equal(t, sent, store.undos.Load())
		_, err = c.TryLock(t.Context(), "k")
		require.ErrorIs(t, err, gobreaker.ErrOpenState)
		begin := time.Now()
		require.NoError(t, c.Close(t.Context()))
		require.Zero(t, time.Since(begin))
	})
}

// TestClose closes the store, if it can be closed.
func TestClose(t *testing.T) {
	store := &counting{Faulty: memory.NewFaulty()}
	l := breakerlock.New(store, gobreaker.Settings{})
	require.EqualError(t, l.Close(), "closed")
	require.EqualValues(t, 1, store.closes.Load())
	require.NoError(t, breakerlock.New(struct{ lock.Locker }{store}, gobreaker.Settings{}).Close())
}

// TestHoldersPass: renewals and releases go to the store while the breaker is open.
func TestHoldersPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, l, c := down(t)
		lease, err := c.TryLock(t.Context(), "held")
		require.NoError(t, err)
		trip(t, store, l, c)
		store.Fail(nil)
		require.Equal(t, gobreaker.StateOpen, l.State())
		require.NoError(t, lease.Renew(t.Context()))
		rec, err := c.Inspect(t.Context(), "held")
		require.NoError(t, err)
		require.Equal(t, 1, rec.HolderCount)
		require.NoError(t, lease.Release(t.Context()))
		require.Equal(t, gobreaker.StateOpen, l.State(), "they do not count")
	})
}

// TestWhatIsNoFailure: many refusals, waits and cancellations leave the breaker closed.
func TestWhatIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l, c := down(t)
		lease, err := c.TryLock(t.Context(), "k")
		require.NoError(t, err)
		for range 20 {
			_, err := c.TryLock(t.Context(), "k")
			require.ErrorIs(t, err, lock.ErrHeld)
			_, err = c.Lock(t.Context(), "k", lock.WithWait(time.Second))
			require.ErrorIs(t, err, lock.ErrHeld)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err = c.Lock(ctx, "k")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			cancel()
			_, err = c.TryLock(ctx, "k")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			_, err = l.Acquire(t.Context(), lock.Request{})
			require.ErrorIs(t, err, lock.ErrInvalid)
		}
		require.Equal(t, gobreaker.StateClosed, l.State())
		require.NoError(t, lease.Release(t.Context()))
	})
}

// TestNoAnswerIsAFailure: so does a store that does not answer open it.
func TestNoAnswerIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, l, c := down(t)
		store.Freeze()
		for range 6 {
			_, err := c.Lock(t.Context(), "k", lock.WithWait(time.Second))
			require.ErrorIs(t, err, lock.ErrUnavailable)
		}
		require.Equal(t, gobreaker.StateOpen, l.State())
	})
}

// TestHalfOpenWaiterLetsOthersIn: the one that is let through may stand in line for hours.
func TestHalfOpenWaiterLetsOthersIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, l, c := down(t)
		free, err := store.Occupy("busy")
		require.NoError(t, err)
		trip(t, store, l, c)
		store.Fail(nil)
		time.Sleep(time.Minute + 1)
		waited := make(chan error, 1)
		go func() {
			waited <- c.Do(t.Context(), "busy", func(context.Context, *lock.Lease) error { return nil })
		}()
		synctest.Wait()
		require.Equal(t, gobreaker.StateClosed, l.State())
		require.NoError(t, c.TryDo(t.Context(), "k", func(context.Context, *lock.Lease) error { return nil }))
		free()
		require.NoError(t, <-waited)
	})
}

func ExampleNew() {
	store := memory.NewFaulty()
	client := lock.New(breakerlock.New(store, gobreaker.Settings{
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures == 2 },
	}))
	store.Fail(errors.New("connection refused"))
	for range 3 {
		_, err := client.TryLock(context.Background(), "report")
		fmt.Println(err)
	}
	// Output:
	// lock: trylock "report": store unavailable: connection refused
	// lock: trylock "report": store unavailable: connection refused
	// lock: trylock "report": store unavailable: circuit breaker is open
}
