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

// TestTTLIsNoShorter: a grant lives for all of its TTL since Start, also one that came late
// in a millisecond of the nodes' clocks. Who comes next is granted before the look at the
// clock here.
func TestTTLIsNoShorter(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.ready(t), w.ready(t)
	ctx := storetest.Bounded(t)
	for _, shared := range []bool{false, true} {
		ttl := 10 * time.Millisecond
		for granted := 0; granted < 50; {
			req := storetest.Lasting(storetest.Request("k"), ttl)
			req.Shared = shared
			g, err := a.Acquire(ctx, req)
			if err != nil { // it took longer than the TTL, or the last release is not everywhere yet
				require.NoError(t, ctx.Err())
				ttl += time.Millisecond
				continue
			}
			granted++
			var next lock.Grant
			for err = lock.ErrHeld; err != nil; {
				require.NoError(t, ctx.Err())
				next, err = b.Acquire(ctx, storetest.Request("k"))
			}
			require.GreaterOrEqual(t, time.Since(g.Start), ttl)
			storetest.Release(t, b, next)
		}
	}
}

// TestReleaseAfterTTL: two nodes have a grant for longer than the others, since they voted late, and a
// third cannot be asked. The grant's TTL is over, so it is lost, whatever that one knows.
func TestReleaseAfterTTL(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	g := storetest.Acquire(t, p, storetest.Lasting(storetest.Request("k"), 2*time.Second))
	storetest.Eventually(t, "all votes", func() bool { return w.held(t, "k") == 5 && p.Idle(4) })
	for _, i := range []int{3, 4} {
		w.prolong(t, i, "k", g.Token.String())
	}
	p.nets[2].sever()
	storetest.Eventually(t, "the TTL to be over, on the others too", func() bool { return time.Since(g.Start) > 2*g.TTL })
	require.ErrorIs(t, p.Release(storetest.Bounded(t), g), lock.ErrLost)
	for _, i := range []int{3, 4} {
		storetest.Eventually(t, "the release", func() bool { return !w.has(t, i, "k", g.Owner) })
	}

	for _, n := range p.nets { // nobody answers: that is not to be taken for a loss
		n.sever()
	}
	require.ErrorIs(t, p.Release(storetest.Bounded(t), g), redlock.ErrNoQuorum)
}

// TestAfterTTL: three nodes have a grant for longer than the others, but its token only one of them. A
// look at the key shows no holder any more, so neither a renewal nor a release finds one.
func TestAfterTTL(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p, other := w.ready(t), w.ready(t)
	for what, call := range map[string]func(context.Context, lock.Grant) error{
		"renewed":  func(ctx context.Context, g lock.Grant) error { _, err := p.Renew(ctx, g); return err },
		"released": p.Release,
	} {
		g := storetest.Renew(t, p, storetest.Acquire(t, p, storetest.Lasting(storetest.Request(what), 2*time.Second)))
		storetest.Eventually(t, "all nodes to have the token", func() bool { return w.held(t, what) == 5 && p.Idle(3) && p.Idle(4) })
		w.prolong(t, 2, what, g.Token.String())
		w.prolong(t, 3, what, "0")
		w.prolong(t, 4, what, "0")
		storetest.Eventually(t, "the TTL to be over, on the others too", func() bool { return time.Since(g.Start) > 2*g.TTL })
		require.Empty(t, storetest.Inspect(t, other, what).Holders)
		require.ErrorIs(t, call(storetest.Bounded(t), g), lock.ErrLost, what)
		require.Empty(t, storetest.Inspect(t, other, what).Holders)
	}
}

// prolong has a writer's grant end an hour later on a node, which has that token for it.
func (w world) prolong(tb testing.TB, i int, key, token string) {
	tb.Helper()
	ctx, name := storetest.Bounded(tb), w.prefix+"s:"+key
	part := strings.SplitN(w.plain[i].Get(ctx, name).Val(), ":", 4)
	require.Len(tb, part, 4)
	part[1], part[2] = fmt.Sprint(time.Now().Add(time.Hour).UnixMilli()), token
	require.NoError(tb, w.plain[i].Set(ctx, name, strings.Join(part, ":"), time.Hour).Err())
}
