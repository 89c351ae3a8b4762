package semaphore_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

// TestDeadPermitsPass: permits of a process that died pass after their TTL, to one that
// waits, and to a try.
func TestDeadPermitsPass(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.process(), w.process()
		sa, sb := a.semaphore(2), b.semaphore(2)
		lost, kept := w.holds(sa, 1), w.holds(sb, 1)
		a.die()
		next := w.waits(t.Context(), sb, 1)
		time.Sleep(ttl)
		next.runs()
		assert.ErrorIs(t, context.Cause(lost.ctx), lock.ErrLost)
		assert.NoError(t, kept.ctx.Err())
		next.leave()
		kept.leave()
		lost.out <- nil
		<-lost.done
		assert.ErrorIs(t, lost.err, lock.ErrLost)
	})
}

// TestDeadTakerPasses: so does the line, and what its holder had got already.
func TestDeadTakerPasses(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.process(), w.process()
		held := w.holds(b.semaphore(3), 1)
		heavy := w.waits(t.Context(), a.semaphore(3), 3)
		next := w.waits(t.Context(), b.semaphore(3), 2)
		a.die()
		time.Sleep(2 * ttl)
		next.runs()
		next.leave()
		held.leave()
		_ = a.Close(canceled()) // which leaves the work of the dead undone
		<-heavy.done
		require.Error(t, heavy.err)
	})
}

func TestLossOfOnePermit(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s := w.process().semaphore(3)
		for _, want := range []error{nil, errWork} {
			k := w.holds(s, 2)
			lost := k.permits[1].Lease
			require.NoError(t, w.store.ForceRelease(t.Context(), lost.Key(), lost.Owner()))
			synctest.Wait()
			require.ErrorIs(t, context.Cause(k.ctx), lock.ErrLost)
			require.NoError(t, k.permits[0].Lease.Err())
			k.out <- want
			err := k.ended()
			require.ErrorIs(t, err, lock.ErrLost)
			var of *lock.Error
			require.ErrorAs(t, err, &of)
			require.Equal(t, key, of.Key)
			if want != nil {
				require.ErrorIs(t, err, want)
			}
		}
		k := w.holds(s, 1)
		require.NoError(t, w.store.ForceRelease(t.Context(), k.permits[0].Lease.Key(), k.permits[0].Lease.Owner()))
		synctest.Wait()
		cause := context.Cause(k.ctx)
		k.out <- cause
		require.Equal(t, cause, k.ended(), "told once")
	})
}

// TestLostPermitIsFreeForOthers: while its function goes on, also in the same process.
func TestLostPermitIsFreeForOthers(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s := w.process().semaphore(1)
		k := w.holds(s, 1)
		next := w.waits(t.Context(), s, 1)
		require.NoError(t, w.store.ForceRelease(t.Context(), k.permits[0].Lease.Key(), k.permits[0].Lease.Owner()))
		next.runs()
		next.leave()
		k.out <- nil
		require.ErrorIs(t, k.ended(), lock.ErrLost)
	})
}

// TestLossOfWhatIsGathered: a heavy caller asks again for what it has lost while it waits.
func TestLossOfWhatIsGathered(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s := w.process().semaphore(2)
		held := w.holds(s, 1)
		heavy := w.waits(t.Context(), s, 2)
		rec, err := s.Inspect(t.Context())
		require.NoError(t, err)
		require.Len(t, rec.Permits, 2)
		lost := rec.Permits[1]
		require.NoError(t, w.store.ForceRelease(t.Context(), key+"#semaphore/slot/1", lost.Owner))
		synctest.Wait()
		rec, err = s.Inspect(t.Context())
		require.NoError(t, err)
		require.Len(t, rec.Permits, 2)
		require.NotEqual(t, lost.Owner, rec.Permits[1].Owner)
		held.leave()
		heavy.runs()
		heavy.leave()
	})
}

// TestLossOfTheLine: two heavy callers that kept what they have without the line would wait
// for each other for ever.
func TestLossOfTheLine(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.process().semaphore(4), w.process().semaphore(4)
		h1, h2 := w.holds(a, 1), w.holds(b, 1)
		first := w.waits(t.Context(), a, 3)
		second := w.waits(t.Context(), b, 3)
		for range 3 {
			rec, err := a.Inspect(t.Context())
			require.NoError(t, err)
			require.Equal(t, 2, rec.WaiterCount)
			require.NoError(t, w.store.ForceRelease(t.Context(), key+"#semaphore/line", rec.Waiters[0].Owner))
			synctest.Wait()
		}
		h1.leave()
		h2.leave()
		for _, k := range []*work{first, second} {
			k.out <- nil
		}
		require.NoError(t, first.ended())
		require.NoError(t, second.ended())
	})
}
