package postgres_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

func ends(tb testing.TB, l lock.Locker, key string) {
	tb.Helper()
	storetest.Eventually(tb, "the end of a grant", func() bool { return len(storetest.Inspect(tb, l, key).Holders) == 0 })
}

// TestExpiryDuringTheWait: what is granted is decided by the time when the row is locked, not
// by that before the wait for it.
func TestExpiryDuringTheWait(t *testing.T) {
	t.Parallel()
	for _, holder := range []bool{false, true} {
		for _, rival := range []bool{false, true} {
			t.Run(fmt.Sprintf("shared %v before shared %v", holder, rival), func(t *testing.T) {
				t.Parallel()
				w := sharedWorld(t)
				l, other := w.open(t), w.open(t)
				dead, req := storetest.Lasting(storetest.Request("k"), 2*time.Second), storetest.Request("k")
				if dead.Shared, req.Shared = holder, rival; !holder {
					dead.TTL = time.Minute
				}
				storetest.Acquire(t, l, dead)
				tx := begin(t, w, pgx.TxOptions{})
				_, err := tx.Exec(storetest.Bounded(t), "SELECT FROM "+w.table("")+" WHERE key = 'k' FOR UPDATE")
				require.NoError(t, err)
				ctx, granted := storetest.Bounded(t), make(chan error, 1)
				go func() { _, err := other.Acquire(ctx, req); granted <- err }()
				if !holder {
					require.ErrorIs(t, <-granted, lock.ErrHeld, "it is refused at once, without a wait for the row")
					return
				}
				blocked(t, w)
				ends(t, l, "k")
				require.NoError(t, tx.Rollback(storetest.Bounded(t)))
				require.NoError(t, <-granted)
			})
		}
	}
}

// TestExpiredForAll: whose grant is over is in nobody's way, be it a reader who comes, or one
// who has found the key held a moment ago.
func TestExpiredForAll(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	for _, shared := range []bool{false, true} {
		req := storetest.Request(fmt.Sprint("k", shared))
		req.Shared = shared
		g := storetest.Acquire(t, l, storetest.Request(req.Key))
		storetest.Refused(t, other, req)
		g.TTL = 10 * time.Millisecond
		storetest.Renew(t, l, g)
		ends(t, l, req.Key)
		storetest.Release(t, other, storetest.Acquire(t, other, req))
	}
}
