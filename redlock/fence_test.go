package redlock_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/redlock"
)

// TestFenceRefusesFrozenHolder: a holder freezes after its read, in that its renewals stop.
// It loses the lock, its successor reads and writes, and then its own write comes.
func TestFenceRefusesFrozenHolder(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.ready(t), w.open(t)
	ctx := storetest.Bounded(t)
	key := w.prefix + "stock"
	fence := redlock.NewFence(w.plain[0])
	require.NoError(t, fence.Set(ctx, key, 1, "10", 0))

	frozen := storetest.Acquire(t, a, storetest.Lasting(storetest.Request("k"), 3*time.Second))
	v, err := fence.Get(ctx, key, frozen.Token)
	require.NoError(t, err)
	require.Equal(t, "10", v)

	next := storetest.Await(t, b, storetest.Request("k"))
	require.Greater(t, next.Token, frozen.Token)
	_, err = fence.Get(ctx, key, next.Token)
	require.NoError(t, err)

	err = fence.Set(ctx, key, frozen.Token, "9 by the stale holder", 0)
	var stale *lock.StaleError
	require.ErrorAs(t, err, &stale)
	require.Equal(t, next.Token, stale.Newest)
	require.NoError(t, fence.Set(ctx, key, next.Token, "9", 0))
	require.Equal(t, "9", w.plain[0].Get(ctx, key).Val())
}

// TestFenceOfNothing: a bad client is told by each call.
func TestFenceOfNothing(t *testing.T) {
	_, err := redlock.NewFence(nil).Get(context.Background(), "k", 1)
	require.ErrorIs(t, err, lock.ErrInvalid)
}
