package lock

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// adminFake is a fake with an Admin, which shows what list says.
type adminFake struct {
	*fake
	list func(n int) ([]Record, error)
	n    int
}

func (f *adminFake) List(context.Context, string) iter.Seq2[Record, error] {
	f.n++
	records, err := f.list(f.n)
	return func(yield func(Record, error) bool) {
		for _, r := range records {
			if !yield(r, nil) {
				return
			}
		}
		if err != nil {
			yield(Record{}, err)
		}
	}
}

func (*adminFake) ForceRelease(context.Context, string, string) error { return nil }

func newAdminFake(list func(n int) ([]Record, error)) *adminFake {
	f := newFake()
	f.caps.FIFO = true
	return &adminFake{fake: f, list: list}
}

// crossed has two goroutines of c hold a and b, and the first wait for b. second is called in
// the function of the other.
func crossed(t *testing.T, c *Client, second func(ctx context.Context)) (first error) {
	t.Helper()
	whole, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	waits := make(chan error, 1)
	require.NoError(t, c.Do(whole, "b", func(ctx context.Context, _ *Lease) error {
		go func() {
			waits <- c.Do(whole, "a", func(ctx context.Context, _ *Lease) error {
				return c.Do(ctx, "b", func(context.Context, *Lease) error { return nil }, WithMetadata(map[string]string{"why": "ab"}))
			})
		}()
		synctest.Wait()
		second(ctx)
		return nil
	}))
	return <-waits
}

func TestLocalDeadlockSendsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		require.NoError(t, crossed(t, c, func(ctx context.Context) {
			sent := len(f.sent("acquire"))
			for op, err := range map[string]error{
				"do":   c.Do(ctx, "a", never2),
				"lock": errOf(c.Lock(ctx, "a", WithShared(), WithWait(time.Hour))),
			} {
				require.ErrorIs(t, err, ErrDeadlock)
				failedAs(t, op, "a", err)
				var d *DeadlockError
				require.ErrorAs(t, err, &d)
				mine, other := d.Deadlock.Cycle[0], d.Deadlock.Cycle[1]
				holds := fnContextOf(ctx).lease
				require.Equal(t, "a", mine.Key)
				require.Equal(t, []string{holds.Owner()}, mine.Waiter.Under)
				require.Equal(t, holds.Owner(), other.For)
				require.Equal(t, "b", other.Key)
				require.Equal(t, f.sent("acquire")[2].req.Owner, other.Waiter.Owner)
				require.Equal(t, []string{mine.For}, other.Waiter.Under)
				require.ErrorContains(t, err, `lock: `+op+` "a": deadlock: `+other.For+` holds "b" and waits for "a"; `+
					mine.For+` (why="ab") holds "a" and waits for "b"`)
			}
			require.ErrorIs(t, c.TryDo(ctx, "a", never2), ErrHeld, "a try does not wait")
			require.ErrorIs(t, c.Do(ctx, "a", never2, WithWait(0)), ErrHeld)
			require.Len(t, f.sent("acquire"), sent+2, "nothing is sent but by those that do not wait")
		}))
		require.Empty(t, c.engine.waits)
	})
}

// What has ended, and what does not block, is no part of a cycle.
func TestNoLocalDeadlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c, done := client(t, f), make(chan error, 1)
		require.NoError(t, crossed(t, c, func(ctx context.Context) {
			go func() { done <- c.Do(t.Context(), "a", func(context.Context, *Lease) error { return nil }) }()
			require.NoError(t, fnContextOf(ctx).lease.Release(t.Context()))
			require.NoError(t, c.Do(context.WithoutCancel(ctx), "a", func(context.Context, *Lease) error { return nil }))
		}))
		require.NoError(t, <-done, "one who waits under nothing")

		require.NoError(t, c.Do(t.Context(), "r", func(ctx context.Context, _ *Lease) error {
			go func() {
				done <- c.Do(t.Context(), "s", func(ctx context.Context, _ *Lease) error {
					return c.Do(ctx, "r", func(context.Context, *Lease) error { return nil })
				}, WithShared())
			}()
			synctest.Wait()
			return c.Do(ctx, "s", func(context.Context, *Lease) error { return nil }, WithShared())
		}, WithShared()))
		require.NoError(t, <-done)
		require.Empty(t, c.engine.waits)
	})
}

