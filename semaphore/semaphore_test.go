package semaphore_test

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
	"github.com/seed-215fdefa/lock/semaphore"
)

func nothing(context.Context, []semaphore.Permit) error { return nil }

// TestNeverMoreThanN: hundreds of callers of all weights in four processes. All come to
// their turn, and all permits are used.
func TestNeverMoreThanN(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		const n = 5
		var sems []*semaphore.Semaphore
		for range 4 {
			sems = append(sems, w.process().semaphore(n))
		}
		all(400, func(i int) {
			time.Sleep(time.Duration(i%7) * time.Second)
			assert.NoError(t, sems[i%4].Do(t.Context(), 1+i%n, w.counts(time.Duration(i%3)*time.Second)))
		})
		assert.Equal(t, n, w.most)
	})
}

// TestSlotsAreOnesOwn: no two permits have one slot at a time, and tokens rise by slot.
func TestSlotsAreOnesOwn(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s := w.process().semaphore(3)
		a, b := w.holds(s, 2), w.holds(s, 1)
		seen := map[int]lock.Token{}
		for _, p := range append(a.permits, b.permits...) {
			assert.Contains(t, []int{0, 1, 2}, p.Slot)
			assert.NotContains(t, seen, p.Slot)
			seen[p.Slot] = p.Lease.Token()
		}
		a.leave()
		b.leave()
		c := w.holds(s, 3)
		for _, p := range c.permits {
			assert.Greater(t, p.Lease.Token(), seen[p.Slot])
		}
		c.leave()
	})
}

func TestBadInput(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		c := w.process().Client
		for name, s := range map[string]*semaphore.Semaphore{
			"Client is nil":             semaphore.New(nil, key, 1),
			"n 0: a semaphore has 1 to": semaphore.New(c, key, 0),
			"n -1":                      semaphore.New(c, key, -1),
			"n 1025":                    semaphore.New(c, key, semaphore.MaxPermits+1),
			"key is empty":              semaphore.New(c, "", 1),
			"has 493 bytes: a semaphore's has 1 to 492": semaphore.New(c, strings.Repeat("k", semaphore.MaxKeyLen+1), 1),
			"not valid UTF-8":         semaphore.New(c, "\xff", 1),
			"TTL -1s":                 semaphore.New(c, key, 1, lock.WithTTL(-time.Second)),
			"WithShared":              semaphore.New(c, key, 1, lock.WithShared()),
			"metadata has 4097 bytes": semaphore.New(c, key, 1, lock.WithMetadata(map[string]string{"": strings.Repeat("m", 4087)})),
		} {
			_, inspect := s.Inspect(t.Context())
			for _, err := range []error{s.Err(), s.Do(t.Context(), 1, nothing), s.TryDo(t.Context(), 1, nothing), inspect} {
				assert.ErrorIs(t, err, lock.ErrInvalid, name)
				assert.ErrorContains(t, err, name)
			}
		}
		s := semaphore.New(c, key, 2)
		for _, do := range []doing{s.Do, s.TryDo} {
			for _, weight := range []int{-1, 0, 3} {
				err := do(t.Context(), weight, nothing)
				assert.ErrorIs(t, err, lock.ErrInvalid)
				assert.ErrorContains(t, err, "must be from 1 to the 2 permits")
				var of *lock.Error
				require.ErrorAs(t, err, &of)
				assert.Equal(t, key, of.Key)
			}
			assert.ErrorIs(t, do(t.Context(), 1, nil), lock.ErrInvalid)
			assert.ErrorIs(t, do(nil, 1, nothing), lock.ErrInvalid)
		}
	})
}

// TestLongestKey: the names of all slots fit.
func TestLongestKey(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s := semaphore.New(w.process().Client, strings.Repeat("k", semaphore.MaxKeyLen), semaphore.MaxPermits)
		require.NoError(t, s.TryDo(t.Context(), semaphore.MaxPermits, nothing))
		require.NoError(t, s.Do(t.Context(), semaphore.MaxPermits, nothing))
	})
}

