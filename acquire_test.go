package lock

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestOwners(t *testing.T) {
	seen := make(map[string]bool)
	for range 10000 {
		owner := newOwner("client_8")
		require.NoError(t, checkOwner(owner))
		require.Len(t, owner, 30)
		require.False(t, seen[owner])
		seen[owner] = true
	}
}

func TestRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		m := map[string]string{"who": "me"}
		_, err := c.Lock(t.Context(), "k", WithShared(), WithMetadata(m), WithTTL(time.Second), WithRenewal(false))
		require.NoError(t, err)
		m["who"] = "changed later"
		req := f.sent("acquire")[0].req
		require.Equal(t, "k", req.Key)
		require.True(t, req.Shared)
		require.True(t, req.Wait)
		require.Equal(t, time.Second, req.TTL)
		require.Equal(t, "me", req.Metadata["who"])
		require.Nil(t, req.Waiting, "nobody asked")
		_, err = c.TryLock(t.Context(), "l", WithRenewal(false))
		require.NoError(t, err)
		require.False(t, f.sent("acquire")[1].req.Wait)
		require.NotEqual(t, req.Owner, f.sent("acquire")[1].req.Owner)
		time.Sleep(time.Minute)
	})
}

func TestTryOnHeldKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		l := mustLock(t, c, "k", WithMetadata(map[string]string{"who": "me"}))
		for name, try := range map[string]func() error{
			"trylock": func() error { _, err := c.TryLock(t.Context(), "k"); return err },
			"trydo":   func() error { return c.TryDo(t.Context(), "k", never2) },
			"lock":    func() error { _, err := c.Lock(t.Context(), "k", WithWait(0)); return err },
			"do":      func() error { return c.Do(t.Context(), "k", never2, WithWait(0)) },
		} {
			start := time.Now()
			err := try()
			failedAs(t, name, "k", err)
			require.ErrorIs(t, err, ErrHeld)
			require.Contains(t, err.Error(), l.grant.Owner)
			require.Contains(t, err.Error(), `who="me"`)
			require.Zero(t, time.Since(start))
		}
		require.Empty(t, f.sent("release"), "a plain refusal leaves nothing to undo")
	})
}

// never2 is a function of Do that must not run.
func never2(context.Context, *Lease) error { panic("it must not run") }

func TestWaitIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		l := mustLock(t, c, "k")
		start := time.Now()
		_, err := c.Lock(t.Context(), "k", WithWait(time.Minute))
		require.Equal(t, time.Minute, time.Since(start))
		failedAs(t, "lock", "k", err)
		require.ErrorIs(t, err, ErrHeld)
		require.NotErrorIs(t, err, context.DeadlineExceeded)
		var held *HeldError
		require.ErrorAs(t, err, &held)
		require.Equal(t, l.grant.Owner, held.Record.Holders[0].Owner)
		require.Contains(t, err.Error(), "the wait of 1m0s is over")
		time.Sleep(time.Nanosecond)
		undo := f.sent("release")
		require.Len(t, undo, 1, "its place in line")
		require.Equal(t, Grant{Key: "k", Owner: f.sent("acquire")[1].req.Owner}, undo[0].grant)
	})
}

// The store's error may say less than it said when the wait began.
func TestWaitIsOverWithoutRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			r.Waiting(Record{Key: r.Key, Holders: []Holder{{Owner: "somebody"}}})
			return freezeAcquire(ctx, r, acquire)
		})
		_, err := client(t, f).Lock(t.Context(), "k", WithWait(time.Second))
		require.ErrorIs(t, err, ErrHeld)
		require.NotErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, ErrUnavailable)
		require.Contains(t, err.Error(), "held by somebody")
	})
}

