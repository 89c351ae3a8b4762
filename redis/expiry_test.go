package redis_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

// TestTTLIsNoShorter: a grant lives for all of its TTL since Start, a reader's too, also one
// that came late in a millisecond of the server's clock. Who comes next is granted before the
// look at the clock here.
func TestTTLIsNoShorter(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.open(t), w.open(t)
	const ttl = 10 * time.Millisecond
	for _, shared := range []bool{false, true} {
		for range 50 {
			req := storetest.Lasting(storetest.Request("k"), ttl)
			req.Shared = shared
			g := storetest.Acquire(t, a, req)
			var next lock.Grant
			for err := lock.ErrHeld; err != nil; {
				next, err = b.Acquire(storetest.Bounded(t), storetest.Request("k"))
			}
			require.GreaterOrEqual(t, time.Since(g.Start), ttl)
			storetest.Release(t, b, next)
		}
	}
}
