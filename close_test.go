package lock

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCloseOfAnIdleClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := New(f)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		require.NoError(t, c.Close(ended), "there is nothing to wait for")
		for range 3 {
			require.NoError(t, c.Close(t.Context()))
		}
		_, err := c.Lock(t.Context(), "k")
		failedAs(t, "lock", "k", err)
		require.ErrorIs(t, err, ErrClosed)
		require.ErrorIs(t, c.TryDo(t.Context(), "k", never2), ErrClosed)
		_, err = c.Inspect(t.Context(), "k")
		require.ErrorIs(t, err, ErrClosed)
		failedAs(t, "inspect", "k", err)
		require.Empty(t, f.log)
		require.NoError(t, c.Err(), "that is about New")
		require.ErrorIs(t, c.Close(nil), ErrInvalid) //nolint:staticcheck // that is the test
	})
}

func TestCloseEndsWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		holder, c := client(t, f), client(t, f)
		mustLock(t, holder, "k")
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				var err error
				if i%2 == 0 {
					_, err = c.Lock(t.Context(), "k")
				} else {
					err = c.Do(t.Context(), "k", never2, WithWait(time.Hour))
				}
				require.ErrorIs(t, err, ErrClosed)
				require.NotErrorIs(t, err, context.Canceled, "the caller has not canceled")
			})
		}
		time.Sleep(time.Minute)
		start := time.Now()
		require.NoError(t, c.Close(t.Context()))
		require.Zero(t, time.Since(start))
		require.Len(t, f.sent("release"), 4, "Close waits for the undos")
		wg.Wait()
		require.True(t, f.held("k"), "that of the other Client")
	})
}

// stuckContext is a ctx of the application that stops its children only when free is closed.
type stuckContext struct {
	context.Context
	free chan struct{}
}

func (c stuckContext) Done() <-chan struct{} { return make(chan struct{}) }

func (c stuckContext) AfterFunc(func()) (stop func() bool) {
	return func() bool { <-c.free; return true }
}

// TestContextsEndBeforeAnyRelease: who ends a lease is held up before its contexts have ended,
// and another goroutine comes to its release first.
func TestContextsEndBeforeAnyRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		mustLock(t, client(t, f), "taken")
		c := client(t, f)
		held := mustLock(t, c, "k").Context()
		f.onRelease(func(ctx context.Context, g Grant, release releaseFunc) error {
			if g.Key == "k" {
				require.ErrorIs(t, context.Cause(held), ErrClosed)
			}
			return release(ctx, g)
		})
		stuck := stuckContext{t.Context(), make(chan struct{})}
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := c.Lock(stuck, "taken")
			require.ErrorIs(t, err, ErrClosed)
		})
		synctest.Wait()
		wg.Go(func() { require.NoError(t, c.Close(t.Context())) })
		synctest.Wait()
		require.False(t, f.held("k"))
		close(stuck.free)
		wg.Wait()
	})
}

func TestCloseReleasesLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		seen := new(recorder)
		c := client(t, f, WithObserver(seen))
		var all []*Lease
		for i := range 2 * maxYoung {
			all = append(all, mustLock(t, c, fmt.Sprint(i)))
		}
		done := all[0].Context().Done()
		f.onRelease(func(ctx context.Context, g Grant, release releaseFunc) error {
			<-done
			time.Sleep(time.Millisecond)
			return release(ctx, g)
		})
		require.NoError(t, c.Close(t.Context()))
		for i, l := range all {
			require.ErrorIs(t, l.Err(), ErrClosed)
			require.ErrorIs(t, context.Cause(l.Context()), ErrClosed)
			require.ErrorIs(t, l.Renew(t.Context()), ErrClosed)
			require.NoError(t, l.Release(t.Context()), "it is released")
			require.False(t, f.held(fmt.Sprint(i)))
		}
		require.Equal(t, len(all), len(f.sent("release")))
		synctest.Wait() // Close does not wait for observers, which may have called it
		require.Equal(t, 2*len(all), len(seen.kinds()))
		require.Equal(t, EventReleased, seen.last().Kind)
		require.NoError(t, seen.last().Err)
	})
}

func TestCloseWaitsForDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		var result error
		var wg sync.WaitGroup
		wg.Go(func() {
			result = c.Do(t.Context(), "k", func(ctx context.Context, l *Lease) error {
				<-ctx.Done()
				require.ErrorIs(t, context.Cause(ctx), ErrClosed)
				require.ErrorIs(t, l.Err(), ErrClosed)
				require.ErrorIs(t, c.Do(context.WithoutCancel(ctx), "k", never2, WithReentrant(true)), ErrClosed)
				require.ErrorIs(t, c.Do(context.WithoutCancel(ctx), "l", never2), ErrClosed)
				time.Sleep(time.Minute)
				require.True(t, f.held("k"), "renewed while it winds down")
				return nil
			})
		})
		time.Sleep(time.Second)
		start := time.Now()
		require.NoError(t, c.Close(t.Context()))
		require.Equal(t, time.Minute, time.Since(start))
		wg.Wait()
		require.NoError(t, result)
		require.False(t, f.held("k"))
	})
}

func TestLossWhileWindingDownIsJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		var wg sync.WaitGroup
		wg.Go(func() {
			err := c.Do(t.Context(), "k", func(ctx context.Context, l *Lease) error {
				<-ctx.Done()
				f.force("k", true)
				require.ErrorIs(t, l.Err(), ErrClosed, "as its context")
				return nil
			})
			lostAs(t, ReasonForced, err)
		})
		time.Sleep(time.Second)
		require.NoError(t, c.Close(t.Context()))
		wg.Wait()
	})
}

func TestCloseGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := New(f, WithTTL(ttlTen))
		l := mustLock(t, c, "l", WithTTL(3*time.Second))
		end := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			require.NoError(t, c.Do(t.Context(), "k", func(context.Context, *Lease) error {
				<-end
				return nil
			}))
		})
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		start := time.Now()
		err := c.Close(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, ErrUnavailable, "the store is well")
		require.Equal(t, 2*time.Second, time.Since(start))
		require.ErrorIs(t, c.Close(t.Context()), context.DeadlineExceeded, "for good")
		require.ErrorIs(t, l.Err(), ErrClosed)
		n := len(f.sent("renew"))
		time.Sleep(ttlTen / 2)
		require.Len(t, f.sent("renew"), n, "left to the TTL")
		close(end)
		wg.Wait() // Do still releases
		require.Len(t, f.sent("release"), 1)
	})
}

func TestCloseGivesUpOnAFrozenStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := New(f, WithTTL(ttlTen))
		l := mustLock(t, c, "k")
		f.onRelease(freezeRelease)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, c.Close(ctx), context.DeadlineExceeded)
		synctest.Wait()
		n := len(f.sent("release"))
		time.Sleep(time.Minute)
		require.Len(t, f.sent("release"), n)
		require.ErrorIs(t, l.Err(), ErrClosed)
	})
}

// A holder's own release does not outlive Close either.
func TestCloseGivesUpOnTheReleaseOfDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := New(f, WithTTL(ttlTen))
		f.onRelease(freezeRelease)
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() { assertNoError(t, c.Do(t.Context(), "k", nop)) })
		wg.Go(func() { assertIs(t, mustLock(t, c, "l").Release(context.Background()), ErrUnavailable) })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		synctest.Wait()
		require.ErrorIs(t, c.Close(ctx), context.DeadlineExceeded)
		wg.Wait()
		require.Equal(t, time.Second, time.Since(start))
	})
}

// A renewal by hand that hangs keeps Close from no release.
func TestCloseEndsARenewalByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		f.onRenew(freezeRenew)
		l := mustLock(t, c, "k")
		var wg sync.WaitGroup
		wg.Go(func() { assertIs(t, l.Renew(context.Background()), ErrClosed) })
		synctest.Wait()
		start := time.Now()
		require.NoError(t, c.Close(context.Background()))
		require.Zero(t, time.Since(start))
		require.False(t, f.held("k"))
		wg.Wait()
	})
}

func TestCloseByMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		mustLock(t, c, "k")
		f.onRelease(func(ctx context.Context, g Grant, release releaseFunc) error {
			time.Sleep(time.Second)
			return release(ctx, g)
		})
		var wg sync.WaitGroup
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			require.ErrorIs(t, c.Close(ctx), context.DeadlineExceeded)
		})
		for range 10 {
			wg.Go(func() { require.NoError(t, c.Close(t.Context()), "one that gives up stops no other") })
		}
		wg.Wait()
		require.False(t, f.held("k"))
	})
}

func TestCloseWhileTheGrantIsOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			g, err := acquire(ctx, r)
			time.Sleep(time.Second) // it ignores its ctx
			return g, err
		})
		c := client(t, f)
		var wg sync.WaitGroup
		wg.Go(func() { require.ErrorIs(t, c.Do(t.Context(), "k", never2), ErrClosed) })
		time.Sleep(time.Millisecond)
		require.NoError(t, c.Close(t.Context()))
		require.False(t, f.held("k"))
		wg.Wait()
	})
}

func TestCloseDuringRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		l := mustLock(t, c, "k")
		f.onRelease(failRelease)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, l.Release(ctx), context.Canceled)
		time.Sleep(time.Second)
		time.AfterFunc(time.Second, func() { f.onRelease(plainRelease) })
		require.NoError(t, c.Close(t.Context()), "it waits for releases in the background")
		require.False(t, f.held("k"))
	})
}

// A wait that is over when Close has given up is undone by its call: there is no engine any more.
func TestCloseGivesUpBesideAWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := New(f)
		mustLock(t, client(t, f), "k")
		closed := make(chan struct{})
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			g, err := acquire(ctx, r)
			<-closed
			return g, err
		})
		var wg sync.WaitGroup
		wg.Go(func() { _, err := c.Lock(t.Context(), "k"); assertIs(t, err, ErrClosed) })
		time.Sleep(time.Second)
		require.ErrorIs(t, c.Close(canceled()), context.Canceled)
		require.Empty(t, f.sent("release"))
		close(closed)
		wg.Wait()
		undo := f.sent("release")
		require.Len(t, undo, 1)
		require.Zero(t, undo[0].grant.Token)
		require.Equal(t, f.sent("acquire")[1].req.Owner, undo[0].grant.Owner)
	})
}
