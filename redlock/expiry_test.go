package redlock_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

// TestTTLIsNoShorter: a grant lives for all of its TTL since Start, also one that came late
// in a millisecond of the nodes' clocks. Who comes next is granted before the look at the
// clock here.
func TestTTLIsNoShorter(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.ready(t), w.ready(t)
	const ttl = 10 * time.Millisecond
	for _, shared := range []bool{false, true} {
		for range 50 {
			req := storetest.Lasting(storetest.Request("k"), ttl)
			req.Shared = shared
			g, err := a.Acquire(storetest.Bounded(t), req)
			if err != nil {
				require.ErrorContains(t, err, "took longer to answer") // on a busy machine
				continue
			}
			var next lock.Grant
			for err = lock.ErrHeld; err != nil; {
				next, err = b.Acquire(storetest.Bounded(t), storetest.Request("k"))
			}
			require.GreaterOrEqual(t, time.Since(g.Start), ttl)
			storetest.Release(t, b, next)
		}
	}
}
