package memory_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

func ahead(d time.Duration) func(*lock.Request) {
	return func(r *lock.Request) { r.HeadStart = d }
}

// Of equal places, such as those of who comes at one moment, the one who came first is first.
func TestHeadStartTies(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		held := acquire(t, l, request("k"))
		a := start(t.Context(), l, request("k"))
		b := start(t.Context(), l, request("k", ahead(time.Second)))
		c := start(t.Context(), l, request("k", ahead(time.Second)))
		time.Sleep(time.Second)
		d := start(t.Context(), l, request("k", ahead(time.Second)))
		e := start(t.Context(), l, request("k", ahead(2*time.Second)))
		f := start(t.Context(), l, request("k"))
		line := []<-chan outcome{b, c, e, a, d, f}
		for i, w := range line {
			release(t, l, held)
			held = granted(t, w)
			for _, later := range line[i+1:] {
				pending(t, later)
			}
		}
		release(t, l, held)
	})
}

// A waiter that was handed the key and lost it before it ran lines up anew, with its head start.
func TestHeadStartAfterALostHandOver(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		held := acquire(t, l, request("k"))
		req := request("k", ahead(time.Minute))
		early, wake := asleep(t.Context(), l, req)
		first, second := start(t.Context(), l, request("k")), start(t.Context(), l, request("k"))
		release(t, l, held)
		require.NoError(t, l.ForceRelease(t.Context(), "k", req.Owner))
		held = granted(t, first)
		wake()
		pending(t, early)
		release(t, l, held)
		held = granted(t, early)
		pending(t, second)
		release(t, l, held)
		release(t, l, granted(t, second))
	})
}

// An owner that asks again joins its place, whatever head start it asks for then.
func TestHeadStartOfAJoinedPlace(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		held := acquire(t, l, request("k"))
		first := start(t.Context(), l, request("k"))
		req := request("k")
		second := start(t.Context(), l, req)
		req.HeadStart = time.Hour
		again := start(t.Context(), l, req)
		release(t, l, held)
		held = granted(t, first)
		pending(t, second)
		release(t, l, held)
		held = granted(t, again)
		require.Equal(t, held, granted(t, second))
		release(t, l, held)
	})
}
