package redlock_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/redlock"
)

// Requests of one owner take different connections, so one may overtake another, and one
// whose connection broke may come after the one that was sent in its stead.

// TestLateGiveBack: a waiter gives its votes back. Node 0 gets that when the waiter has a
// grant, with votes of nodes 1 and 2 and one more: because it was slow, or lost and sent
// again, at once or after some time out of reach.
func TestLateGiveBack(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"slow", "lost", "owed"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			w := sharedWorld(t)
			w.ready(t)
			a, b := w.reaching(t, []int{0, 1, 2, 3}, redlock.WithTimeout(500*time.Millisecond)), w.reaching(t, []int{0, 3, 4})
			storetest.Release(t, a, storetest.Acquire(t, a, storetest.Request("warm up")))
			w.block(t, 2, "k")
			w.block(t, 3, "k")
			req := storetest.Request("k")
			late := a.nets[0].set(&trap{
				texts: []string{a.Scripts()["release"].SHA, req.Owner}, slow: how == "slow", cuts: how == "owed",
			})
			waiting := storetest.Waits(t, a, req)
			late.await(t)
			if how == "owed" {
				storetest.Eventually(t, "a release to be owed", func() bool { return a.Owes(0) })
				a.nets[0].heal()
			}
			if how != "slow" {
				storetest.Eventually(t, "the second sending", func() bool { return !w.has(t, 0, "k", waiting.Owner) })
			}

			w.counter(t, 2, "k", 1) // free
			storetest.Eventually(t, "a try with three free nodes", func() bool {
				return w.plain[2].TTL(storetest.Bounded(t), a.Keys("k")[1]).Val() > time.Hour // it has written
			})
			for range 20 {
				storetest.Inspect(t, b, "other") // time enough for a grant that must not be
			}
			w.counter(t, 3, "k", 1)
			g := waiting.Granted(t)
			late.deliver(t)
			storetest.Eventually(t, "the late one", func() bool { return !w.has(t, 0, "k", waiting.Owner) })
			_, err := b.Acquire(storetest.Bounded(t), storetest.Request("k"))
			require.ErrorIs(t, err, lock.ErrHeld)
			storetest.Release(t, a, storetest.Renew(t, a, g))
		})
	}
}

// TestLateRejoin: a node gets a grant back after the release that followed.
func TestLateRejoin(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	ctx := storetest.Bounded(t)
	g := storetest.Acquire(t, p, storetest.Request("k"))
	storetest.Eventually(t, "its vote", func() bool { return w.has(t, 4, "k", g.Owner) })
	w.counter(t, 4, "k", 1)
	late := p.nets[4].set(&trap{texts: []string{p.Scripts()["rejoin"].SHA, g.Owner}, slow: true})
	storetest.Renew(t, p, g)
	late.await(t)
	storetest.Release(t, p, g)
	marks := p.Keys("k")[4]
	storetest.Eventually(t, "the release", func() bool { return w.plain[4].ZCard(ctx, marks).Val() == 1 })
	late.deliver(t)
	for range 20 {
		storetest.Inspect(t, p, "other")
		require.False(t, w.has(t, 4, "k", g.Owner))
	}
}

// TestLateActivation: all nodes are new, and a process lets them vote, but is slow with one.
// Meanwhile another has done it there, a lock is granted, and the node forgets it.
func TestLateActivation(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	ctx := storetest.Bounded(t)
	slow := w.open(t, redlock.WithTimeout(200*time.Millisecond))
	late := slow.nets[2].set(&trap{texts: []string{"Lets a new node vote at once"}, slow: true})
	_, _ = slow.Acquire(ctx, storetest.Request("other"))
	late.await(t)
	node := slow.Keys("")[0]
	votes := strings.Replace(w.plain[2].Get(ctx, node).Val(), ":n:", ":a:", 1)
	require.NoError(t, w.plain[2].Set(ctx, node, "0000000000000"+votes[13:], 0).Err())
	storetest.Acquire(t, w.reaching(t, []int{0, 1, 2}), storetest.Request("k"))

	for _, name := range w.plain[2].Keys(ctx, w.prefix+"*").Val() {
		require.NoError(t, w.plain[2].Del(ctx, name).Err())
	}
	rivals := w.reaching(t, []int{2, 3, 4})
	_, err := rivals.Acquire(ctx, storetest.Request("k"))
	require.ErrorIs(t, err, redlock.ErrNoQuorum)
	late.deliver(t)
	for range 20 {
		_, err = rivals.Acquire(ctx, storetest.Request("k"))
		require.Error(t, err) // no quorum, or held by an earlier try for a moment more
	}
}

// TestLateGrant: the votes come when the TTL is over that they are for.
func TestLateGrant(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	p := w.ready(t)
	w.pause()
	done := make(chan error)
	go func() {
		_, err := p.Acquire(context.Background(), storetest.Lasting(storetest.Request("k"), time.Second))
		done <- err
	}()
	select {
	case err := <-done:
		require.FailNow(t, "the nodes are frozen", "%v", err)
	case <-time.After(1500 * time.Millisecond):
	}
	w.resume()
	require.ErrorContains(t, <-done, "took longer to answer than the TTL of 1s")
}

// TestHandOverByTooFew: of the three nodes that a process reaches, one has given the lock to
// somebody else meanwhile.
func TestHandOverByTooFew(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.ready(t)
	w.age(t)
	p := w.reaching(t, []int{0, 1, 2})
	g := storetest.Acquire(t, p, storetest.Request("k"))
	waiting := storetest.Waits(t, p, storetest.Request("k"))
	w.block(t, 2, "k")
	p.AdvanceClocks(redlock.Lead)
	_ = p.Release(storetest.Bounded(t), g)
	for range 20 {
		_, err := p.Acquire(storetest.Bounded(t), storetest.Request("k"))
		require.Error(t, err)
		require.True(t, w.has(t, 2, "k", "blocker"))
	}
	select {
	case <-waiting.Done:
		require.FailNow(t, "granted by two of five", "%v, %v", waiting.Grant, waiting.Err)
	default:
	}
	w.counter(t, 2, "k", 1)
	storetest.Release(t, p, waiting.Granted(t))
}

// TestHandOverBeyondReach: a node that does not hear of a hand-over is told when it can be.
func TestHandOverBeyondReach(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	w.age(t)
	g := storetest.Acquire(t, p, storetest.Request("k"))
	storetest.Eventually(t, "all votes", func() bool { return w.held(t, "k") == 5 })
	waiting := storetest.Waits(t, p, storetest.Request("k"))
	p.nets[4].sever()
	p.AdvanceClocks(redlock.Lead)
	storetest.Release(t, p, g)
	h := waiting.Granted(t)
	storetest.Eventually(t, "a release to be owed", func() bool { return p.Owes(4) })
	p.nets[4].heal()
	storetest.Eventually(t, "the release", func() bool { return !w.has(t, 4, "k", g.Owner) })
	storetest.Release(t, p, h)
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
			late := p.nets[4].set(&trap{texts: []string{p.Scripts()["renew"].SHA, g.Owner}, slow: true})
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

// age has the nodes vote since long ago, so that a good guess of a token is taken: in their
// first two seconds none is, and no hand-over is in one round trip.
func (w world) age(tb testing.TB) {
	tb.Helper()
	for i := range w.servers {
		ctx, node := storetest.Bounded(tb), w.prefix+"node"
		was := w.plain[i].Get(ctx, node).Val()
		require.Greater(tb, len(was), 13)
		require.NoError(tb, w.plain[i].Set(ctx, node, "0000000000001"+was[13:], 0).Err())
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
