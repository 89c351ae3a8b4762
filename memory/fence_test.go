package memory_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

func TestValue(t *testing.T) {
	x := memory.NewValue("k", 7)
	v, err := x.Load(10)
	require.NoError(t, err)
	require.Equal(t, 7, v)
	require.NoError(t, x.Store(10, 8))

	// The successor's read alone shuts the predecessor out.
	v, err = x.Load(11)
	require.NoError(t, err)
	require.Equal(t, 8, v)
	err = x.Store(10, 9)
	require.ErrorIs(t, err, lock.ErrStale)
	var stale *lock.StaleError
	require.ErrorAs(t, err, &stale)
	require.Equal(t, lock.StaleError{Key: "k", Token: 10, Newest: 11}, *stale)
	v, err = x.Load(10)
	require.ErrorIs(t, err, lock.ErrStale)
	require.Zero(t, v)

	require.NoError(t, x.Store(12, 10))
	_, err = x.Load(11)
	require.ErrorIs(t, err, lock.ErrStale, "a write raises the mark as well")
	require.ErrorIs(t, x.Store(0, 1), lock.ErrInvalid)
	v, err = x.Load(12)
	require.NoError(t, err)
	require.Equal(t, 10, v)
}
