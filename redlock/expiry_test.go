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
	ctx := storetest.Bounded(t)
	for _, shared := range []bool{false, true} {
		ttl := 10 * time.Millisecond
		for granted := 0; granted < 50; {
			req := storetest.Lasting(storetest.Request("k"), ttl)
			req.Shared = shared
			g, err := a.Acquire(ctx, req)
			if err != nil { // it took longer than the TTL, or the last release is not everywhere yet
				require.NoError(t, ctx.Err())
				ttl += time.Millisecond
				continue
			}
			granted++
			var next lock.Grant
			for err = lock.ErrHeld; err != nil; {
				require.NoError(t, ctx.Err())
				next, err = b.Acquire(ctx, storetest.Request("k"))
			}
			require.GreaterOrEqual(t, time.Since(g.Start), ttl)
			storetest.Release(t, b, next)
		}
	}
}