func TestTryDoDoesNotWait(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.process(), w.process()
		sa, sb := a.semaphore(3), b.semaphore(3)
		held := w.holds(sa, 2)
		require.NoError(t, sb.TryDo(t.Context(), 1, nothing))
		for _, s := range []*semaphore.Semaphore{sa, sb} {
			err := s.TryDo(t.Context(), 2, nothing)
			require.ErrorIs(t, err, lock.ErrHeld)
			require.True(t, lock.Refused(err, key))
			var of *lock.HeldError
			require.ErrorAs(t, err, &of)
			require.Equal(t, 2, of.Record.HolderCount)
			require.Equal(t, held.permits[0].Lease.Owner(), of.Record.Holders[0].Owner)
			require.Equal(t, s == sa, of.SameClient)
		}
		rec, err := sb.Inspect(t.Context())
		require.NoError(t, err)
		require.Len(t, rec.Permits, 2)
		require.Zero(t, rec.WaiterCount)
		held.leave()
		require.NoError(t, sb.TryDo(t.Context(), 3, nothing))
	})
}

// TestTriesTogether: as many tries at once as there are permits all succeed.
func TestTriesTogether(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		const n = 20
		s := w.process().semaphore(n)
		all(n, func(int) { assert.NoError(t, s.TryDo(t.Context(), 1, w.counts(time.Second))) })
		assert.Equal(t, n, w.most)
	})
}

// distant is a store whose replies take a second, and which releases do not reach while their
// ctx lasts.
type distant struct{ *memory.Locker }

func (s distant) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	defer time.Sleep(time.Second)
	return s.Locker.Acquire(ctx, req)
}

func (s distant) Release(ctx context.Context, g lock.Grant) error {
	<-ctx.Done()
	return s.Locker.Release(context.WithoutCancel(ctx), g)
}

// TestTriesTakeNoMore than they want: what one took too much would be refused to another.
func TestTriesTakeNoMore(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		held := w.holds(w.process().semaphore(3), 1)
		for _, doing := range []func(*semaphore.Semaphore) doing{
			func(s *semaphore.Semaphore) doing { return s.Do },
			func(s *semaphore.Semaphore) doing { return s.TryDo },
		} {
			c := lock.New(distant{w.store.Open()}, lock.WithTTL(ttl))
			first := w.do(t.Context(), doing(semaphore.New(c, key, 3)), 1)
			time.Sleep(4 * time.Second) // it has the line, or not, was refused a slot, and has asked for more
			second := w.do(t.Context(), w.process().semaphore(3).TryDo, 1)
			second.runs()
			second.leave()
			<-first.inside
			first.out <- nil
			<-first.done
			require.NoError(t, first.err)
			require.NoError(t, c.Close(t.Context()))
		}
		held.leave()
	})
}

func TestNesting(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		p := w.process()
		s, same := p.semaphore(3), p.semaphore(3)
		other := semaphore.New(p.Client, "other", 3)
		var outer context.Context
		require.NoError(t, s.Do(t.Context(), 1, func(ctx context.Context, _ []semaphore.Permit) error {
			outer = context.WithoutCancel(ctx)
			for _, do := range []doing{s.Do, s.TryDo, same.Do} {
				require.ErrorIs(t, do(ctx, 1, nothing), lock.ErrDeadlock)
			}
			require.NoError(t, other.Do(ctx, 3, nothing))
			return w.process().semaphore(3).Do(ctx, 1, nothing)
		}))
		require.NoError(t, s.Do(outer, 3, nothing), "it holds nothing any more")
	})
}

func TestPanicAndGoexitGiveBack(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s := w.process().semaphore(2)
		require.PanicsWithError(t, errWork.Error(), func() {
			_ = s.Do(t.Context(), 2, func(context.Context, []semaphore.Permit) error { panic(errWork) })
		})
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = s.Do(t.Context(), 2, func(context.Context, []semaphore.Permit) error { runtime.Goexit(); return nil })
		}()
		<-done
		require.Equal(t, errWork, s.TryDo(t.Context(), 2, func(context.Context, []semaphore.Permit) error { return errWork }))
	})
}

// TestGivesBackAfterCancel: Do waits for its function, and releases although its ctx has
// ended.
func TestGivesBackAfterCancel(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s := w.process().semaphore(1)
		ctx, cancel := context.WithCancel(t.Context())
		for _, do := range []doing{s.Do, s.TryDo} {
			k := w.do(ctx, do, 1)
			k.runs()
			cancel()
			<-k.ctx.Done()
			require.ErrorIs(t, s.TryDo(t.Context(), 1, nothing), lock.ErrHeld)
			k.leave()
			require.NoError(t, s.TryDo(t.Context(), 1, nothing))
			ctx, cancel = context.WithCancel(t.Context())
		}
		cancel()
	})
}

