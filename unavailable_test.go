package lock

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	// errTimeout is context.DeadlineExceeded, as a dial's timeout is.
	errTimeout = fmt.Errorf("%w: %w", errIO, context.DeadlineExceeded)
	errDown    = fmt.Errorf("%w: %w", ErrUnavailable, errTimeout)
)

// notOfContext fails the test if err passes for the end of the caller's ctx, which goes on.
func notOfContext(t *testing.T, err error) {
	t.Helper()
	require.NotErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, context.Canceled)
}

// An outage must never look as if somebody else held the key, or the caller had given up.
func TestOutageIsNotHeld(t *testing.T) {
	for name, c := range map[string]struct {
		acquire func(context.Context, Request, acquireFunc) (Grant, error)
		wraps   error
	}{
		"frozen": {freezeAcquire, nil},
		"dead":   {func(context.Context, Request, acquireFunc) (Grant, error) { return Grant{}, errIO }, errIO},
		"in trouble to the end": {func(ctx context.Context, _ Request, _ acquireFunc) (Grant, error) {
			<-ctx.Done()
			return Grant{}, fmt.Errorf("%w: %w", ctx.Err(), errIO)
		}, errIO},
		"timed out":            {func(context.Context, Request, acquireFunc) (Grant, error) { return Grant{}, errTimeout }, errIO},
		"unavailable, it says": {func(context.Context, Request, acquireFunc) (Grant, error) { return Grant{}, errDown }, errIO},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				f.onAcquire(c.acquire)
				cl := client(t, f)
				for op, err := range map[string]error{
					"do":      cl.Do(t.Context(), "k", never2, WithWait(2*time.Second)),
					"trydo":   cl.TryDo(t.Context(), "k", never2),
					"lock":    errOf(cl.Lock(t.Context(), "k", WithWait(2*time.Second))),
					"trylock": errOf(cl.TryLock(t.Context(), "k")),
				} {
					failedAs(t, op, "k", err)
					require.ErrorIs(t, err, ErrUnavailable)
					require.NotErrorIs(t, err, ErrHeld)
					notOfContext(t, err)
					require.False(t, Refused(err, "k"))
					require.ErrorContains(t, err, "store unavailable")
					if c.wraps != nil {
						require.ErrorIs(t, err, c.wraps)
					}
				}
			})
		})
	}
}

// The wait was for a key that was seen held; that the store then failed is told beside it.
func TestHeldAndThenAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onAcquire(func(ctx context.Context, r Request, _ acquireFunc) (Grant, error) {
			r.Waiting(Record{Holders: []Holder{{Owner: "somebody"}}})
			<-ctx.Done()
			return Grant{}, &HeldError{Err: fmt.Errorf("%w: %w", ctx.Err(), errIO)}
		})
		_, err := client(t, f).Lock(t.Context(), "k", WithWait(time.Second))
		require.ErrorIs(t, err, ErrHeld)
		require.ErrorIs(t, err, ErrUnavailable)
		require.ErrorIs(t, err, errIO)
		notOfContext(t, err)
		require.ErrorContains(t, err, "held by somebody")
	})
}

// A wait without a bound that the store's trouble ends is no refusal, whoever held the key
// when it began.
func TestOutageEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onAcquire(func(_ context.Context, r Request, _ acquireFunc) (Grant, error) {
			if r.Waiting != nil {
				r.Waiting(Record{Holders: []Holder{{Owner: "somebody"}}})
			}
			time.Sleep(Patience)
			return Grant{}, errIO
		})
		_, err := client(t, f, WithObserver(new(recorder))).Lock(t.Context(), "k")
		require.ErrorIs(t, err, ErrUnavailable)
		require.NotErrorIs(t, err, ErrHeld)
	})
}

func TestStoreErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, seen := newFake(), new(recorder)
		c := client(t, f, WithObserver(seen))
		l := mustLock(t, c, "k")
		f.onRenew(failRenew)
		err := l.Renew(t.Context())
		require.ErrorIs(t, err, ErrUnavailable)
		require.ErrorIs(t, err, errIO)
		require.ErrorIs(t, seen.last().Err, ErrUnavailable)
		f.onRelease(failRelease)
		err = l.Release(t.Context())
		require.ErrorIs(t, err, ErrUnavailable)
		require.ErrorIs(t, err, errIO)
		require.ErrorIs(t, seen.last().Err, ErrUnavailable)

		ended, cancel := context.WithCancel(t.Context())
		cancel()
		require.Equal(t, context.Canceled, storeError(ended, context.Canceled), "the caller's ctx is not the store")
		for _, err := range []error{context.DeadlineExceeded, context.Canceled, errDown, &LostError{Err: errTimeout}} {
			notOfContext(t, storeError(t.Context(), err))
		}
		require.ErrorIs(t, storeError(t.Context(), context.DeadlineExceeded), ErrUnavailable)
		var lost *LostError
		require.ErrorAs(t, storeError(t.Context(), &LostError{Err: errTimeout}), &lost)
		require.NoError(t, storeError(ended, nil))
		for _, known := range []error{ErrHeld, ErrLost, ErrUnavailable, ErrClosed, ErrInvalid, ErrUnsupported} {
			require.Equal(t, known, storeError(t.Context(), known))
		}
	})
}

