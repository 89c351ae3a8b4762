package zookeeper_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/storetest"
)

// TestContainersStayFew: a server deletes 10,000 empty containers a minute, whatever is made.
// This one deletes none, and there are few all the same. That of a key that is held stays.
func TestContainersStayFew(t *testing.T) {
	t.Parallel()
	w := ownWorld(t, "-Dznode.container.checkIntervalMs=3600000").lasting()
	a, b := w.open(t), w.open(t)
	const generation, keys = 8, 100
	a.SetGeneration(generation)
	g := storetest.Acquire(t, a, storetest.Request("held"))
	for i := range keys {
		storetest.Release(t, a, storetest.Acquire(t, a, storetest.Request(fmt.Sprint("k", i))))
		g = storetest.Renew(t, a, g)
	}
	// Two generations that are remembered, and one that is due, with what was held back.
	storetest.Eventually(t, "few containers", func() bool {
		g = storetest.Renew(t, a, g)
		return len(names(t, b.conn, w.root)) <= 3*generation+2
	})
	require.True(t, slices.Contains(names(t, b.conn, w.root), "held"))
	g = storetest.Renew(t, a, g)
	storetest.Refused(t, b, storetest.Request("held"))
	storetest.Release(t, a, g)
	storetest.Release(t, a, storetest.Acquire(t, a, storetest.Request("k0"))) // it has gone, and comes again
	require.Zero(t, a.Claims())
}