// A wait tells of what it is under at any Client: two at one store have their owners alike.
func TestRequestUnder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c, other := client(t, f), client(t, f)
		nest := func(c *Client, key string, fn func(context.Context)) func(context.Context) {
			return func(ctx context.Context) {
				require.NoError(t, c.Do(ctx, key, func(ctx context.Context, _ *Lease) error { fn(ctx); return nil }))
			}
		}
		nest(c, "a", nest(other, "b", func(ctx context.Context) {
			l, err := c.Lock(ctx, "c")
			require.NoError(t, err)
			_, err = c.TryLock(ctx, "d")
			require.NoError(t, err)
			all := f.sent("acquire")
			require.Empty(t, all[0].req.Under)
			require.Equal(t, []string{all[1].req.Owner, all[0].req.Owner}, all[2].req.Under, "the innermost first")
			require.Empty(t, all[3].req.Under, "a try stands in no line")
			require.NoError(t, fnContextOf(ctx).lease.Release(ctx))
			nest(c, "e", func(context.Context) {})(context.WithoutCancel(ctx))
			require.Equal(t, []string{all[0].req.Owner}, f.sent("acquire")[4].req.Under, "not what was released")
			require.NoError(t, l.Release(t.Context()))
		}))(t.Context())

		var deep func(ctx context.Context, n int)
		deep = func(ctx context.Context, n int) {
			if n > 0 {
				nest(c, "deep"+string(rune('a'+n)), func(ctx context.Context) { deep(ctx, n-1) })(ctx)
			}
		}
		deep(t.Context(), MaxRecord+2)
		all := f.sent("acquire")
		require.Len(t, all[len(all)-1].req.Under, MaxRecord, "the others are not told")
		require.Equal(t, all[len(all)-2].req.Owner, all[len(all)-1].req.Under[0])
	})
}

// ringOf are the records of a cycle between the only holder of "held" and one who holds "b".
func ringOf(f *fake, hidden int) []Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.record("a")
	last := f.log[len(f.log)-1].req
	b := Record{Key: "b", Holders: []Holder{{Owner: "other", Token: 1}}, WaiterCount: 1 + hidden}
	if hidden == 0 {
		b.Waiters = []Waiter{{Owner: last.Owner, Under: last.Under}}
	}
	for range min(hidden, MaxRecord) {
		b.Waiters = append(b.Waiters, Waiter{Owner: "ahead"})
	}
	a.Waiters = []Waiter{{Owner: "waits", Under: []string{"other"}}}
	return []Record{a, b}
}

// nestedWait holds a and waits for b, which somebody else holds.
func nestedWait(t *testing.T, f Locker, opts ...Option) error {
	t.Helper()
	c := New(f, append([]Option{WithTTL(time.Hour), WithDeadlockDetection(time.Second)}, opts...)...)
	defer func() { require.NoError(t, c.Close(context.Background())) }()
	_, err := f.Acquire(t.Context(), Request{Key: "b", Owner: "other", TTL: time.Hour})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = c.Do(t.Context(), "a", func(inner context.Context, _ *Lease) error {
		stop := context.AfterFunc(inner, cancel)
		defer stop()
		return c.Do(&fnContext{ctx, fnContextOf(inner).lease, nil}, "b", never2)
	})
	synctest.Wait()
	require.Empty(t, c.engine.waits)
	return err
}

