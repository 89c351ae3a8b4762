package lock

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A program closes its store when Close has returned: a release in flight must be over.
func TestCloseWaitsForAReleaseInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		l := mustLock(t, c, "k")
		f.onRelease(func(ctx context.Context, g Grant, release releaseFunc) error {
			time.Sleep(time.Second)
			return release(ctx, g)
		})
		var wg sync.WaitGroup
		wg.Go(func() { assertNoError(t, l.Release(t.Context())) })
		time.Sleep(time.Millisecond)
		require.NoError(t, c.Close(t.Context()))
		require.False(t, f.held("k"))
		wg.Wait()
		require.Len(t, f.sent("release"), 1)
	})
}

// assertNoError is require.NoError for goroutines beside the test's.
func assertNoError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// assertIs is require.ErrorIs for goroutines beside the test's.
func assertIs(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("%v, want %v", err, target)
	}
}

// A release whose ctx ends goes on in the background, also when Close has begun.
func TestReleaseGoesOnWhileClosing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		l := mustLock(t, c, "k")
		f.onRelease(func(ctx context.Context, g Grant, release releaseFunc) error {
			if len(f.sent("release")) == 1 {
				<-ctx.Done()
				return ctx.Err()
			}
			return release(ctx, g)
		})
		var wg sync.WaitGroup
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := l.Release(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
		time.Sleep(time.Millisecond)
		require.NoError(t, c.Close(t.Context()))
		wg.Wait()
		require.False(t, f.held("k"))
		require.Len(t, f.sent("release"), 2)
	})
}

// Close sends again what had failed before.
func TestCloseSendsAFailedReleaseAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f, WithBackoff(time.Hour, time.Hour))
		l := mustLock(t, c, "k")
		f.onRelease(failRelease)
		require.ErrorIs(t, l.Release(t.Context()), errIO)
		f.onRelease(plainRelease)
		start := time.Now()
		require.NoError(t, c.Close(t.Context()))
		require.Zero(t, time.Since(start), "at once")
		require.False(t, f.held("k"))
	})
}

// Close says at once what it cannot release, and why.
func TestCloseAfterTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := New(f)
		for i := range 5 {
			mustLock(t, c, fmt.Sprint("k", i))
		}
		closed := fmt.Errorf("%w: the pool is closed", ErrClosed)
		f.onRelease(func(context.Context, Grant, releaseFunc) error { return closed })
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err := c.Close(ctx)
		require.ErrorIs(t, err, closed)
		require.Zero(t, time.Since(start))
		require.ErrorContains(t, err, `5 locks are left to their TTL: "k`)
		require.ErrorContains(t, err, "and 2 more: closed: the pool is closed")
		require.Equal(t, err, c.Close(t.Context()), "for good")
	})
}

// When Close gives up, it names the keys and the store's error, which the end of ctx does
// not hide.
func TestCloseNamesWhatItLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, seen := newFake(), new(recorder)
		c := New(f, WithObserver(seen))
		mustLock(t, c, "k")
		f.onRelease(failRelease)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := c.Close(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, errIO)
		require.ErrorContains(t, err, `1 lock is left to its TTL: "k": store unavailable: connection reset`)
		synctest.Wait()
		require.Equal(t, []string{"granted", "released"}, seen.kinds(), "events come in pairs")
	})
}

// What the store has said of one lease is not hidden by another, which it has not answered.
func TestCloseTellsTheStoresError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := New(f, WithTTL(ttlTen))
		mustLock(t, c, "frozen")
		mustLock(t, c, "failed")
		f.onRelease(func(ctx context.Context, g Grant, _ releaseFunc) error {
			if g.Key == "failed" && len(f.sent("release")) <= 2 {
				return errIO
			}
			<-ctx.Done()
			return ctx.Err()
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := c.Close(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, errIO)
		require.ErrorContains(t, err, `2 locks are left to their TTL: "frozen", "failed": store unavailable: connection reset`)
	})
}

