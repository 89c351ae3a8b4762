package semaphore_test

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/semaphore"
)

// TestTryDoPassesNobody: what a heavy caller waits for is not for tries.
func TestTryDoPassesNobody(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.process().semaphore(3), w.process().semaphore(3)
		held := w.holds(a, 1)
		heavy := w.waits(t.Context(), b, 3)
		for _, s := range []*semaphore.Semaphore{a, b} {
			require.ErrorIs(t, s.TryDo(t.Context(), 1, nothing), lock.ErrHeld)
		}
		held.leave()
		heavy.runs()
		heavy.leave()
	})
}

// TestTriesDoNotStarve: who tries again and again, without a pause, does not get what a caller
// of the same process waits for.
func TestTriesDoNotStarve(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s := w.process().semaphore(1)
		for range 50 {
			held := w.holds(s, 1)
			waits := w.waits(t.Context(), s, 1)
			var served atomic.Bool
			go func() {
				<-waits.inside
				served.Store(true)
				waits.out <- nil
			}()
			held.out <- nil
			for !served.Load() {
				err := s.TryDo(t.Context(), 1, func(context.Context, []semaphore.Permit) error {
					assert.True(t, served.Load(), "a try has passed a caller who waits")
					return nil
				})
				if err != nil && !assert.ErrorIs(t, err, lock.ErrHeld) {
					break
				}
				runtime.Gosched()
			}
			synctest.Wait()
		}
	})
}

// TestHeavyIsNotStarved: hundreds of light callers in three processes come and go, and come
// again. One of weight n is served before any who came after it to its process, and after
// few of the others.
func TestHeavyIsNotStarved(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		const n = 4
		var sems []*semaphore.Semaphore
		for range 3 {
			sems = append(sems, w.process().semaphore(n))
		}
		ctx, stop := context.WithCancel(t.Context())
		var lights atomic.Int64
		done := make(chan struct{})
		go func() {
			defer close(done)
			all(300, func(i int) {
				for ctx.Err() == nil {
					_ = sems[i%3].Do(ctx, 1, func(ctx context.Context, ps []semaphore.Permit) error {
						lights.Add(1)
						return w.counts(time.Second)(ctx, ps)
					})
				}
			})
		}()
		time.Sleep(time.Minute)
		before := lights.Load()
		fresh := w.process().semaphore(n)
		require.NoError(t, fresh.Do(t.Context(), n, func(context.Context, []semaphore.Permit) error {
			// Three processes were before it in line, each with a turn of n at most.
			assert.LessOrEqual(t, lights.Load()-before, int64(3*n+n))
			return nil
		}))
		stop()
		<-done
		assert.LessOrEqual(t, w.most, n)
	})
}

// TestOrderWithinAProcess: who comes first is served first, however heavy.
func TestOrderWithinAProcess(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s := w.process().semaphore(3)
		held := w.holds(s, 1)
		heavy := w.waits(t.Context(), s, 3)
		light := w.waits(t.Context(), s, 1)
		held.leave()
		heavy.runs()
		light.pending()
		heavy.leave()
		light.runs()
		light.leave()
	})
}

// TestAnySlotWillDo: a waiter gets whichever is free first.
func TestAnySlotWillDo(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.process().semaphore(3), w.process().semaphore(3)
		held := []*work{w.holds(a, 1), w.holds(a, 1), w.holds(a, 1)}
		for i := range held {
			waits := w.waits(t.Context(), b, 1)
			held[i].leave()
			waits.runs()
			waits.leave()
			held[i] = w.holds(a, 1)
		}
		for _, k := range held {
			k.leave()
		}
	})
}
