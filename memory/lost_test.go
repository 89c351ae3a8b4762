package memory_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// losses collects what Lost is called with, under the store's mutex: the store must call
// it under none.
func losses(l *memory.Locker) (got func() []lock.LostReason, lost func(*lock.Request)) {
	var all []lock.LostReason
	got = func() []lock.LostReason {
		defer memory.Stall(l)()
		return slices.Clone(all)
	}
	return got, onLost(func(why lock.LostReason) {
		defer memory.Stall(l)()
		all = append(all, why)
	})
}

func TestLostByTakeover(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		got, lost := losses(l)
		g := acquire(t, l, request("k", lost))
		time.Sleep(ttl)
		require.Empty(t, got())
		other := acquire(t, l, request("k"))
		require.Equal(t, []lock.LostReason{lock.ReasonExpired}, got())
		gone(t, lock.ReasonTaken, l.Release(t.Context(), g))
		release(t, l, other)
		require.Len(t, got(), 1)
	})
}

func TestLostByHandOver(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		got, lost := losses(l)
		acquire(t, l, request("k", lost))
		a := start(t.Context(), l, request("k", lost))
		b := start(t.Context(), l, request("k", lost))
		grantedAfter(t, ttl, a)
		synctest.Wait() // for the timer's goroutine: it tells after it has handed over
		require.Len(t, got(), 1)
		g := grantedAfter(t, ttl, b)
		synctest.Wait()
		require.Equal(t, []lock.LostReason{lock.ReasonExpired, lock.ReasonExpired}, got())
		release(t, l, g)
	})
}

func TestLostByForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memory.New()
		got, lost := losses(l)
		g := acquire(t, l, request("k", lost))
		require.NoError(t, l.Open().ForceRelease(t.Context(), "k", g.Owner))
		require.Equal(t, []lock.LostReason{lock.ReasonForced}, got())
		for range 2 {
			_, err := l.Renew(t.Context(), g)
			gone(t, lock.ReasonForced, err)
			gone(t, lock.ReasonForced, l.Release(t.Context(), g))
		}
		other := acquire(t, l, request("k"))
		_, err := l.Renew(t.Context(), g)
		gone(t, lock.ReasonForced, err)
		release(t, l, other)
		time.Sleep(ttl)
		_, err = l.Renew(t.Context(), g)
		gone(t, lock.ReasonExpired, err)
		require.Len(t, got(), 1)
	})
}

func TestNeverLostAfterRelease(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		got, lost := losses(l)
		g := acquire(t, l, request("k", lost))
		release(t, l, g)
		g = acquire(t, l, request("k", lost))
		c := start(t.Context(), l, request("k", lost))
		release(t, l, g)
		release(t, l, granted(t, c))
		time.Sleep(2 * ttl)
		other := acquire(t, l, request("k"))
		require.ErrorIs(t, l.ForceRelease(t.Context(), "k", g.Owner), lock.ErrLost)
		release(t, l, other)
		require.Empty(t, got())
	})
}

func TestForceHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memory.New()
		r1 := acquire(t, l, request("k", shared))
		r2 := acquire(t, l, request("k", shared))
		c := start(t.Context(), l, request("k"))
		require.NoError(t, l.ForceRelease(t.Context(), "k", r1.Owner))
		pending(t, c)
		_, err := l.Renew(t.Context(), r2)
		require.NoError(t, err, "that grant only")
		require.NoError(t, l.ForceRelease(t.Context(), "k", r2.Owner))
		release(t, l, granted(t, c))
	})
}

// A waiter that was handed the key and forced before it could run stands in line again.
func TestForceOfAHandOver(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		held := acquire(t, l, request("k"))
		got, lost := losses(l)
		req := request("k", lost)
		c, wake := asleep(t.Context(), l, req)
		release(t, l, held)
		require.NoError(t, l.ForceRelease(t.Context(), "k", req.Owner))
		wake()
		g := granted(t, c)
		require.Greater(t, g.Token, held.Token+1)
		require.Empty(t, got(), "it had nothing yet")
		release(t, l, g)
	})
}

func TestAbandonedGrantsAreSwept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memory.New()
		got, lost := losses(l)
		for i := range 100_000 {
			acquire(t, l, request(fmt.Sprint(i), lost))
			if i%100 == 0 {
				time.Sleep(ttl / 4)
			}
		}
		keys, _, _ := memory.Size(l)
		// About 500 are live at any time, and as many may wait for the sweep.
		require.Less(t, keys, 2000)
		require.Greater(t, len(got()), 90_000, "who is swept is told")
		for range 1000 {
			g := acquire(t, l, request("k"))
			require.NoError(t, l.ForceRelease(t.Context(), "k", g.Owner))
			time.Sleep(ttl / 4)
		}
		keys, marks, _ := memory.Size(l)
		require.Less(t, keys+marks, 1000)
	})
}
