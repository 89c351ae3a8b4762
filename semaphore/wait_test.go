package semaphore_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
	"github.com/seed-215fdefa/lock/semaphore"
)

// TestCancel: a wait that is canceled leaves nothing, wherever it stands.
func TestCancel(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.process(), w.process()
		sa, sb := a.semaphore(3), b.semaphore(3)
		held := w.holds(sa, 2)
		ctx, cancel := context.WithCancelCause(t.Context())
		first, behind, inLine := w.waits(ctx, sb, 2), w.waits(ctx, sb, 1), w.waits(ctx, sa, 1)
		alone, leave := context.WithCancel(t.Context())
		third := w.waits(alone, w.process().semaphore(3), 1)
		leave()
		require.ErrorIs(t, third.ended(), lock.ErrHeld)
		in, err := sa.Inspect(t.Context())
		require.NoError(t, err)
		require.Equal(t, 2, in.WaiterCount, "a place without callers is left")
		why := errors.New("why")
		cancel(why)
		for _, k := range []*work{first, behind, inLine} {
			err := k.ended()
			for _, want := range []error{context.Canceled, why, lock.ErrHeld} {
				require.ErrorIs(t, err, want)
			}
		}
		rec, err := sa.Inspect(t.Context())
		require.NoError(t, err)
		require.Len(t, rec.Permits, 2)
		require.Zero(t, rec.WaiterCount)
		for slot := range 3 {
			rec, err := w.store.Inspect(t.Context(), key+"#semaphore/slot/"+string(rune('0'+slot)))
			require.NoError(t, err)
			require.Zero(t, rec.WaiterCount)
		}
		require.NoError(t, sb.Do(t.Context(), 1, nothing))
		held.leave()
	})
}

// TestCancelOfTheFirst: who is behind takes over what it had.
func TestCancelOfTheFirst(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s := w.process().semaphore(3)
		held := w.holds(s, 1)
		ctx, cancel := context.WithCancel(t.Context())
		heavy := w.waits(ctx, s, 3)
		light := w.waits(t.Context(), s, 2)
		cancel()
		require.ErrorIs(t, heavy.ended(), context.Canceled)
		light.runs()
		light.leave()
		held.leave()
	})
}

// late is a ctx that is found to have ended when permits come, and not before.
type late struct {
	context.Context
	over *atomic.Bool
}

func (c late) Err() error {
	if c.over.Load() {
		return context.Canceled
	}
	return nil
}

// TestGrantMeetsCancel: permits that come when their caller gives up are given back.
func TestGrantMeetsCancel(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s := w.process().semaphore(1)
		held := w.holds(s, 1)
		ctx := late{context.WithoutCancel(t.Context()), new(atomic.Bool)}
		waits := w.waits(ctx, s, 1)
		ctx.over.Store(true)
		held.leave()
		require.ErrorIs(t, waits.ended(), context.Canceled)
		require.NoError(t, s.TryDo(t.Context(), 1, nothing))
	})
}

func TestWithWait(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s := w.process().semaphore(1, lock.WithWait(time.Minute))
		held := w.holds(s, 1)
		begin := time.Now()
		err := s.Do(t.Context(), 1, nothing)
		require.ErrorIs(t, err, lock.ErrHeld)
		require.ErrorContains(t, err, "the wait of 1m0s is over")
		require.Equal(t, time.Minute, time.Since(begin))

		now := w.process().semaphore(1, lock.WithWait(0))
		require.ErrorIs(t, now.Do(t.Context(), 1, nothing), lock.ErrHeld)
		require.Equal(t, time.Minute, time.Since(begin))
		held.leave()
		require.NoError(t, now.Do(t.Context(), 1, nothing))
	})
}

// TestUnavailable: what a store that does not answer says is not that permits are taken.
func TestUnavailable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := memory.NewFaulty()
		s := semaphore.New(lock.New(store, lock.WithTTL(ttl)), key, 2, lock.WithWait(time.Minute))
		short := semaphore.New(lock.New(store, lock.WithTTL(ttl)), key, 2, lock.WithWait(time.Second))
		store.Freeze()
		for _, do := range []doing{s.Do, s.TryDo, short.Do} {
			err := do(t.Context(), 1, nothing)
			require.ErrorIs(t, err, lock.ErrUnavailable)
			require.NotErrorIs(t, err, lock.ErrHeld)
		}
		store.Heal()
		why := errors.New("disk full")
		store.Fail(why)
		for _, do := range []doing{s.Do, s.TryDo} {
			err := do(t.Context(), 1, nothing)
			require.ErrorIs(t, err, lock.ErrUnavailable)
			require.ErrorIs(t, err, why)
		}
		store.Heal()
		require.NoError(t, s.Do(t.Context(), 2, nothing))
	})
}

// TestWaitingCostsNothing: while nothing is freed, a store that pushes is asked nothing.
func TestWaitingCostsNothing(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.process(), w.process()
		held := w.holds(a.semaphore(8), 8)
		waits := w.waits(t.Context(), b.semaphore(8), 1)
		before := a.calls.Load() + b.calls.Load()
		time.Sleep(time.Hour)
		require.Equal(t, before, a.calls.Load()+b.calls.Load())
		held.leave()
		waits.runs()
		waits.leave()
	})
}