// An Observer may call any method of the lease that an event is about, and of its Client.
func TestObserverMayCallAnything(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		on   EventKind
		call func(c *Client, l *Lease) error
		want error
	}{
		"renew on renewed":        {EventRenewed, func(_ *Client, l *Lease) error { return l.Renew(ctx) }, nil},
		"renew on renew failed":   {EventRenewFailed, func(_ *Client, l *Lease) error { return l.Renew(ctx) }, ErrUnavailable},
		"renew on lost":           {EventLost, func(_ *Client, l *Lease) error { return l.Renew(ctx) }, ErrLost},
		"renew on released":       {EventReleased, func(_ *Client, l *Lease) error { return l.Renew(ctx) }, ErrReleased},
		"release on granted":      {EventGranted, func(_ *Client, l *Lease) error { return l.Release(ctx) }, nil},
		"release on renewed":      {EventRenewed, func(_ *Client, l *Lease) error { return l.Release(ctx) }, nil},
		"release on renew failed": {EventRenewFailed, func(_ *Client, l *Lease) error { return l.Release(ctx) }, nil},
		"release on lost":         {EventLost, func(_ *Client, l *Lease) error { return l.Release(ctx) }, ErrLost},
		"release on released":     {EventReleased, func(_ *Client, l *Lease) error { return l.Release(ctx) }, nil},
		"close on contended":      {EventContended, func(c *Client, _ *Lease) error { return c.Close(ctx) }, nil},
		"close on granted":        {EventGranted, func(c *Client, _ *Lease) error { return c.Close(ctx) }, nil},
		"close on renewed":        {EventRenewed, func(c *Client, _ *Lease) error { return c.Close(ctx) }, nil},
		"close on lost":           {EventLost, func(c *Client, _ *Lease) error { return c.Close(ctx) }, nil},
		"close on released":       {EventReleased, func(c *Client, _ *Lease) error { return c.Close(ctx) }, nil},
		"close on failed":         {EventFailed, func(c *Client, _ *Lease) error { return c.Close(ctx) }, nil},
		"do on granted": {EventGranted, func(c *Client, _ *Lease) error {
			return c.Do(ctx, "other", func(context.Context, *Lease) error { return nil })
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				cl := New(f, WithTTL(ttlTen))
				called := false
				var got error
				o := observerFunc(func(_ context.Context, e Event) {
					if e.Kind != c.on || called || e.Key != "k" {
						return
					}
					called = true
					var of *Lease
					for l := range cl.Held() {
						of = l
					}
					if of == nil {
						of = lastLease.Load()
					}
					got = c.call(cl, of)
				})
				everyEvent(t, f, cl, o)
				synctest.Wait()
				require.True(t, called)
				if c.want == nil {
					require.NoError(t, got)
				} else {
					require.ErrorIs(t, got, c.want)
				}
				require.NoError(t, cl.Close(ctx))
				require.Empty(t, leftovers(cl))
				require.False(t, f.held("k"))
			})
		})
	}
}

var lastLease atomic.Pointer[Lease]

// everyEvent makes o see an event of each kind, as far as it leaves the Client open.
func everyEvent(t *testing.T, f *fake, c *Client, o Observer) {
	t.Helper()
	ctx := t.Context()
	lock := func(opts ...Option) *Lease {
		l, err := c.Lock(ctx, "k", append(opts, WithObserver(o))...)
		if err != nil {
			return nil
		}
		lastLease.Store(l)
		return l
	}
	if l := lock(); l != nil {
		time.Sleep(ttlTen) // renewed
		f.onRenew(failRenew)
		time.Sleep(ttlTen / 3) // renew failed
		f.onRenew(plainRenew)
		time.Sleep(ttlTen / 3)
		other, err := c.Lock(ctx, "k", WithWait(time.Second), WithObserver(o)) // contended, failed
		if err == nil {
			_ = other.Release(ctx)
		}
		_ = l.Release(ctx)
	}
	if l := lock(); l != nil {
		f.force("k", true) // lost
		_ = l.Release(ctx)
	}
	time.Sleep(time.Minute)
}

// nosyContext is a caller's context that asks something of a lease whenever it is asked.
type nosyContext struct {
	context.Context
	ask func()
}

func (c *nosyContext) Done() <-chan struct{} { c.ask(); return c.Context.Done() }
func (c *nosyContext) Err() error            { c.ask(); return c.Context.Err() }
func (c *nosyContext) Value(key any) any     { c.ask(); return c.Context.Value(key) }
func (c *nosyContext) Deadline() (time.Time, bool) {
	c.ask()
	return c.Context.Deadline()
}

// No code of the caller runs under the engine's mutex: his ctx may ask his lease.
func TestContextThatAsksItsLease(t *testing.T) {
	f := newFake()
	c := client(t, f, WithObserver(new(recorder)))
	l := mustLock(t, c, "k")
	ends(t, func() {
		ctx := &nosyContext{context.Background(), func() { _ = l.Err(); _ = l.Deadline() }}
		assertNoError(t, l.Renew(ctx))
		assertNoError(t, c.Do(ctx, "l", func(ctx context.Context, l *Lease) error { return l.Renew(ctx) }))
		assertIs(t, errOf(c.Lock(ctx, "k", WithWait(time.Millisecond))), ErrHeld)
		assertNoError(t, l.Release(ctx))
		assertNoError(t, c.Close(ctx))
	})
}

