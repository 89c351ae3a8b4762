package postgres_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

// orders are all orders of the steps 0 to n-1.
func orders(n int) [][]int {
	if n == 0 {
		return [][]int{{}}
	}
	var all [][]int
	for _, o := range orders(n - 1) {
		for i := range n {
			all = append(all, append(append(append([]int{}, o[:i]...), n-1), o[i:]...))
		}
	}
	return all
}

// TestPartialLoss: a reader holds, an operator deletes the lock's row, or those of the readers,
// a writer comes, and both renew: in all orders. At most one of the two survives.
func TestPartialLoss(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.open(t), w.open(t)
	for _, table := range []string{"", "_readers"} {
		for _, order := range orders(4) {
			key := fmt.Sprint(table, order)
			reader := storetest.Acquire(t, a, storetest.Shared(storetest.Request(key)))
			var writer lock.Grant
			steps := []func(){
				func() { w.exec(t, "DELETE FROM "+w.table(table)+" WHERE key = $1", []byte(key)) },
				func() { writer, _ = b.Acquire(storetest.Bounded(t), storetest.Request(key)) },
				func() { _, _ = a.Renew(storetest.Bounded(t), reader) },
				func() {
					if writer.Token != 0 {
						_, _ = b.Renew(storetest.Bounded(t), writer)
					}
				},
			}
			for _, step := range order {
				steps[step]()
			}
			if writer.Token == 0 { // it came too early: now it must get in
				g, err := b.Acquire(storetest.Bounded(t), storetest.Request(key))
				require.NoError(t, err, "an operator has cleared the lock: %s", key)
				writer = g
			}
			_, err := a.Renew(storetest.Bounded(t), reader)
			require.ErrorIs(t, err, lock.ErrLost, key)
			storetest.Renew(t, b, writer)
			require.ErrorIs(t, a.Release(storetest.Bounded(t), reader), lock.ErrLost, key)
			storetest.Holds(t, b, writer)
			storetest.Release(t, b, writer)
		}
	}
}

// TestDeletedRow: whoever held a lock whose row was deleted learns it at the next renewal, of either
// mode, whether or not anybody has come since.
func TestDeletedRow(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	for _, shared := range []bool{false, true} {
		req := storetest.Request(fmt.Sprint("k", shared))
		req.Shared = shared
		g := storetest.Acquire(t, l, req)
		w.exec(t, "DELETE FROM "+w.table("")+" WHERE key = $1", []byte(req.Key))
		_, err := l.Renew(storetest.Bounded(t), g)
		require.ErrorIs(t, err, lock.ErrLost)
		require.ErrorIs(t, l.Release(storetest.Bounded(t), g), lock.ErrLost)
	}
}

// TestTruncate: holders of either mode are told, waiters go on, and a place that is left over
// is in nobody's way.
func TestTruncate(t *testing.T) {
	t.Parallel()
	for _, tables := range []string{"", "_readers", "_waiters", "_readers _waiters", " _waiters", " _readers", " _readers _waiters"} {
		for _, shared := range []bool{false, true} {
			t.Run(fmt.Sprint(tables, " shared ", shared), func(t *testing.T) {
				t.Parallel()
				w := sharedWorld(t)
				a, b := w.open(t), w.open(t)
				req := storetest.Request("k")
				req.Shared = shared
				g := storetest.Acquire(t, a, req)
				waiting := storetest.Waits(t, b, storetest.Request("k"))
				other := storetest.Waits(t, a, storetest.Request("k"))
				for _, table := range strings.Split(tables, " ") {
					w.exec(t, "TRUNCATE "+w.table(table))
				}
				if _, err := a.Renew(storetest.Bounded(t), g); err == nil {
					storetest.Release(t, a, g)
				} else {
					require.ErrorIs(t, err, lock.ErrLost)
				}
				first, second := waiting, other
				select { // a line that is lost begins anew with who looks first
				case <-waiting.Done:
				case <-other.Done:
					first, second = other, waiting
				case <-time.After(storetest.Patience):
				}
				lockers := map[*storetest.Waiting]lock.Locker{waiting: b, other: a}
				g = first.Granted(t)
				storetest.Eventually(t, "the other to wait in line, or fail", func() bool {
					select {
					case <-second.Done:
						return true
					default:
						return storetest.Inspect(t, a, "k").WaiterCount == 1
					}
				})
				storetest.Release(t, lockers[first], g)
				storetest.Release(t, lockers[second], second.Granted(t))
			})
		}
	}
}
