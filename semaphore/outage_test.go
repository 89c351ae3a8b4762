package semaphore_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
	"github.com/seed-215fdefa/lock/semaphore"
)

var errDown = errors.New("connection refused")

// outage runs f in fake time, with a store that fails on request.
func outage(t *testing.T, f func(t *testing.T, w *world, store *memory.Faulty)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { f(t, &world{t: t}, memory.NewFaulty()) })
}

func semaphoreOn(store lock.Locker, n int, opts ...lock.Option) *semaphore.Semaphore {
	return semaphore.New(lock.New(store, lock.WithTTL(ttl)), key, n, opts...)
}

// slow is a store a second away.
type slow struct{ *memory.Faulty }

func (s slow) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	time.Sleep(time.Second)
	return s.Faulty.Acquire(ctx, req)
}

// TestOutageAfterABusyTime: that permits were taken once says nothing of an outage, also if there
// has been no moment since in which nobody waited.
func TestOutageAfterABusyTime(t *testing.T) {
	outage(t, func(t *testing.T, w *world, store *memory.Faulty) {
		const n = 8
		s, other := semaphoreOn(slow{store}, n, lock.WithWait(5*time.Second)), semaphoreOn(store, n)
		all := w.holds(other, n)
		var callers sync.WaitGroup
		for i := range 300 {
			callers.Go(func() {
				time.Sleep(time.Duration(i) * time.Second / 10)
				_ = s.Do(t.Context(), 1, nothing)
			})
		}
		time.Sleep(2 * time.Second)
		all.leave()
		time.Sleep(20*time.Second + time.Second/4)
		store.Freeze()
		err := s.Do(t.Context(), 1, nothing)
		require.ErrorIs(t, err, lock.ErrUnavailable)
		require.NotErrorIs(t, err, lock.ErrHeld)
		store.Heal()
		callers.Wait()
		time.Sleep(time.Minute) // the undos
	})
}

// TestWaitOutlivesOutage: the store fails when the taker asks for what was given back. Who has
// waited is served once the store works, and who comes meanwhile is told at once.
func TestWaitOutlivesOutage(t *testing.T) {
	outage(t, func(t *testing.T, w *world, store *memory.Faulty) {
		s := semaphoreOn(store, 1)
		held := w.holds(s, 1)
		first, second := w.waits(t.Context(), s, 1), w.waits(t.Context(), s, 1)
		time.Sleep(time.Hour)
		store.Fail(errDown)
		held.leave()
		first.pending()
		late := w.do(t.Context(), s.Do, 1)
		time.Sleep(2 * time.Second)
		require.ErrorIs(t, late.ended(), lock.ErrUnavailable)
		require.ErrorIs(t, late.err, errDown)
		time.Sleep(lock.Patience - 5*time.Second)
		first.pending()
		second.pending()
		store.Heal()
		<-first.inside
		time.Sleep(time.Hour)

		// The patience with the next outage begins anew.
		store.Fail(errDown)
		time.AfterFunc(lock.Patience/2, store.Heal)
		first.leave()
		<-second.inside
		second.leave()
	})
}

// TestWaitOutlivesLossOfTheLine: so does a wait whose process loses the line in an outage.
func TestWaitOutlivesLossOfTheLine(t *testing.T) {
	outage(t, func(t *testing.T, w *world, store *memory.Faulty) {
		held := w.holds(semaphoreOn(store, 1), 1)
		waits := w.waits(t.Context(), semaphoreOn(store, 1), 1)
		store.Fail(errDown)
		time.Sleep(2 * ttl)
		waits.pending()
		held.out <- nil
		require.ErrorIs(t, held.ended(), lock.ErrLost)
		store.Heal()
		<-waits.inside
		waits.leave()
	})
}

// TestOutageLongerThanPatience ends the wait, with what the store says.
func TestOutageLongerThanPatience(t *testing.T) {
	outage(t, func(t *testing.T, w *world, store *memory.Faulty) {
		s, short := semaphoreOn(store, 1), semaphoreOn(store, 1, lock.WithWait(20*time.Second))
		for _, trouble := range []func(){func() { store.Fail(errDown) }, store.Freeze} {
			held := w.holds(s, 1)
			waits := w.waits(t.Context(), s, 1)
			trouble()
			begin := time.Now()
			held.out <- nil
			<-waits.done
			require.NoError(t, held.ended())
			require.InDelta(t, lock.Patience, time.Since(begin), float64(ttl))
			require.ErrorIs(t, waits.err, lock.ErrUnavailable)
			require.NotErrorIs(t, waits.err, lock.ErrHeld)
			store.Heal()
			require.NoError(t, s.Do(t.Context(), 1, nothing))
		}

		held := w.holds(short, 1)
		ctx, cancel := context.WithCancel(t.Context())
		bounded, canceled := w.waits(t.Context(), short, 1), w.waits(ctx, short, 1)
		store.Fail(errDown)
		held.leave()
		time.Sleep(10 * time.Second)
		cancel()
		require.ErrorIs(t, canceled.ended(), context.Canceled)
		<-bounded.done
		for _, want := range []error{lock.ErrHeld, lock.ErrUnavailable, errDown} {
			require.ErrorIs(t, bounded.err, want)
		}
		store.Heal()
		require.NoError(t, short.Do(t.Context(), 1, nothing))
	})
}
