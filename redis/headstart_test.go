package redis_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/storetest"
)

func TestHeadStartOfAFreeKey(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.open(t), w.open(t)
	storetest.HeadStartOfAFreeKey(t, a, b, func() func() { return a.net.set(&a.net.deaf) })
}

func TestHeadStartOfAReader(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	storetest.HeadStartOfAReader(t, w.open(t), w.open(t))
}

func TestHeadStartTies(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	storetest.HeadStartTies(t, w.open(t), func(owner string) {
		for _, key := range []string{"line", "writers"} {
			require.NoError(t, w.rdb.ZIncrBy(bounded(t), keysOf(w.prefix, "k")[key], 3600e6, owner).Err())
		}
	})
}
