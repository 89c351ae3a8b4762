package lock

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// resign is a function that ends its candidacy at once.
func resign(context.Context, *Lease) error { return nil }

// A candidacy does not begin in an outage: a wrong address is told.
func TestLeadIsToldThatTheStoreWasNeverThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onAcquire(func(context.Context, Request, acquireFunc) (Grant, error) { return Grant{}, errIO })
		err := client(t, f).Lead(t.Context(), "k", never2)
		failedAs(t, "lead", "k", err)
		require.ErrorIs(t, err, ErrUnavailable)
		require.ErrorIs(t, err, errIO)
	})
}

// An outage that begins while a candidate waits, or leads, ends no candidacy, and is not
// made worse by it.
func TestLeadOutlivesAnOutage(t *testing.T) {
	for name, lost := range map[string]bool{"in line": false, "in office": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, seen := newFake(), new(recorder)
				c := client(t, f, WithObserver(seen))
				asked := 0
				var healed atomic.Bool
				f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
					asked++
					switch {
					case asked == 1 && lost:
						return acquire(ctx, r)
					case asked == 1:
						r.Waiting(Record{Key: r.Key})
						time.Sleep(Patience)
						return Grant{}, errIO
					case !healed.Load():
						return Grant{}, errIO
					}
					return acquire(ctx, r)
				})
				time.AfterFunc(time.Hour, func() { healed.Store(true) })
				begun, terms := time.Now(), 0
				err := c.Lead(t.Context(), "k", func(ctx context.Context, _ *Lease) error {
					if terms++; lost && terms == 1 {
						f.force("k", true)
						<-ctx.Done()
						return errIO
					}
					return nil
				})
				require.NoError(t, err)
				require.GreaterOrEqual(t, time.Since(begun), time.Hour)
				require.Less(t, time.Since(begun), time.Hour+2*time.Second)
				require.Less(t, asked, 2*3600*5/4, "half a second apart, on average")
				require.Contains(t, seen.kinds(), "failed")
				time.Sleep(time.Minute) // the undos
			})
		})
	}
}

// A grant that comes too late is an answer.
func TestLeadWhoseFirstGrantIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, asked := newFake(), 0
		first := late(1)
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			switch asked++; asked {
			case 1:
				return first(ctx, r, acquire)
			case 2, 3, 4:
				return Grant{}, errIO
			}
			return acquire(ctx, r)
		})
		require.NoError(t, client(t, f).Lead(t.Context(), "k", resign))
		require.Equal(t, 5, asked)
	})
}

// The end of ctx is told, even if it comes while an Observer hears of an outage.
func TestLeadEndsWithContextInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onAcquire(func(_ context.Context, r Request, _ acquireFunc) (Grant, error) {
			r.Waiting(Record{Key: r.Key})
			return Grant{}, errIO
		})
		ctx, cancel := context.WithCancel(t.Context())
		err := client(t, f).Lead(ctx, "k", never2, WithObserver(observerFunc(func(_ context.Context, e Event) {
			if e.Kind == EventFailed {
				cancel()
			}
		})))
		failedAs(t, "lead", "k", err)
		require.ErrorIs(t, err, context.Canceled)
	})
}

// A grant that is lost as soon as it is there must not make the candidate spin.
func TestLeadPausesAfterALoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		terms := 0
		err := client(t, f).Lead(ctx, "k", func(ctx context.Context, _ *Lease) error {
			terms++
			f.force("k", true)
			<-ctx.Done()
			return nil
		})
		failedAs(t, "lead", "k", err)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Less(t, terms, 60*100)
		require.Greater(t, terms, 60)
	})
}

// A loss that only the release shows is one.
func TestLeadAfterALossThatTheReleaseShows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, terms := newFake(), 0
		err := client(t, f).Lead(t.Context(), "k", func(context.Context, *Lease) error {
			if terms++; terms == 1 {
				f.force("k", false)
				return errIO
			}
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, 2, terms)
	})
}

func TestLeadWaitsLongerThanOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, seen := newFake(), new(recorder)
		c := client(t, f, WithWait(time.Second), WithObserver(seen))
		l := mustLock(t, c, "k")
		time.AfterFunc(time.Minute, func() { _ = l.Release(context.Background()) })
		begun := time.Now()
		require.NoError(t, c.Lead(t.Context(), "k", resign))
		require.GreaterOrEqual(t, time.Since(begun), time.Minute)
		require.NotContains(t, seen.kinds(), "failed", "its place in line was kept")
		require.ErrorIs(t, c.Lead(t.Context(), "k", never2, WithWait(0)), ErrInvalid)
		require.ErrorIs(t, c.Lead(t.Context(), "k", never2, WithShared()), ErrInvalid)
		require.ErrorIs(t, c.Lead(t.Context(), "k", never2, WithReentrant(true)), ErrInvalid)
		require.ErrorIs(t, c.Lead(t.Context(), "k", nil), ErrInvalid)
	})
}

func TestLeadPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		require.PanicsWithError(t, "connection reset", func() {
			_ = c.Lead(t.Context(), "k", func(context.Context, *Lease) error { panic(errIO) })
		})
		require.False(t, f.held("k"))
	})
}

// Close ends a candidate that pauses, and the next try of one that leads.
func TestLeadIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f, WithBackoff(time.Second, time.Second))
		f.onAcquire(func(_ context.Context, r Request, _ acquireFunc) (Grant, error) {
			r.Waiting(Record{Key: r.Key})
			return Grant{}, errIO
		})
		done := make(chan error, 1)
		go func() { done <- c.Lead(t.Context(), "k", never2) }()
		synctest.Wait()
		begun := time.Now()
		require.NoError(t, c.Close(t.Context()))
		require.ErrorIs(t, <-done, ErrClosed)
		require.Zero(t, time.Since(begun))
	})
}

func TestDefaultLeadAndWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := client(t, newFake())
		t.Cleanup(func() { SetDefault(nil) })
		SetDefault(nil)
		err := Lead(t.Context(), "k", never2)
		failedAs(t, "lead", "k", err)
		require.ErrorIs(t, err, ErrNoDefault)
		records := Watch(t.Context(), "k")
		for _, err := range records {
			failedAs(t, "watch", "k", err)
			require.ErrorIs(t, err, ErrNoDefault)
		}
		SetDefault(c)
		require.NoError(t, Lead(t.Context(), "k", resign))
		for rec, err := range records {
			require.NoError(t, err)
			require.Equal(t, "k", rec.Key)
			break
		}
	})
}