func TestCallersContextEnds(t *testing.T) {
	why := errors.New("shutting down")
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		mustLock(t, c, "k")

		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, why)
		defer cancel()
		_, err := c.Lock(ctx, "k", WithWait(time.Minute))
		failedAs(t, "lock", "k", err)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, ErrHeld)
		require.ErrorIs(t, err, why)
		require.Equal(t, 1, strings.Count(err.Error(), "held by"), err.Error())

		f.onAcquire(freezeAcquire)
		ctx2, cancel2 := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel2)
		_, err = c.Lock(ctx2, "k")
		require.ErrorIs(t, err, context.Canceled)
		require.NotErrorIs(t, err, ErrHeld)

		n := len(f.sent("acquire"))
		_, err = c.Lock(ctx2, "k")
		require.ErrorIs(t, err, context.Canceled)
		require.Len(t, f.sent("acquire"), n, "nothing is sent when ctx has ended")
		time.Sleep(time.Nanosecond)
		require.Len(t, f.sent("release"), 2, "one undo each")
	})
}

func TestStoreTurnsEndOfContextIntoItsOwnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onAcquire(func(ctx context.Context, _ Request, _ acquireFunc) (Grant, error) {
			<-ctx.Done()
			return Grant{}, errIO
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := client(t, f).Lock(ctx, "k")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, errIO)
	})
}

func TestTryIsBoundedByTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onAcquire(freezeAcquire)
		c := client(t, f)
		for name, try := range map[string]func() error{
			"trylock": func() error { _, err := c.TryLock(t.Context(), "k"); return err },
			"trydo":   func() error { return c.TryDo(t.Context(), "k", never2) },
			"lock":    func() error { _, err := c.Lock(t.Context(), "k", WithWait(0)); return err },
		} {
			start := time.Now()
			err := try()
			require.Equal(t, ttlTen, time.Since(start))
			failedAs(t, name, "k", err)
			require.ErrorIs(t, err, ErrUnavailable)
			require.NotErrorIs(t, err, ErrHeld)
			require.Contains(t, err.Error(), "store unavailable: no answer within 10s")
		}
	})
}

// notSent is the error of a Locker that did not ask its store.
type notSent struct{ error }

func (notSent) NotSent()        {}
func (e notSent) Unwrap() error { return e.error }

func TestUnknownOutcomeIsUndone(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		wait bool
		undo bool
	}{
		"an I/O error":            {errIO, false, true},
		"a timeout":               {context.DeadlineExceeded, false, true},
		"held, plainly":           {ErrHeld, false, false},
		"held, with a record":     {&HeldError{}, false, false},
		"held, but ended":         {&HeldError{Err: context.Canceled}, false, true},
		"held, after waiting":     {&HeldError{}, true, true},
		"invalid":                 {fmt.Errorf("%w: no", ErrInvalid), true, false},
		"unsupported":             {ErrUnsupported, false, false},
		"the store is closed":     {ErrClosed, true, true},
		"never sent":              {notSent{errIO}, true, false},
		"neither grant nor error": {nil, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
					_, _ = acquire(ctx, r)
					return Grant{}, c.err
				})
				cl := client(t, f)
				try := cl.TryLock
				if c.wait {
					try = cl.Lock
				}
				l, err := try(t.Context(), "k")
				require.Nil(t, l)
				require.Error(t, err)
				for _, known := range []error{ErrHeld, ErrInvalid, ErrUnsupported, ErrClosed, errIO} {
					require.Equal(t, errors.Is(c.err, known), errors.Is(err, known), known)
				}
				notOfContext(t, err)
				plain := errors.Is(err, ErrHeld) || errors.Is(err, ErrInvalid) || errors.Is(err, ErrUnsupported) || errors.Is(err, ErrClosed)
				require.Equal(t, !plain || name == "held, but ended", errors.Is(err, ErrUnavailable))
				time.Sleep(time.Minute)
				if !c.undo {
					require.Empty(t, f.sent("release"))
					return
				}
				undo := f.sent("release")
				require.Len(t, undo, 1)
				require.Equal(t, Grant{Key: "k", Owner: f.sent("acquire")[0].req.Owner}, undo[0].grant)
			})
		})
	}
}

func TestUndoIsRetriedUntilConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			_, _ = acquire(ctx, r)
			return Grant{}, errIO
		})
		f.onRelease(failRelease)
		c := client(t, f)
		_, err := c.TryLock(t.Context(), "k")
		require.ErrorIs(t, err, errIO)
		time.Sleep(2 * time.Second)
		require.True(t, f.held("k"))
		f.onRelease(plainRelease)
		time.Sleep(time.Second)
		require.False(t, f.held("k"))
		n := len(f.sent("release"))
		require.Greater(t, n, 2)
		time.Sleep(time.Minute)
		require.Len(t, f.sent("release"), n)
	})
}

func TestUndoOnClosedStoreIsNotRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onAcquire(func(context.Context, Request, acquireFunc) (Grant, error) { return Grant{}, ErrClosed })
		f.onRelease(func(context.Context, Grant, releaseFunc) error { return ErrClosed })
		_, err := client(t, f).Lock(t.Context(), "k")
		require.ErrorIs(t, err, ErrClosed)
		time.Sleep(time.Minute)
		require.Len(t, f.sent("release"), 1)
	})
}

// late is an Acquire whose first n replies take longer than the TTL, and which heeds ctx
// only while waiting for the key.
func late(n int) func(context.Context, Request, acquireFunc) (Grant, error) {
	return func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
		g, err := acquire(ctx, r)
		if n--; n >= 0 {
			time.Sleep(deadline)
		}
		return g, err
	}
}

func TestLateGrantIsGivenBackByTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onAcquire(late(1))
		_, err := client(t, f).TryLock(t.Context(), "k")
		lostAs(t, ReasonExpired, err)
		failedAs(t, "trylock", "k", err)
		time.Sleep(time.Nanosecond)
		require.Len(t, f.sent("release"), 1)
		require.NotZero(t, f.sent("release")[0].grant.Token)
	})
}

func TestLateGrantIsAskedForAgainByLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onAcquire(late(3))
		c := client(t, f)
		l, err := c.Lock(t.Context(), "k")
		require.NoError(t, err)
		require.NoError(t, l.Err())
		owners := make(map[string]bool)
		for _, s := range f.sent("acquire") {
			owners[s.req.Owner] = true
		}
		require.Len(t, owners, 4, "a new owner for each try")
		require.Len(t, f.sent("release"), 3)

		f.onAcquire(late(3))
		require.NoError(t, c.Do(t.Context(), "l", func(ctx context.Context, l *Lease) error {
			require.NoError(t, ctx.Err(), "a late grant must not have ended fn's ctx")
			return l.Err()
		}))

		f.onAcquire(late(1000))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err = c.Lock(ctx, "m")
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

func TestEarlyLossBeforeTheGrantReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		forced := 0
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			g, err := acquire(ctx, r)
			if forced++; forced <= 2 {
				f.force(r.Key, true)
			}
			return g, err
		})
		c := client(t, f)
		_, err := c.TryLock(t.Context(), "k")
		lostAs(t, ReasonForced, err)
		l, err := c.Lock(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, Token(3), l.Token())
		require.NoError(t, l.Err())
		require.True(t, f.held("k"))
	})
}

func TestGrantAfterTheCallersContextEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		ctx, cancel := context.WithCancel(t.Context())
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			g, err := acquire(ctx, r)
			cancel()
			return g, err
		})
		err := client(t, f).Do(ctx, "k", never2)
		require.ErrorIs(t, err, context.Canceled)
		time.Sleep(time.Nanosecond)
		require.False(t, f.held("k"))
	})
}

// The caller's ctx may end between two looks at it: the error is still its own, and says who holds.
func TestContextEndsWhileAnErrorIsExplained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		mustLock(t, client(t, f), "k")
		why := errors.New("why")
		parent, cancel := context.WithCancelCause(t.Context())
		ctx := &lastLook{parent, func() { cancel(why) }, false}
		f.onAcquire(func(actx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			g, err := acquire(actx, r)
			ctx.armed = true
			return g, err
		})
		_, err := c.TryLock(ctx, "k")
		require.ErrorIs(t, err, ErrHeld)
	})
}

// lastLook ends when it is asked whether it has.
type lastLook struct {
	context.Context
	end   func()
	armed bool
}

func (c *lastLook) Err() error {
	err := c.Context.Err()
	if c.armed {
		c.armed = false
		c.end()
		synctest.Wait()
	}
	return err
}