// Nor does it run there when a call fails, and it matters whether his ctx has ended.
func TestContextThatAsksItsLeaseInTrouble(t *testing.T) {
	for name, call := range map[string]func(c *Client, f *fake, l *Lease, ctx *nosyContext) (got, want error){
		"renew": func(_ *Client, _ *fake, l *Lease, ctx *nosyContext) (_, _ error) {
			return l.Renew(ctx), ErrUnavailable
		},
		"release": func(_ *Client, _ *fake, l *Lease, ctx *nosyContext) (_, _ error) {
			return l.Release(ctx), ErrUnavailable
		},
		"do": func(c *Client, _ *fake, _ *Lease, ctx *nosyContext) (_, _ error) {
			return c.Do(ctx, "l", func(context.Context, *Lease) error { return errWork }), errWork
		},
		"a grant that comes when ctx has ended": func(c *Client, f *fake, _ *Lease, ctx *nosyContext) (_, _ error) {
			var end context.CancelCauseFunc
			ctx.Context, end = context.WithCancelCause(ctx.Context)
			f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
				defer end(errWork)
				return acquire(ctx, r)
			})
			return errOf(c.Lock(ctx, "l")), errWork
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			c := New(f, WithObserver(new(recorder)))
			l := mustLock(t, c, "k")
			f.onRenew(failRenew)
			f.onRelease(failRelease)
			ends(t, func() {
				got, want := call(c, f, l, &nosyContext{context.Background(), func() { _ = l.Err() }})
				assertIs(t, got, want)
				f.onRelease(plainRelease)
				assertNoError(t, c.Close(context.Background()))
			})
		})
	}
}

// ends fails t if f waits for itself.
func ends(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("it waits for itself")
	}
}

// A release that finds the loss returns it; Err and Cause say both why the lease ended.
func TestErrAgreesWithCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		l := mustLock(t, c, "k")
		ctx := l.Context()
		f.force("k", false)
		for range 2 {
			lostAs(t, ReasonTaken, l.Release(t.Context()))
			require.ErrorIs(t, l.Err(), ErrReleased)
			require.Equal(t, l.Err(), context.Cause(ctx))
		}
	})
}

// Options of a nested call that its outer lease does not have are refused, not dropped.
func TestNestedOptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := map[string]string{"who": "me"}
		c := client(t, newFake(), WithReentrant(true), WithMetadata(m))
		nothing := func(context.Context, *Lease) error { return nil }
		require.NoError(t, c.Do(t.Context(), "k", func(ctx context.Context, _ *Lease) error {
			for name, o := range map[string]Option{
				"TTL 1s: the outer lease has 10s":     WithTTL(time.Second),
				"WithMetadata":                        WithMetadata(map[string]string{"who": "you"}),
				"WithObserver":                        WithObserver(new(recorder)),
				"WithRenewal":                         WithRenewal(false),
				"drift 1s: the outer lease has 102ms": WithDrift(time.Second),
				"WithBackoff":                         WithBackoff(time.Second, time.Second),
			} {
				err := c.Do(ctx, "k", never2, o)
				require.ErrorIs(t, err, ErrInvalid, name)
				require.ErrorContains(t, err, name)
			}
			require.NoError(t, c.TryDo(ctx, "k", nothing, WithTTL(ttlTen), WithMetadata(m), WithRenewal(true), WithShared()))
			return c.Do(ctx, "k", nothing, WithWait(time.Second))
		}))
	})
}

// An Observer that panics, or ends its goroutine as a failing test does, leaves no lease.
func TestObserverThatPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		boom := observerFunc(func(_ context.Context, e Event) {
			if e.Kind == EventGranted {
				panic("granted")
			}
		})
		require.PanicsWithValue(t, "granted", func() { _ = c.Do(t.Context(), "k", never2, WithObserver(boom)) })
		time.Sleep(time.Second)
		require.False(t, f.held("k"))
		require.Empty(t, c.engine.calls)
	})
}

// A panic while one key of a DoAll is given back leaves none of the others.
func TestObserverThatPanicsAtARelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f, WithObserver(observerFunc(func(_ context.Context, e Event) {
			if e.Kind == EventReleased && e.Key == "b" {
				panic("released")
			}
		})))
		require.PanicsWithValue(t, "released", func() { _ = c.Do(t.Context(), "b", nop) })
		require.PanicsWithValue(t, "released", func() {
			_ = c.DoAll(t.Context(), []string{"a", "b"}, func(context.Context, []*Lease) error { return nil })
		})
		synctest.Wait()
		require.False(t, f.held("a"))
		require.False(t, f.held("b"))
		require.Empty(t, c.engine.calls)
	})
}