// TestClose: permits are kept until their functions return, and waits end.
func TestClose(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.process(), w.process()
		sa, sb := a.semaphore(2), b.semaphore(2)
		held := w.holds(sa, 2)
		waits := w.waits(t.Context(), sa, 1)
		closed := make(chan error, 1)
		go func() { closed <- a.Close(t.Context()) }()
		synctest.Wait()
		require.ErrorIs(t, context.Cause(held.ctx), lock.ErrClosed)
		require.ErrorIs(t, waits.ended(), lock.ErrClosed)
		time.Sleep(3 * ttl)
		require.ErrorIs(t, sb.TryDo(t.Context(), 1, nothing), lock.ErrHeld)
		require.Empty(t, closed)
		held.leave()
		require.NoError(t, <-closed)
		require.NoError(t, sb.TryDo(t.Context(), 2, nothing))
		require.ErrorIs(t, sa.Do(t.Context(), 1, nothing), lock.ErrClosed)
		require.ErrorIs(t, sa.TryDo(t.Context(), 1, nothing), lock.ErrClosed)
	})
}

// TestAnotherN: processes that disagree about n are told so.
func TestAnotherN(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		four, eight := w.process().semaphore(4), w.process().semaphore(8)
		for _, pair := range [][2]*semaphore.Semaphore{{four, eight}, {eight, four}} {
			held := w.holds(pair[0], 1)
			for _, do := range []doing{pair[1].Do, pair[1].TryDo} {
				err := do(t.Context(), 1, nothing)
				require.ErrorIs(t, err, lock.ErrInvalid)
				require.ErrorContains(t, err, "all processes must give a key the same n")
			}
			require.NoError(t, pair[0].Do(t.Context(), 1, nothing))
			held.leave()
		}
		require.NoError(t, eight.Do(t.Context(), 8, nothing))
	})
}

func TestInspect(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a := w.process(lock.WithMetadata(map[string]string{"host": "a"}))
		b := w.process(lock.WithMetadata(map[string]string{"host": "b"}))
		held := w.holds(a.semaphore(40), 20)
		sb := b.semaphore(40)
		waits := w.waits(t.Context(), sb, 30)
		rec, err := sb.Inspect(t.Context())
		require.NoError(t, err)
		require.Equal(t, key, rec.Key)
		require.Len(t, rec.Permits, 40, "those that a heavy caller has got already are taken")
		for i, p := range rec.Permits {
			require.Equal(t, i, p.Slot)
			require.Equal(t, "40", p.Metadata["semaphore"])
			require.Equal(t, map[bool]string{true: "a", false: "b"}[i < 20], p.Metadata["host"])
		}
		require.Equal(t, 1, rec.WaiterCount)
		require.Equal(t, "b", rec.Waiters[0].Metadata["host"])
		held.leave()
		waits.runs()
		waits.leave()
	})
}

// TestMinHoldDoesNotCount: neither the line, nor what a try gives back unused, stays taken.
func TestMinHoldDoesNotCount(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s := w.process(lock.WithMinHold(time.Second)).semaphore(2)
		begin := time.Now()
		for range 5 {
			require.NoError(t, s.Do(t.Context(), 1, nothing))
			held := w.holds(s, 1)
			require.ErrorIs(t, s.TryDo(t.Context(), 2, nothing), lock.ErrHeld)
			require.NoError(t, s.TryDo(t.Context(), 1, nothing))
			held.leave()
			require.NoError(t, s.TryDo(t.Context(), 2, nothing))
		}
		require.Zero(t, time.Since(begin))
	})
}

// TestHeadStart is for the line: what stands in none does without.
func TestHeadStart(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s := w.process().semaphore(2, lock.WithHeadStart(time.Hour))
		held := w.holds(s, 1)
		require.NoError(t, s.TryDo(t.Context(), 1, nothing))
		require.NoError(t, w.process().semaphore(2, lock.WithHeadStart(time.Hour), lock.WithWait(0)).Do(t.Context(), 1, nothing))
		taker := w.waits(t.Context(), w.process().semaphore(2), 2)
		first := w.waits(t.Context(), w.process().semaphore(2), 2)
		urgent := w.waits(t.Context(), s, 1)
		held.leave()
		taker.runs()
		taker.leave()
		urgent.runs()
		first.pending()
		urgent.leave()
		first.runs()
		first.leave()
	})
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
