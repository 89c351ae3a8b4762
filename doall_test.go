package lock

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// neverAll is a function of DoAll that must not run.
func neverAll(context.Context, []*Lease) error { panic("it ran") }

func keysOf(all []sent) (keys []string) {
	for _, s := range all {
		keys = append(keys, s.grant.Key)
	}
	return keys
}

func TestDoAll(t *testing.T) {
	type key struct{}
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		given := []string{"c", "a", "b", "a"}
		var inner context.Context
		err := c.DoAll(context.WithValue(t.Context(), key{}, "value"), given, func(ctx context.Context, ls []*Lease) error {
			inner = ctx
			given[0] = "the caller's"
			require.Equal(t, "value", ctx.Value(key{}))
			require.Len(t, ls, 4)
			for i, key := range []string{"c", "a", "b", "a"} {
				require.Equal(t, key, ls[i].Key())
				require.NoError(t, ls[i].Err())
			}
			require.Same(t, ls[1], ls[3])
			time.Sleep(time.Hour)
			clear(ls)
			return errWork
		})
		require.Equal(t, errWork, err, "as it is")
		require.Equal(t, []string{"a", "b", "c"}, keysOf(f.sent("acquire")))
		require.Len(t, f.sent("release"), 3)
		require.ErrorIs(t, context.Cause(inner), ErrReleased)
		require.Empty(t, c.engine.calls)
		require.Empty(t, leftovers(c))
	})
}

func TestDoAllReleasesOnPanicAndGoexit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		keys := []string{"a", "b", "c"}
		require.PanicsWithValue(t, "boom", func() {
			_ = c.DoAll(t.Context(), keys, func(context.Context, []*Lease) error { panic("boom") })
		})
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = c.DoAll(t.Context(), keys, func(context.Context, []*Lease) error { runtime.Goexit(); return nil })
		}()
		<-done
		ctx, cancel := context.WithCancel(t.Context())
		require.NoError(t, c.DoAll(ctx, keys, func(context.Context, []*Lease) error { cancel(); return nil }))
		for _, key := range keys {
			require.False(t, f.held(key))
		}
		require.Len(t, f.sent("release"), 9)
		require.Empty(t, c.engine.calls)
	})
}

// A store or an Observer that panics half-way leaves nothing.
func TestDoAllGivesBackOnPanicInTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			if r.Key == "b" {
				panic("boom")
			}
			return acquire(ctx, r)
		})
		require.PanicsWithValue(t, "boom", func() { _ = c.DoAll(t.Context(), []string{"a", "b"}, neverAll) })
		synctest.Wait()
		require.False(t, f.held("a"))
		require.Empty(t, c.engine.calls)
	})
}

func TestDoAllOrNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c, other := client(t, f), client(t, f)
		mustLock(t, other, "b")
		for wait, took := range map[time.Duration]time.Duration{0: 0, time.Minute: time.Minute} {
			start := time.Now()
			err := c.DoAll(t.Context(), []string{"c", "b", "a"}, neverAll, WithWait(wait))
			require.Equal(t, took, time.Since(start))
			failedAs(t, "doall", "b", err)
			var held *HeldError
			require.ErrorAs(t, err, &held)
			require.Equal(t, "b", held.Record.Key)
			require.True(t, Refused(err, "b"))
			require.False(t, Refused(err, "a"))
			synctest.Wait()
			require.False(t, f.held("a"), "given back")
			require.False(t, f.held("c"), "not asked for")
		}
	})
}

// The wait is one for all keys, and what is had already is renewed meanwhile.
func TestDoAllWaitsOnceForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c, other := client(t, f), client(t, f)
		for i, key := range []string{"a", "b", "c"} {
			l := mustLock(t, other, key)
			time.AfterFunc(time.Duration(i+1)*time.Minute, func() { _ = l.Release(context.Background()) })
		}
		start := time.Now()
		err := c.DoAll(t.Context(), []string{"a", "b", "c"}, neverAll, WithWait(150*time.Second))
		require.Equal(t, 150*time.Second, time.Since(start))
		failedAs(t, "doall", "c", err)
		require.ErrorContains(t, err, "the wait of 2m30s is over")
		time.Sleep(time.Minute)
		require.NoError(t, c.DoAll(t.Context(), []string{"a", "b", "c"}, func(_ context.Context, ls []*Lease) error {
			return ls[0].Err()
		}, WithWait(time.Second)))
	})
}

