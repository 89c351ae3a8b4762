package lock_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// looks is an Admin that shows other records with each look; the last ones for ever.
type looks struct {
	lock.Locker // for its Capabilities
	lock.Admin
	shows [][]lock.Record
	taken int
	err   error // of the look after all of shows
}

func (l *looks) List(context.Context, string) iter.Seq2[lock.Record, error] {
	n := l.taken
	l.taken++
	return func(yield func(lock.Record, error) bool) {
		if n >= len(l.shows) && l.err != nil {
			yield(lock.Record{}, l.err)
			return
		}
		for _, r := range l.shows[min(n, len(l.shows)-1)] {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func (l *looks) Capabilities() lock.Capabilities { return lock.Capabilities{FIFO: true} }

// records are those of keys, each as "key: holders | waiters". A holder is owner#token, a
// waiter owner<owners that it is under; a + before an owner is one of shared mode.
func records(lines ...string) (rs []lock.Record) {
	for _, line := range lines {
		var r lock.Record
		var rest string
		r.Key, rest, _ = strings.Cut(line, ": ")
		holders, waiters, _ := strings.Cut(rest, " | ")
		for _, s := range strings.Fields(holders) {
			s, shared := strings.CutPrefix(s, "+")
			owner, token, _ := strings.Cut(s, "#")
			h := lock.Holder{Owner: owner, Shared: shared}
			h.Token, _ = lock.ParseToken(token)
			r.Holders = append(r.Holders, h)
		}
		for _, s := range strings.Fields(waiters) {
			s, shared := strings.CutPrefix(s, "+")
			owner, under, _ := strings.Cut(s, "<")
			w := lock.Waiter{Owner: owner, Shared: shared}
			if under != "" {
				w.Under = strings.Split(under, ",")
			}
			r.Waiters = append(r.Waiters, w)
		}
		r.HolderCount, r.WaiterCount = len(r.Holders), len(r.Waiters)
		rs = append(rs, r)
	}
	return rs
}

// cycleOf is d as "waiter>for waiter>for …".
func cycleOf(d lock.Deadlock) string {
	var parts []string
	for _, w := range d.Cycle {
		parts = append(parts, w.Waiter.Owner+">"+w.For)
	}
	return strings.Join(parts, " ")
}

func TestFindDeadlocks(t *testing.T) {
	for name, c := range map[string]struct {
		shows []string
		want  []string
	}{
		"nobody":       {},
		"AB and BA":    {[]string{"a: A#1 | w2<B", "b: B#2 | w1<A"}, []string{"w2>A w1>B"}},
		"BA and AB":    {[]string{"b: B#1 | w1<A", "a: A#2 | w2<B"}, []string{"w1>B w2>A"}},
		"a ring":       {[]string{"a: A#1 | w3<C", "b: B#9 | w1<A", "c: C#5 | w2<B"}, []string{"w2>C w3>A w1>B"}},
		"itself":       {[]string{"a: A#1 | w<A"}, []string{"w>A"}},
		"equal tokens": {[]string{"a: A#1 | x<B", "b: B#1 | y<A"}, []string{"y>B x>A"}},
		"the newest of several grants": {
			[]string{"a: A#1 | w2<B", "b: B#2 | w1<A,C", "c: C#3"}, []string{"w1>B w2>A"},
		},
		"two apart": {
			[]string{"a: A#1 | w2<B", "b: B#2 | w1<A", "c: C#3 | w4<D", "d: D#4 | w3<C"}, []string{"w2>A w1>B", "w4>C w3>D"},
		},

		"converging":       {shows: []string{"a: A#1 | w2<B w3<C w4<D", "b: B#2 | w5<E", "c: C#3", "d: D#4"}},
		"a chain":          {shows: []string{"a: A#1", "b: B#2 | w1<A", "c: C#3 | w2<B"}},
		"who holds it not": {shows: []string{"a: A#1 | w2<B", "b: C#2 | w1<A"}},
		"waits under nothing": {
			shows: []string{"a: A#1 | w2", "b: B#2 | w1<A"},
		},
		"a grant on its way": {shows: []string{"a: w2#3", "b: B#2 | w1<A"}},
		"a free key that the next one takes": {
			shows: []string{"a:  | w2<B", "b: B#2 | w1<A"},
		},

		"one of the readers": {
			[]string{"a: +R#1 +A#2 +S#3 | w2<B", "b: B#4 | w1<A"}, []string{"w2>A w1>B"},
		},
		"a reader waits for a writer": {
			[]string{"a: A#1 | +w2<B", "b: B#2 | w1<A"}, []string{"w2>A w1>B"},
		},
		"a reader waits for no reader": {
			shows: []string{"a: +A#1 | +w2<B", "b: B#2 | w1<A"},
		},
		"a reader behind a writer": {
			[]string{"a: +A#1 | +w0 w3 +w2<B", "b: B#2 | w1<A"}, []string{"w2>A w1>B"},
		},
		"a reader ahead of a writer": {
			shows: []string{"a: +A#1 | +w2<B w3", "b: B#2 | w1<A"},
		},
		"who stands in the line of a cycle is not of it": {
			// w9 is ahead of w1, which waits for what it holds as little as anybody.
			[]string{"a: A#1 | w2<B", "b: B#2 | w9<Z w1<A", "z: Z#9"}, []string{"w2>A w1>B"},
		},

		"the end of an elder breaks the larger one too": {
			// w1 waits for w2, which waits for w1 directly, and through w3, the youngest.
			[]string{"r: +R1#2 +R3#5 | w2<B", "b: B#4 | w1<A,R1", "a: A#1 | w3<R3"}, []string{"w2>R1 w1>B"},
		},
		"each reader of a writer that waits": {
			[]string{"r: +R1#2 +R2#3 | w<W", "k: W#1 | w1<R1 w2<R2"}, []string{"w1>W w>R1", "w2>W w>R2"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for range 20 { // in whatever order maps have
				l := &looks{shows: [][]lock.Record{records(c.shows...)}}
				found, err := lock.FindDeadlocks(t.Context(), l)
				require.NoError(t, err)
				var got []string
				for _, d := range found {
					got = append(got, cycleOf(d))
				}
				require.Equal(t, c.want, got)
				if len(got) == 0 {
					require.Equal(t, 1, l.taken, "one List")
				} else {
					require.Equal(t, 2, l.taken, "it is read again")
				}
			}
		})
	}
}

// A List is no snapshot, and what it shows may be over: only what is still so at the second
// look was so at one moment.
func TestFindDeadlocksLooksTwice(t *testing.T) {
	before := records("a: A#1 | w2<B", "b: B#2 | w1<A")
	for name, after := range map[string][]lock.Record{
		"a waiter has gone":           records("a: A#1", "b: B#2 | w1<A"),
		"a waiter has come again":     records("a: A#1 | w3<B", "b: B#2 | w1<A"),
		"a holder has":                records("a: A2#3 | w2<B", "b: B#2 | w1<A2"),
		"a holder is another":         records("a: C#3 | w2<B", "b: B#2 | w1<A"),
		"a grant was on its way":      records("a: w2#3", "b: B#2 | w1<A"),
		"all is over":                 nil,
		"it is under something else":  records("a: A#1 | w2<C", "b: B#2 | w1<A"),
		"it waits for something else": records("a: A#1", "b: B#2 | w1<A", "c: A#1 | w2<B"),
	} {
		l := &looks{shows: [][]lock.Record{before, after}}
		found, err := lock.FindDeadlocks(t.Context(), l)
		require.NoError(t, err, name)
		require.Empty(t, found, name)
		require.Equal(t, 2, l.taken, name)
	}
	slices.Reverse(before)
	found, err := lock.FindDeadlocks(t.Context(), &looks{shows: [][]lock.Record{before, append(before, records("c: C#5 | w3<A w4<B")...)}})
	require.NoError(t, err)
	require.Len(t, found, 1, "others may come and go")
}

func TestFindDeadlocksFails(t *testing.T) {
	down := errors.New("the store is down")
	for _, shows := range [][][]lock.Record{nil, {records("a: A#1 | w<A")}} {
		found, err := lock.FindDeadlocks(t.Context(), &looks{shows: shows, err: down})
		require.ErrorIs(t, err, down)
		require.Empty(t, found)
	}
}

// Without FIFO a reader may pass the writer ahead of it in line.
func TestFindDeadlocksWithoutFIFO(t *testing.T) {
	l := &looks{shows: [][]lock.Record{records("a: +A#1 | w3 +w2<B", "b: B#2 | w1<A")}}
	found, err := lock.FindDeadlocks(t.Context(), struct{ lock.Admin }{l})
	require.NoError(t, err)
	require.Empty(t, found)
	found, err = lock.FindDeadlocks(t.Context(), l)
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Equal(t, "w3", found[0].Cycle[0].Behind)
}

func TestDeadlockError(t *testing.T) {
	rs := records("stock:7: S#2 | w1<O", "order:1: +O#1 | w9 +w2<S")
	rs[0].Waiters[0].Metadata = map[string]string{"why": "refund", "host": "web-1"}
	found, err := lock.FindDeadlocks(t.Context(), &looks{shows: [][]lock.Record{rs}})
	require.NoError(t, err)
	require.Len(t, found, 1)
	err = &lock.Error{Op: "do", Key: "order:1", Err: &lock.DeadlockError{Deadlock: found[0]}}
	require.EqualError(t, err, `lock: do "order:1": deadlock: `+
		`S holds "stock:7" and waits for "order:1" behind w9, which waits for it exclusively; `+
		`O (host="web-1", why="refund") holds "order:1" and waits for "stock:7"`)
	require.ErrorIs(t, err, lock.ErrDeadlock)
	require.NotErrorIs(t, err, lock.ErrHeld)
	var deadlock *lock.DeadlockError
	require.ErrorAs(t, err, &deadlock)
	require.Equal(t, "S", deadlock.Deadlock.Cycle[1].For)
}

// TestNoDeadlockLasts takes keys in random orders, alone and together with other readers, in one
// Client and in several. Whatever cycles there are, everything comes to its end, and some of it
// as the victim of one.
func TestNoDeadlockLasts(t *testing.T) {
	for clients := 1; clients <= 3; clients++ {
		for seed := range uint64(20) {
			synctest.Test(t, func(t *testing.T) { randomNesting(t, clients, seed) })
		}
	}
}

func randomNesting(t *testing.T, clients int, seed uint64) {
	store := memory.New()
	cs := make([]*lock.Client, clients)
	for i := range cs {
		cs[i] = lock.New(store, lock.WithDeadlockDetection(time.Second), lock.WithTTL(time.Hour))
		defer func() { require.NoError(t, cs[i].Close(context.Background())) }()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	var all sync.WaitGroup
	var victims atomic.Int64
	for i := range 12 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			for range 20 {
				keys := r.Perm(5)[:3]
				var take func(ctx context.Context) error
				take = func(ctx context.Context) error {
					time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
					if len(keys) == 0 {
						return nil
					}
					key := fmt.Sprint(keys[0])
					keys = keys[1:]
					var opts []lock.Option
					if r.IntN(3) == 0 {
						opts = append(opts, lock.WithShared())
					}
					return cs[i%clients].Do(ctx, key, func(ctx context.Context, _ *lock.Lease) error { return take(ctx) }, opts...)
				}
				switch err := take(ctx); {
				case errors.Is(err, lock.ErrDeadlock):
					victims.Add(1)
				case err != nil:
					t.Errorf("%d clients, seed %d: %v", clients, seed, err)
				}
			}
		})
	}
	all.Wait()
	if victims.Load() == 0 {
		t.Errorf("%d clients, seed %d: no victims among 240", clients, seed)
	}
}

// BenchmarkFindDeadlocks looks among 10,000 waiters, each of which holds a key: in a chain that
// is no cycle, and in ten cycles of a thousand.
func BenchmarkFindDeadlocks(b *testing.B) {
	const count = 10_000
	for name, ring := range map[string]int{"chain": count + 1, "rings": 1000} {
		b.Run(name, func(b *testing.B) {
			ctx, cancel := context.WithCancel(b.Context())
			l := memory.New()
			done := make(chan struct{}, count)
			waiting := make(chan struct{}, count)
			for i := range count {
				owner := fmt.Sprint("owner-", i)
				_, err := l.Acquire(ctx, lock.Request{Key: fmt.Sprint(i), Owner: owner, TTL: lock.MaxTTL})
				require.NoError(b, err)
			}
			_, err := l.Acquire(ctx, lock.Request{Key: fmt.Sprint(count), Owner: "last", TTL: lock.MaxTTL})
			require.NoError(b, err)
			for i := range count {
				next := i + 1
				if next%ring == 0 {
					next -= ring
				}
				go func() {
					_, _ = l.Acquire(ctx, lock.Request{
						Key: fmt.Sprint(next), Owner: fmt.Sprint("waiter-", i), TTL: lock.MaxTTL, Wait: true,
						Under: []string{fmt.Sprint("owner-", i)}, Waiting: func(lock.Record) { waiting <- struct{}{} },
					})
					done <- struct{}{}
				}()
			}
			for range count {
				<-waiting
			}
			for b.Loop() {
				found, err := lock.FindDeadlocks(ctx, l)
				require.NoError(b, err)
				require.Len(b, found, count/ring)
			}
			cancel()
			for range count {
				<-done
			}
		})
	}
}
