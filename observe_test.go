package lock

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestEventKindString(t *testing.T) {
	require.Equal(t, "contended", EventContended.String())
	require.Equal(t, "released lost", EventReleasedLost.String())
	require.Equal(t, "unknown", EventKind(0).String())
	require.Equal(t, "unknown", EventKind(100).String())
}

func TestEvents(t *testing.T) {
	plain := func(*testing.T, *fake, *Client, context.Context, *Lease) {}
	for name, c := range map[string]struct {
		fn    func(*testing.T, *fake, *Client, context.Context, *Lease)
		kinds []string
		check func(*testing.T, Event)
	}{
		"a hold": {plain, []string{"granted", "released"}, func(t *testing.T, e Event) {
			require.NoError(t, e.Err)
			require.Equal(t, Token(1), e.Token)
		}},
		"a renewal": {
			func(*testing.T, *fake, *Client, context.Context, *Lease) { time.Sleep(4 * time.Second) },
			[]string{"granted", "renewed", "released"},
			func(t *testing.T, e Event) { require.Equal(t, 4*time.Second, e.Held, "held") },
		},
		"a renewal that fails first": {
			func(_ *testing.T, f *fake, _ *Client, _ context.Context, _ *Lease) {
				f.onRenew(func(ctx context.Context, g Grant, renew renewFunc) (Grant, error) {
					if len(f.sent("renew")) == 1 {
						return Grant{}, errIO
					}
					return renew(ctx, g)
				})
				time.Sleep(ttlTen / 2)
			},
			[]string{"granted", "renew failed", "renewed", "released"},
			nil,
		},
		"a loss": {
			func(_ *testing.T, f *fake, _ *Client, ctx context.Context, _ *Lease) {
				f.force("k", true)
				require.Error(t, ctx.Err())
			},
			[]string{"granted", "lost"},
			func(t *testing.T, e Event) { lostAs(t, ReasonForced, e.Err) },
		},
		"a loss found at the end": {
			func(_ *testing.T, f *fake, _ *Client, _ context.Context, _ *Lease) { f.force("k", false) },
			[]string{"granted", "released lost"},
			func(t *testing.T, e Event) { lostAs(t, ReasonTaken, e.Err) },
		},
		"a release that fails": {
			func(_ *testing.T, f *fake, _ *Client, _ context.Context, _ *Lease) { f.onRelease(failRelease) },
			[]string{"granted", "released"},
			func(t *testing.T, e Event) { require.ErrorIs(t, e.Err, errIO) },
		},
		"a nested call": {
			func(t *testing.T, _ *fake, c *Client, ctx context.Context, _ *Lease) {
				require.ErrorIs(t, c.Do(ctx, "k", never2), ErrDeadlock)
			},
			[]string{"granted", "failed", "released"},
			nil,
		},
		"renewed by hand": {
			func(t *testing.T, _ *fake, _ *Client, ctx context.Context, l *Lease) {
				require.NoError(t, l.Renew(ctx))
			},
			[]string{"granted", "renewed", "released"},
			nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, seen := newFake(), new(recorder)
				cl := client(t, f, WithObserver(seen))
				_ = cl.Do(t.Context(), "k", func(ctx context.Context, l *Lease) error {
					c.fn(t, f, cl, ctx, l)
					return nil
				})
				synctest.Wait()
				require.Equal(t, c.kinds, seen.kinds())
				for _, e := range seen.events {
					require.Equal(t, "k", e.Key)
					if e.Kind != EventFailed {
						require.Equal(t, f.sent("acquire")[0].req.Owner, e.Owner)
					}
				}
				if c.check != nil {
					c.check(t, seen.last())
				}
				time.Sleep(time.Minute)
				require.Equal(t, c.kinds, seen.kinds(), "nothing is told twice")
			})
		})
	}
}

func TestEventsOfAWait(t *testing.T) {
	type key struct{}
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			if w := r.Waiting; w != nil {
				r.Waiting = func(rec Record) {
					rec.Waiters = []Waiter{{Owner: "a"}, {Owner: "b"}, {Owner: r.Owner}, {Owner: "c"}}
					w(rec)
				}
			}
			return acquire(ctx, r)
		})
		seen, own := new(recorder), new(recorder)
		c := client(t, f, WithObserver(seen))
		l := mustLock(t, c, "k")
		time.AfterFunc(2*time.Second, func() { _ = l.Release(context.Background()) })
		ctx := context.WithValue(t.Context(), key{}, "value")
		l, err := c.Lock(ctx, "k", WithObserver(own), WithShared())
		require.NoError(t, err)
		require.Equal(t, []string{"contended", "granted"}, own.kinds())
		require.Equal(t, 2, own.events[0].Queue)
		require.Equal(t, 2*time.Second, own.last().Waited)
		require.Equal(t, l.Token(), own.last().Token)
		require.True(t, own.last().Shared)
		for _, ctx := range own.ctxs {
			require.Equal(t, "value", ctx.Value(key{}))
		}
		synctest.Wait() // for the Release
		require.ElementsMatch(t, []string{"granted", "contended", "released", "granted"}, seen.kinds(),
			"of two leases: in either order")

		_, err = c.Lock(t.Context(), "k", WithObserver(own), WithWait(time.Second))
		require.Equal(t, []string{"contended", "granted", "contended", "failed"}, own.kinds())
		require.Equal(t, time.Second, own.last().Waited)
		require.Equal(t, err, own.last().Err)
		require.Equal(t, f.sent("acquire")[2].req.Owner, own.last().Owner)
	})
}

func TestLateGrantIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, seen := newFake(), new(recorder)
		f.onAcquire(late(1))
		l, err := client(t, f, WithObserver(seen)).Lock(t.Context(), "k")
		require.NoError(t, err)
		require.NoError(t, l.Release(t.Context()))
		require.Equal(t, []string{"granted", "lost", "granted", "released"}, seen.kinds())
		require.Equal(t, deadline, seen.events[0].Waited)
	})
}

// An observer may call the Client and its leases: no mutex is held.
type nosy struct {
	t *testing.T
	c *Client
	l atomic.Pointer[Lease]

	ctx atomic.Pointer[context.Context] // of l, made before its end
}

func (n *nosy) Observe(_ context.Context, e Event) {
	_, err := n.c.Inspect(context.Background(), e.Key)
	require.NoError(n.t, err)
	l := n.l.Load()
	if l != nil {
		_ = l.Err()
		_ = l.Deadline()
	}
	if e.Kind == EventLost {
		if (*n.ctx.Load()).Err() == nil {
			n.t.Error("contexts end before observers are told")
		}
	}
}

func TestObserverUnderNoMutex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		n := &nosy{t: t}
		n.c = client(t, f)
		l, err := n.c.Lock(t.Context(), "k", WithObserver(n))
		require.NoError(t, err)
		n.l.Store(l)
		ctx := l.Context()
		n.ctx.Store(&ctx)
		time.Sleep(5 * time.Second)
		f.onRenew(failRenew)
		<-l.Context().Done()
		time.Sleep(time.Nanosecond)
		n.l.Store(nil)
		l = mustLock(t, n.c, "l", WithObserver(n))
		require.NoError(t, l.Release(t.Context()))
	})
}

// A slow observer gets the events of a lease one after another.
func TestEventsOfALeaseAreInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, seen := newFake(), new(recorder)
		slow := observerFunc(func(_ context.Context, e Event) {
			if e.Kind == EventRenewed {
				time.Sleep(time.Second)
			}
		})
		l := mustLock(t, client(t, f, WithObserver(slow), WithObserver(seen)), "k")
		for len(f.sent("renew")) == 0 {
			time.Sleep(time.Millisecond)
		}
		require.NoError(t, l.Release(t.Context()), "it does not wait for the observer")
		require.Equal(t, []string{"granted"}, seen.kinds())
		time.Sleep(2 * time.Second)
		require.Equal(t, []string{"granted", "renewed", "released"}, seen.kinds())
	})
}

type observerFunc func(context.Context, Event)

func (f observerFunc) Observe(ctx context.Context, e Event) { f(ctx, e) }

// So does a grant's before that of a loss which is told meanwhile.
// A store that tells of a loss does not wait for Observers: it may have others to tell.
func TestNoticeWaitsForNoObserver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		slow := make(chan struct{})
		c := client(t, f, WithObserver(observerFunc(func(_ context.Context, e Event) {
			if e.Kind == EventLost && e.Key == "a" {
				<-slow
			}
		})))
		mustLock(t, c, "a")
		b := mustLock(t, c, "b")
		go func() {
			f.force("a", true)
			f.force("b", true)
		}()
		synctest.Wait()
		require.Error(t, b.Context().Err())
		close(slow)
	})
}

func TestGrantedComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, seen := newFake(), new(recorder)
		slow := observerFunc(func(_ context.Context, e Event) {
			if e.Kind == EventGranted {
				time.Sleep(time.Second)
			}
		})
		time.AfterFunc(time.Second/2, func() { f.force("k", true) })
		_, err := client(t, f, WithObserver(slow), WithObserver(seen)).TryLock(t.Context(), "k")
		lostAs(t, ReasonForced, err)
		require.Equal(t, []string{"granted", "lost", "failed"}, seen.kinds())
	})
}

// TestObserverClosesWhileAnotherCallWaits: the store tells a call that it waits, and that is where the
// loss of another lease is noticed. Its Observer closes the Client, which waits for the call.
func TestObserverClosesWhileAnotherCallWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		var c *Client
		closed := make(chan error, 1)
		c = New(f, WithTTL(ttlTen), WithObserver(observerFunc(func(ctx context.Context, e Event) {
			if e.Kind == EventLost {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
				defer cancel()
				closed <- c.Close(ctx)
			}
		})))
		w := new(wall).install(c)
		other := client(t, f)
		mustLock(t, c, "lost", WithRenewal(false))
		mustLock(t, other, "k")
		f.onAcquire(func(ctx context.Context, req Request, acquire acquireFunc) (Grant, error) {
			w.jump(ttlTen)
			return acquire(ctx, req)
		})
		_, err := c.Lock(t.Context(), "k")
		require.ErrorIs(t, err, ErrClosed)
		require.NoError(t, <-closed)
	})
}
