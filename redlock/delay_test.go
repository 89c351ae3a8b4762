package redlock_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

// Requests of one owner take different connections, so one may overtake another, and one
// whose connection broke may come after the one that was sent in its stead.

// TestLateGiveBack: a waiter gives its votes back. On node 0 that is lost, and sent again. The
// first sending comes when the waiter has a grant, with votes of nodes 1 and 2 and one more.
func TestLateGiveBack(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.ready(t)
	a, b := w.reaching(t, []int{0, 1, 2, 3}), w.reaching(t, []int{0, 3, 4})
	storetest.Release(t, a, storetest.Acquire(t, a, storetest.Request("warm up")))
	w.block(t, 2, "k")
	w.block(t, 3, "k")
	late := a.nets[0].setTrap(a.Scripts()["release"], false)
	waiting := storetest.Waits(t, a, storetest.Request("k"))
	late.await(t)
	storetest.Eventually(t, "the second sending", func() bool { return !w.has(t, 0, "k", waiting.Owner) })

	w.counter(t, 2, "k", 1) // free
	storetest.Eventually(t, "a try with three free nodes", func() bool { return w.has(t, 2, "k", waiting.Owner) })
	for range 20 {
		storetest.Inspect(t, a, "other") // time enough for a grant that must not be
	}
	w.counter(t, 3, "k", 1)
	g := waiting.Granted(t)
	late.deliver(t)
	_, err := b.Acquire(storetest.Bounded(t), storetest.Request("k"))
	require.ErrorIs(t, err, lock.ErrHeld)
	storetest.Release(t, a, storetest.Renew(t, a, g))
}

// TestLateRenewal: a node gets a renewal after the release that followed it, and has nothing
// to renew. It must not be given the grant back.
func TestLateRenewal(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprint("shared ", shared), func(t *testing.T) {
			t.Parallel()
			w := sharedWorld(t)
			p := w.ready(t)
			req := storetest.Request("k")
			req.Shared = shared
			g := storetest.Acquire(t, p, req)
			storetest.Eventually(t, "its vote", func() bool { return w.has(t, 4, "k", g.Owner) })
			late := p.nets[4].setTrap(p.Scripts()["renew"], true)
			g = storetest.Renew(t, p, g)
			late.await(t)
			storetest.Release(t, p, g)
			storetest.Eventually(t, "the release", func() bool { return !w.has(t, 4, "k", g.Owner) })
			late.deliver(t)
			for range 20 {
				storetest.Inspect(t, p, "other")
				require.False(t, w.has(t, 4, "k", g.Owner))
			}
		})
	}
}

// block has a node say that somebody holds key.
func (w world) block(tb testing.TB, i int, key string) {
	tb.Helper()
	held := fmt.Sprintf("1:%d:0:blocker:1:", time.Now().Add(time.Hour).UnixMilli())
	require.NoError(tb, w.plain[i].Set(storetest.Bounded(tb), w.prefix+"s:"+key, held, time.Hour).Err())
}

// has tells whether a node knows owner as a holder of key.
func (w world) has(tb testing.TB, i int, key, owner string) bool {
	tb.Helper()
	ctx := storetest.Bounded(tb)
	state, _ := w.plain[i].Get(ctx, w.prefix+"s:"+key).Result()
	return strings.Contains(state, ":"+owner+":") || w.plain[i].HExists(ctx, w.prefix+"i:"+key, owner).Val()
}