// A key that is lost while another is waited for: all are taken again, in order, within the
// wait.
func TestDoAllBeginsAgainAfterALoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		seen := new(recorder)
		c, other := client(t, f), client(t, f)
		b := mustLock(t, other, "b")
		time.AfterFunc(20*time.Second, func() { f.force("a", true) })
		time.AfterFunc(time.Minute, func() { _ = b.Release(context.Background()) })
		ran := false
		require.NoError(t, c.DoAll(t.Context(), []string{"b", "a"}, func(ctx context.Context, ls []*Lease) error {
			ran = true
			require.NoError(t, ctx.Err())
			require.NoError(t, ls[0].Err())
			require.NoError(t, ls[1].Err())
			return nil
		}, WithObserver(seen)))
		require.True(t, ran)
		require.Equal(t, []string{"a", "b", "a", "b"}, keysOf(f.sent("acquire"))[1:])
		synctest.Wait()
		for key, want := range map[string][]string{
			"a": {"granted", "lost", "granted", "released"},
			"b": {"contended", "failed", "contended", "granted", "released"},
		} {
			var kinds []string
			for _, e := range seen.events {
				if e.Key == key && e.Kind != EventRenewed {
					kinds = append(kinds, e.Kind.String())
				}
			}
			require.Equal(t, want, kinds, key)
		}

		b = mustLock(t, other, "b")
		time.AfterFunc(5*time.Second, func() { f.force("a", false) })
		start := time.Now()
		err := c.DoAll(t.Context(), []string{"a", "b"}, neverAll, WithWait(time.Minute))
		require.Equal(t, time.Minute, time.Since(start), "within the wait")
		failedAs(t, "doall", "b", err)
		require.ErrorIs(t, err, ErrHeld)
		require.NoError(t, b.Release(t.Context()))
	})
}

// Without a wait there is nothing to begin again.
func TestDoAllThatDoesNotWaitTellsTheLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			if r.Key == "b" {
				f.force("a", true)
				<-ctx.Done()
				return Grant{}, ctx.Err()
			}
			return acquire(ctx, r)
		})
		err := c.DoAll(t.Context(), []string{"a", "b"}, neverAll, WithWait(0))
		failedAs(t, "doall", "a", err)
		lostAs(t, ReasonForced, err)
		require.NotErrorIs(t, err, context.Canceled)

		// The last grant arrives when the first key's is over, and nobody has noticed.
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			if r.Key == "b" {
				time.Sleep(ttlTen)
			}
			return acquire(ctx, r)
		})
		err = c.DoAll(t.Context(), []string{"a", "b"}, neverAll, WithWait(0), WithRenewal(false))
		failedAs(t, "doall", "a", err)
		lostAs(t, ReasonExpired, err)
	})
}

func TestDoAllJoinsTheLossOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		keys := []string{"b", "a", "c"}
		for _, result := range []error{nil, errWork} {
			err := c.DoAll(t.Context(), keys, func(ctx context.Context, ls []*Lease) error {
				f.force("b", true)
				lostAs(t, ReasonForced, context.Cause(ctx))
				f.force("c", true)
				require.NoError(t, ls[1].Err())
				return result
			})
			failedAs(t, "doall", "b", err)
			want := "lock: doall \"b\": lost: forced (token " + lossAs(t, ReasonForced, err).Token.String() + ")"
			if result != nil {
				require.ErrorIs(t, err, result)
				want += "; fn: " + result.Error()
			}
			require.EqualError(t, err, want)
			require.False(t, f.held("a"))
		}
		var own error
		err := c.DoAll(t.Context(), keys, func(_ context.Context, ls []*Lease) error {
			f.force("b", true)
			f.force("a", true)
			own = ls[1].Err()
			return own
		})
		require.Equal(t, own, err, "it is told already")
		err = c.DoAll(t.Context(), keys, func(context.Context, []*Lease) error {
			f.force("c", false)
			return nil
		})
		failedAs(t, "doall", "c", err)
		lostAs(t, ReasonTaken, err)
	})
}

func TestDoAllOutOfOrderIsDeadlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c, other := client(t, f), client(t, f)
		nop := func(context.Context, []*Lease) error { return nil }
		refused := func(ctx context.Context, key string, keys ...string) {
			t.Helper()
			n := len(f.sent("acquire"))
			err := c.DoAll(ctx, keys, neverAll)
			require.ErrorIs(t, err, ErrDeadlock)
			failedAs(t, "doall", key, err)
			require.Len(t, f.sent("acquire"), n, "nothing is sent")
		}
		require.NoError(t, c.DoAll(t.Context(), []string{"b", "d"}, func(ctx context.Context, _ []*Lease) error {
			refused(ctx, "b", "b")
			refused(ctx, "d", "e", "d")
			refused(ctx, "a", "e", "a")
			refused(ctx, "c", "c")
			require.NoError(t, c.DoAll(ctx, []string{"f", "e"}, nop))
			require.NoError(t, other.DoAll(ctx, []string{"a", "c"}, nop), "another Client's")
			require.ErrorIs(t, c.Do(ctx, "b", never2), ErrDeadlock)
			require.ErrorIs(t, c.TryDo(ctx, "d", never2), ErrDeadlock)
			require.ErrorIs(t, errOf(c.Lock(ctx, "b")), ErrDeadlock)
			require.NoError(t, c.Do(ctx, "b", func(_ context.Context, l *Lease) error {
				require.Equal(t, "b", l.Key())
				return nil
			}, WithReentrant(true)))
			return c.Do(ctx, "a", func(ctx context.Context, _ *Lease) error {
				refused(ctx, "c", "c")
				return c.DoAll(ctx, []string{"e"}, nop)
			})
		}))
		var kept context.Context
		require.NoError(t, c.Do(t.Context(), "b", func(ctx context.Context, l *Lease) error {
			refused(ctx, "a", "a", "c")
			kept = context.WithoutCancel(ctx)
			require.NoError(t, l.Release(ctx))
			return c.DoAll(kept, []string{"a", "b"}, nop)
		}))
		require.NoError(t, c.DoAll(kept, []string{"a", "b"}, nop), "that holds nothing any more")
	})
}

func TestBadDoAll(t *testing.T) {
	f := newFake()
	c := client(t, f, WithReentrant(true))
	keys := []string{"b", "a"}
	for says, err := range map[string]error{
		`doall "": invalid: no keys`:             c.DoAll(t.Context(), nil, neverAll),
		`doall "": invalid: key is empty`:        c.DoAll(t.Context(), []string{"a", ""}, neverAll),
		`doall "b": invalid: fn is nil`:          c.DoAll(t.Context(), keys, nil),
		`doall "b": invalid: ctx is nil`:         c.DoAll(nil, keys, neverAll), //nolint:staticcheck // that is the test
		`invalid: WithReentrant(true) on doall`:  c.DoAll(t.Context(), keys, neverAll, WithReentrant(true)),
		`doall "b": invalid: wait -1ns`:          c.DoAll(t.Context(), keys, neverAll, WithWait(-1)),
		`invalid: Client is nil or was not made`: (*Client)(nil).DoAll(t.Context(), keys, neverAll),
	} {
		require.ErrorIs(t, err, ErrInvalid)
		require.ErrorContains(t, err, says)
	}
	SetDefault(nil)
	require.ErrorIs(t, DoAll(t.Context(), keys, neverAll), ErrNoDefault)
	failedAs(t, "doall", "b", DoAll(t.Context(), keys, neverAll))
	failedAs(t, "doall", "", DoAll(t.Context(), nil, neverAll))
	require.Empty(t, f.log, "before any I/O")
	SetDefault(c)
	defer SetDefault(nil)
	require.Equal(t, errWork, DoAll(t.Context(), keys, func(context.Context, []*Lease) error { return errWork }))
}

// A store may hang: DoAll waits once.
func TestDoAllReleaseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onRelease(func(ctx context.Context, _ Grant, _ releaseFunc) error {
			<-ctx.Done()
			return ctx.Err()
		})
		var start time.Time
		require.NoError(t, client(t, f).DoAll(t.Context(), []string{"a", "b", "c"}, func(context.Context, []*Lease) error {
			start = time.Now()
			return nil
		}))
		require.Equal(t, doBound, time.Since(start), "the work is done")
		require.Equal(t, []string{"c", "b", "a"}, keysOf(f.sent("release")))
		f.onRelease(plainRelease)
		time.Sleep(time.Second)
		for _, key := range []string{"a", "b", "c"} {
			require.False(t, f.held(key), "released in the background")
		}
	})
}

func TestCloseEndsADoAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c, other := client(t, f), client(t, f)
		mustLock(t, other, "b")
		var wg sync.WaitGroup
		wg.Go(func() {
			err := c.DoAll(t.Context(), []string{"a", "b"}, neverAll)
			require.ErrorIs(t, err, ErrClosed)
			failedAs(t, "doall", "b", err)
		})
		time.Sleep(time.Minute)
		require.NoError(t, c.Close(t.Context()))
		wg.Wait()
		require.False(t, f.held("a"))
		require.ErrorIs(t, c.DoAll(t.Context(), []string{"a"}, neverAll), ErrClosed)
	})
}