// A lease that a failing store has cost is lost, which is not to be repeated as an
// unavailable store's call may be.
func TestLossIsNotUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onRenew(func(context.Context, Grant, renewFunc) (Grant, error) { return Grant{}, errTimeout })
		err := client(t, f).Do(t.Context(), "k", func(ctx context.Context, _ *Lease) error {
			<-ctx.Done()
			return nil
		})
		lostAs(t, ReasonUnreachable, err)
		require.NotErrorIs(t, err, ErrUnavailable)
		require.ErrorIs(t, err, errIO)
		notOfContext(t, err)
	})
}

func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		mustLock(t, c, "taken")
		err := c.TryDo(t.Context(), "taken", never2)
		require.True(t, Refused(err, "taken"))
		require.False(t, Refused(err, "k"))
		require.False(t, Refused(fmt.Errorf("job: %w", err), "taken"), "wrapped")
		require.True(t, Refused(errOf(c.Lock(t.Context(), "taken", WithWait(time.Second))), "taken"))

		for _, wrap := range []string{"%w", "step 2: %w"} {
			err = c.TryDo(t.Context(), "k", func(ctx context.Context, _ *Lease) error {
				return fmt.Errorf(wrap, c.TryDo(ctx, "taken", never2))
			})
			require.ErrorIs(t, err, ErrHeld)
			require.False(t, Refused(err, "k"), "fn ran")
		}
		require.False(t, Refused(nil, "k"))
		require.False(t, Refused(errors.New("x"), "k"))
		require.False(t, Refused(c.Do(t.Context(), "", never2), ""))
	})
}

func TestHeldByThisClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, seen := newFake(), new(recorder)
		c, other := client(t, f, WithObserver(seen)), client(t, f, WithObserver(seen))
		for _, x := range []struct {
			c    *Client
			same bool
		}{{c, true}, {other, false}} {
			require.NoError(t, c.Do(t.Context(), "k", func(_ context.Context, l *Lease) error {
				for _, wait := range []time.Duration{0, time.Second} {
					err := x.c.Do(t.Context(), "k", never2, WithWait(wait)) // with the outer ctx: a mistake if it is the same Client
					var held *HeldError
					require.ErrorAs(t, err, &held)
					require.Equal(t, x.same, held.SameClient)
					if x.same {
						require.ErrorContains(t, err, "held by this Client: "+l.Owner())
					}
					require.Equal(t, EventFailed, seen.last().Kind)
					require.Equal(t, x.same, seen.last().SameClient)
				}
				require.Equal(t, "contended", seen.events[len(seen.events)-2].Kind.String())
				require.Equal(t, x.same, seen.events[len(seen.events)-2].SameClient)
				return nil
			}))
		}
	})
}

func TestLossIsJoinedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		do := func(fn func(ctx context.Context, l *Lease) error) error {
			return c.Do(t.Context(), "k", func(ctx context.Context, l *Lease) error {
				f.force("k", true)
				return fn(ctx, l)
			})
		}
		want := `lock: do "k": lost: forced (token %d)`
		require.EqualError(t, do(func(context.Context, *Lease) error { return nil }), fmt.Sprintf(want, 1))
		err := do(func(ctx context.Context, _ *Lease) error { return fmt.Errorf("step 2: %w", context.Cause(ctx)) })
		require.EqualError(t, err, "step 2: lock: lost: forced (token 2)")
		lostAs(t, ReasonForced, err)
		err = do(func(_ context.Context, l *Lease) error { return l.Err() })
		require.EqualError(t, err, "lock: lost: forced (token 3)")
		err = do(func(ctx context.Context, _ *Lease) error { return ctx.Err() })
		require.EqualError(t, err, fmt.Sprintf(want, 4)+"; fn: context canceled")
		require.ErrorIs(t, err, context.Canceled)
		lostAs(t, ReasonForced, err)
	})
}
