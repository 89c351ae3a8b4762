package etcd_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

// filledUp is what a server answers that has found room for a transaction, and none when it came to do
// it: it has done it all the same.
var filledUp = fate{mute: true, err: rpctypes.ErrNoSpace}

// TestAcquireFillsUp: whoever is refused by a server that is full by now leaves nothing, although no undo
// comes and others keep its etcd lease alive.
func TestAcquireFillsUp(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	held := storetest.Acquire(t, other, storetest.Request("held"))
	storetest.Acquire(t, other, storetest.Request("beside"))
	storetest.Waits(t, l, storetest.Request("beside")) // now there is an etcd lease to wait under
	for _, key := range []string{"free", "held"} {
		hit := l.kv.once(filledUp, entersLine(l, key))
		req := storetest.Request(key)
		req.Wait = key == "held"
		_, err := l.Acquire(storetest.Bounded(t), req)
		require.ErrorIs(t, err, rpctypes.ErrNoSpace)
		reached(t, hit)
		storetest.Eventually(t, "nothing to be left", func() bool {
			rec := storetest.Inspect(t, other, key)
			return rec.WaiterCount == 0 && !slices.ContainsFunc(rec.Holders, func(h lock.Holder) bool { return h.Owner == req.Owner })
		})
	}
	storetest.Release(t, other, held)
	storetest.Release(t, other, storetest.Acquire(t, other, storetest.Request("held")))
}

// TestReleaseFillsUp: a release that leaves a tombstone, or hands the lock over, is done although the
// server says that it is full.
func TestReleaseFillsUp(t *testing.T) {
	t.Parallel()
	for _, handover := range []bool{false, true} {
		l, other, cli := pair(t)
		late := l.kv.once(fate{late: !handover}, entersLine(l, "k"))
		g := storetest.Acquire(t, l, storetest.Request("k"))
		reached(t, late)
		if handover {
			w := storetest.Waits(t, l, storetest.Request("k"))
			defer func() { storetest.Release(t, l, w.Granted(t)) }()
		}
		name := string(keyOf(t, cli, l.prefix, g.Owner).Key)
		l.kv.once(filledUp, func(t txn) bool { return puts(t) && slices.Contains(t.deletes, name) })
		storetest.Release(t, l, g)
		require.False(t, slices.ContainsFunc(storetest.Inspect(t, other, "k").Holders, func(h lock.Holder) bool { return h.Owner == g.Owner }))
	}
}
