package etcd_test

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/storetest"
)

// TestReaderIsRenewedAsWriter: whoever renews a reader's grant need not say that it is shared, as by the
// JSON of the lock service. Its release hands the lock over to no writer: others read still.
func TestReaderIsRenewedAsWriter(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	first := storetest.Acquire(t, other, storetest.Shared(storetest.Request("k")))
	g := storetest.Acquire(t, l, storetest.Lasting(storetest.Shared(storetest.Request("k")), 15*time.Second))
	w := storetest.Waits(t, l, storetest.Request("k"))
	g.TTL, g.Shared = time.Minute, false
	g = storetest.Renew(t, l, g)
	released := string(keyOf(t, cli, l.prefix, g.Owner).Key)
	looked := l.kv.once(fate{}, func(t txn) bool { // and not a handover
		return puts(t) && !slices.Contains(t.deletes, released)
	})
	storetest.Release(t, l, g)
	select {
	case <-looked:
	case <-w.Done:
		require.FailNow(t, "two hold it", "%v, %v", w.Grant, w.Err)
	case <-time.After(storetest.Patience):
		require.FailNow(t, "it does not look")
	}
	storetest.Holds(t, other, first)
	storetest.Release(t, other, first)
	storetest.Holds(t, other, w.Granted(t))
}