func TestDetection(t *testing.T) {
	for name, test := range map[string]struct {
		list  func(f *fake, n int) ([]Record, error)
		after time.Duration // 0: never
	}{
		"the youngest": {func(f *fake, _ int) ([]Record, error) { return ringOf(f, 0), nil }, time.Second},
		"not the youngest": {func(f *fake, _ int) ([]Record, error) {
			ring := ringOf(f, 0)
			ring[1].Holders[0].Token = MaxToken
			return ring, nil
		}, 0},
		"too far back to be seen by others": {func(f *fake, _ int) ([]Record, error) {
			ring := ringOf(f, MaxRecord)
			ring[1].Holders[0].Token = MaxToken
			return ring, nil
		}, time.Second},
		"not in line": {func(f *fake, _ int) ([]Record, error) {
			ring := ringOf(f, 1)
			ring[1].WaiterCount = 1
			return ring, nil
		}, 0},
		"after failures": {func(f *fake, n int) ([]Record, error) {
			if n < 4 {
				return nil, errIO
			}
			return ringOf(f, 0), nil
		}, 4 * time.Second},
		"a failure between the looks": {func(f *fake, n int) ([]Record, error) {
			if n == 2 {
				return nil, errIO
			}
			return ringOf(f, 0), nil
		}, 2 * time.Second},
		"one look": {func(f *fake, n int) ([]Record, error) {
			if n%2 == 0 {
				return nil, nil
			}
			return ringOf(f, 0), nil
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				f.caps.FIFO = true
				admin := &adminFake{fake: f, list: func(n int) ([]Record, error) { return test.list(f, n) }}
				begun := time.Now()
				err := nestedWait(t, admin)
				if test.after == 0 {
					require.ErrorIs(t, err, context.DeadlineExceeded)
					return
				}
				require.ErrorIs(t, err, ErrDeadlock)
				require.NotErrorIs(t, err, ErrHeld)
				failedAs(t, "do", "b", err)
				require.Equal(t, test.after, time.Since(begun))
			})
		})
	}
}

// However many calls of a Client wait, it looks no more than twice in the time after which each
// looks.
func TestOneLookForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newAdminFake(func(int) ([]Record, error) { return nil, nil })
		c := client(t, f.fake)
		other := New(f, WithDeadlockDetection(10*time.Second), WithTTL(time.Hour))
		l := mustLock(t, c, "held")
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				time.Sleep(time.Duration(i) * time.Second / 10)
				require.NoError(t, other.Do(t.Context(), fmt.Sprint(i), func(ctx context.Context, _ *Lease) error {
					return other.Do(ctx, "held", func(context.Context, *Lease) error { return nil })
				}))
			})
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		require.NoError(t, l.Release(t.Context()))
		all.Wait()
		require.GreaterOrEqual(t, f.n, 5)
		require.LessOrEqual(t, f.n, 11)
		require.NoError(t, other.Close(t.Context()))
	})
}

// A grant that comes although the wait was ended is given back: its ctx has ended.
func TestVictimGivesALateGrantBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.caps.FIFO = true
		admin := &adminFake{fake: f, list: func(int) ([]Record, error) { return ringOf(f, 0), nil }}
		f.onAcquire(func(ctx context.Context, req Request, acquire acquireFunc) (Grant, error) {
			if req.Key != "b" || req.Owner == "other" {
				return acquire(ctx, req)
			}
			<-ctx.Done()
			f.force("b", false)
			return acquire(context.WithoutCancel(ctx), req)
		})
		require.ErrorIs(t, nestedWait(t, admin), ErrDeadlock)
		require.False(t, f.held("b"))
	})
}

// A call that looks seldom does not put off one that looks often.
func TestLooksOfDifferentCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newAdminFake(func(int) ([]Record, error) { return nil, nil })
		c := client(t, f.fake)
		mustLock(t, c, "held")
		other := New(f, WithDeadlockDetection(10*time.Second), WithTTL(time.Hour))
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for _, opts := range [][]Option{nil, {WithDeadlockDetection(time.Second)}} {
			all.Go(func() {
				assertIs(t, other.Do(t.Context(), []string{"a", "b"}[len(opts)], func(inner context.Context, _ *Lease) error {
					return other.Do(&fnContext{ctx, fnContextOf(inner).lease, nil}, "held", never2, opts...)
				}), context.Canceled)
			})
		}
		time.Sleep(100*time.Second + time.Second/2)
		cancel()
		all.Wait()
		require.GreaterOrEqual(t, f.n, 90)
		require.NoError(t, other.Close(context.Background()))
	})
}