// An Observer may call Close when it hears how the lease of a call has ended.
func TestObserverMayCloseAtTheEnd(t *testing.T) {
	ctx := context.Background()
	for name, run := range map[string]func(c *Client, work func()) error{
		"do": func(c *Client, work func()) error {
			return c.Do(ctx, "k", func(context.Context, *Lease) error { work(); return nil })
		},
		"doall": func(c *Client, work func()) error {
			return c.DoAll(ctx, []string{"k", "l"}, func(context.Context, []*Lease) error { work(); return nil })
		},
		"lead": func(c *Client, work func()) error {
			return c.Lead(ctx, "k", func(context.Context, *Lease) error { work(); return nil })
		},
	} {
		for kind, lost := range map[EventKind]bool{EventReleased: false, EventReleasedLost: true} {
			t.Run(name+" "+kind.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFake()
					var c *Client
					closed := false
					c = New(f, WithObserver(observerFunc(func(_ context.Context, e Event) {
						if e.Kind == kind && !closed {
							closed = true
							assertNoError(t, c.Close(ctx))
						}
					})))
					err := run(c, func() {
						if lost {
							f.force("k", false)
						}
					})
					switch {
					case !lost:
						require.NoError(t, err)
					case name == "lead":
						require.ErrorIs(t, err, ErrClosed)
					default:
						lostAs(t, ReasonTaken, err)
					}
					require.True(t, closed)
					require.Empty(t, leftovers(c))
					require.False(t, f.held("k"))
				})
			})
		}
	}
}

// An Observer may call Close when it hears of a loss that only the call itself has noticed.
func TestObserverMayCloseOnALateLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		var c *Client
		closed := make(chan error, 1)
		c = New(f, WithTTL(ttlTen), WithObserver(observerFunc(func(_ context.Context, e Event) {
			switch e.Kind {
			case EventGranted:
				c.engine.mu.Lock()
				c.engine.timer.Stop()
				c.engine.timerAt = never
				c.engine.mu.Unlock()
				time.Sleep(deadline)
			case EventLost:
				closed <- c.Close(context.Background())
			}
		})))
		err := c.Do(t.Context(), "k", never2)
		require.True(t, errors.Is(err, ErrClosed) || errors.Is(err, ErrLost), err)
		require.NoError(t, <-closed)
	})
}

// An answer that comes after the deadline revives nothing, also when the timer has had no
// chance to end the lease before.
func TestOverdueRenewalRevivesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		f.onRenew(func(_ context.Context, g Grant, _ renewFunc) (Grant, error) {
			c.engine.mu.Lock()
			c.engine.timer.Stop()
			c.engine.timerAt = never
			c.engine.mu.Unlock()
			time.Sleep(deadline)
			g.Start = time.Now()
			return g, nil // the store has prolonged it
		})
		l := mustLock(t, c, "k")
		lostAs(t, ReasonUnreachable, l.Renew(t.Context()))
		time.Sleep(time.Second)
		require.Len(t, f.sent("release"), 1, "given back")
	})
}

// A lease that waits for its turn while its holder renews it is not renewed beside that.
func TestOneCallAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		l := mustLock(t, c, "k")
		f.onRenew(func(ctx context.Context, g Grant, renew renewFunc) (Grant, error) {
			c.engine.mu.Lock()
			c.engine.ready[0] = append(c.engine.ready[0], l)
			c.engine.mu.Unlock()
			_ = l.Err() // which dispatches
			time.Sleep(time.Second)
			if n := len(f.sent("renew")); n != 1 {
				t.Error(n, "renewals at once")
			}
			return renew(ctx, g)
		})
		require.NoError(t, l.Renew(t.Context()))
	})
}

func TestEventsComeInPairs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, seen := newFake(), new(recorder)
		c := client(t, f)
		everyEvent(t, f, c, seen)
		synctest.Wait()
		waits, holds := make(map[string]int), make(map[string]int)
		for _, e := range seen.events {
			require.Equal(t, "fake", e.Store)
			switch e.Kind {
			case EventContended:
				waits[e.Owner]++
			case EventFailed:
				waits[e.Owner]--
			case EventGranted:
				waits[e.Owner] = 0
				holds[e.Owner]++
			case EventLost, EventReleased, EventReleasedLost:
				holds[e.Owner]--
			}
		}
		require.Len(t, holds, 2)
		for owner, n := range holds {
			require.Zero(t, n, owner)
		}
		for owner, n := range waits {
			require.Zero(t, n, owner)
		}
	})
}