// What a DoAll has still when Close gives up is not left: there is no engine to release it.
func TestCloseGivesUpBesideADoAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c, other := New(f), client(t, f)
		mustLock(t, other, "b")
		closed := make(chan struct{})
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			g, err := acquire(ctx, r)
			if err != nil {
				<-closed
			}
			return g, err
		})
		var wg sync.WaitGroup
		wg.Go(func() { assertIs(t, c.DoAll(t.Context(), []string{"a", "b"}, neverAll), ErrClosed) })
		time.Sleep(time.Second)
		require.ErrorIs(t, c.Close(canceled()), context.Canceled)
		require.True(t, f.held("a"), "its DoAll has not returned")
		close(closed)
		wg.Wait()
		require.False(t, f.held("a"))
	})
}

// An Observer may close the Client when it hears that a DoAll has failed, which counts for Close as
// long as it runs.
func TestObserverMayCloseWhenADoAllFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		var c *Client
		closed := make(chan error, 1)
		c = New(f, WithObserver(observerFunc(func(_ context.Context, e Event) {
			if e.Kind == EventFailed {
				closed <- c.Close(context.Background())
			}
		})))
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			if r.Key == "b" {
				f.force("a", true)
			}
			return acquire(ctx, r)
		})
		require.ErrorIs(t, c.DoAll(t.Context(), []string{"a", "b"}, neverAll, WithWait(0)), ErrLost)
		require.NoError(t, <-closed)
		require.False(t, f.held("b"))
	})
}

// A round that ends before its first key was asked for knows of nobody who holds that: the record of
// the round before was another key's.
func TestDoAllRefusedByNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f, WithObserver(new(recorder)))
		mustLock(t, client(t, f), "b")
		time.AfterFunc(20*time.Second-time.Millisecond, func() { f.force("a", true) })
		err := c.DoAll(t.Context(), []string{"a", "b"}, neverAll, WithWait(20*time.Second), WithBackoff(time.Second, time.Second))
		require.Error(t, err)
		require.False(t, Refused(err, "a"), err)
	})
}

// Without an engine a DoAll does not wait for each of its keys on a store that is frozen.
func TestDoAllAfterACloseThatGaveUp(t *testing.T) {
	for name, waits := range map[string]bool{"in line": true, "in fn": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				c, other := New(f), client(t, f)
				if waits {
					mustLock(t, other, "e")
				}
				closed := make(chan struct{})
				var wg sync.WaitGroup
				wg.Go(func() {
					err := c.DoAll(t.Context(), []string{"a", "b", "c", "d", "e"}, func(context.Context, []*Lease) error {
						<-closed
						return nil
					})
					if waits {
						assertIs(t, err, ErrClosed)
					} else {
						assertNoError(t, err)
					}
				})
				time.Sleep(time.Second)
				f.onRelease(freezeRelease)
				begun := time.Now()
				require.ErrorIs(t, c.Close(canceled()), context.Canceled)
				close(closed)
				wg.Wait()
				require.LessOrEqual(t, time.Since(begun), doBound)
				f.onRelease(plainRelease)
			})
		})
	}
}

func TestCloseWaitsForDoAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		var wg sync.WaitGroup
		wg.Go(func() {
			require.NoError(t, c.DoAll(t.Context(), []string{"a", "b"}, func(ctx context.Context, _ []*Lease) error {
				<-ctx.Done()
				require.ErrorIs(t, context.Cause(ctx), ErrClosed)
				time.Sleep(time.Minute)
				require.True(t, f.held("a"))
				require.True(t, f.held("b"))
				return nil
			}))
		})
		time.Sleep(time.Second)
		start := time.Now()
		require.NoError(t, c.Close(t.Context()))
		require.Equal(t, time.Minute, time.Since(start))
		wg.Wait()
	})
}

// An Observer may call Close when DoAll has the first of its keys.
func TestDoAllWhoseObserverCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		var c *Client
		c = New(f, WithObserver(observerFunc(func(_ context.Context, e Event) {
			if e.Kind == EventGranted && e.Key == "b" {
				require.NoError(t, c.Close(t.Context()))
			}
		})))
		require.ErrorIs(t, c.DoAll(t.Context(), []string{"a", "b", "c"}, neverAll), ErrClosed)
		require.False(t, f.held("a"))
		require.False(t, f.held("b"))
	})
}