func TestDetectionNeedsALineToLookAt(t *testing.T) {
	withoutFIFO := newAdminFake(nil)
	withoutFIFO.caps.FIFO = false
	withoutAdmin := newFake()
	withoutAdmin.caps.FIFO = true
	for _, f := range []Locker{withoutFIFO, withoutAdmin} {
		bad := New(f, WithDeadlockDetection(time.Second))
		require.ErrorIs(t, bad.Err(), ErrUnsupported)
		require.ErrorContains(t, bad.Err(), "store fake")
		_, err := New(f).Lock(t.Context(), "k", WithDeadlockDetection(time.Second))
		require.ErrorIs(t, err, ErrUnsupported)
		failedAs(t, "lock", "k", err)
		require.NoError(t, New(f, WithDeadlockDetection(0)).Err())
	}
	for _, d := range []time.Duration{-1, 1, time.Millisecond - 1} {
		err := New(newAdminFake(nil), WithDeadlockDetection(d)).Err()
		require.ErrorIs(t, err, ErrInvalid)
		require.ErrorContains(t, err, d.String())
	}
	require.NoError(t, New(newAdminFake(nil), WithDeadlockDetection(time.Millisecond)).Err())
}

// A DoAll holds its first keys while it waits for the next.
func TestDoAllInACycle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		whole, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		all := make(chan error, 1)
		do := func(ctx context.Context, key string, fn func(ctx context.Context) error) error {
			return c.Do(ctx, key, func(ctx context.Context, _ *Lease) error { return fn(ctx) })
		}
		doAll := func(keys ...string) {
			all <- c.DoAll(whole, keys, func(context.Context, []*Lease) error { return nil })
		}
		require.NoError(t, do(whole, "z", func(ctx context.Context) error {
			go doAll("z", "a")
			synctest.Wait()
			require.ErrorIs(t, c.Do(ctx, "a", never2), ErrDeadlock, "it waits for z, and holds a")
			return nil
		}))
		require.NoError(t, <-all)

		m := mustLock(t, c, "m")
		require.NoError(t, do(whole, "z", func(ctx context.Context) error {
			go doAll("z", "m", "a")
			synctest.Wait()
			time.AfterFunc(time.Second, func() { _ = m.Release(context.Background()) })
			return do(ctx, "a", func(context.Context) error { return nil })
		}))
		err := <-all
		var d *DeadlockError
		require.ErrorAs(t, err, &d)
		failedAs(t, "doall", "z", err)
		require.Len(t, d.Deadlock.Cycle[0].Waiter.Under, 2)
		require.Empty(t, c.engine.waits)
	})
}

// Who waits for a key waits for who has it now, not for one who has released it and goes on.
func TestReleasedLeaseIsInNoCycle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := client(t, newFake())
		whole, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		nothing := func(context.Context, *Lease) error { return nil }
		waits := make(chan error, 1)
		require.NoError(t, c.Do(whole, "x", func(ctx context.Context, _ *Lease) error {
			return c.Do(ctx, "b", func(ctx context.Context, b *Lease) error {
				require.NoError(t, b.Release(whole))
				b = mustLock(t, c, "b")
				go func() {
					waits <- c.Do(whole, "a", func(ctx context.Context, _ *Lease) error { return c.Do(ctx, "b", nothing) })
				}()
				synctest.Wait()
				time.AfterFunc(time.Minute, func() { _ = b.Release(whole) })
				return c.Do(context.WithoutCancel(ctx), "a", nothing)
			})
		}))
		require.NoError(t, <-waits)
	})
}
