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

// TestConfirmScript: it neither lowers a counter nor confirms what is not there, or another vote.
func TestConfirmScript(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	ctx := storetest.Bounded(t)
	keys, confirm := p.Keys("k"), p.Scripts()["confirm"].SHA
	holds := fmt.Sprintf(":%d:0:o:1:", time.Now().Add(time.Hour).UnixMilli())
	for _, c := range []struct {
		state  string
		want   int64
		digits string
	}{
		{"100" + holds, 1, "100:"},
		{"49" + holds, 1, "50:"},
		{"49:", 0, "49:"},
		{"49" + strings.Replace(holds, ":1:", ":2:", 1), 0, "49:"},
		{"49" + strings.Replace(holds, ":o:", ":p:", 1), 0, "49:"},
	} {
		require.NoError(t, w.plain[0].Set(ctx, keys[1], c.state, time.Hour).Err())
		got, err := w.plain[0].EvalSha(ctx, confirm, keys, "o", "50", 1).Result()
		require.NoError(t, err)
		require.Equal(t, c.want, got, c.state)
		require.Regexp(t, "^"+c.digits, w.plain[0].Get(ctx, keys[1]).Val(), c.state)
	}
}

// TestVoteByName: what gives a vote back ends no later one of the same owner, though the first one
// stood when that was asked for.
func TestVoteByName(t *testing.T) {
	t.Parallel()
	for _, shared := range []string{"", "1"} {
		w := sharedWorld(t)
		p := w.ready(t)
		ctx, keys := storetest.Bounded(t), p.Keys("k")
		vote := func() int64 {
			r, err := w.plain[0].EvalSha(ctx, p.Scripts()["lock"].SHA, keys, "o", 60000, "1", 0, "", shared).Int64Slice()
			require.NoError(t, err)
			return r[0]
		}
		giveBack := func(cast int64) {
			require.NoError(t, w.plain[0].EvalSha(ctx, p.Scripts()["release"].SHA, keys, "o", 0, 0, shared, "", cast).Err())
		}
		first, second := vote(), vote()
		giveBack(first)
		require.True(t, w.has(t, 0, "k", "o"))
		giveBack(second)
		require.False(t, w.has(t, 0, "k", "o"))
	}
}

// TestJoinScript: what a node takes itself for.
func TestJoinScript(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	ctx := storetest.Bounded(t)
	node, join := p.Keys("k")[0], p.Scripts()["join"].Source
	run := strings.Split(w.plain[0].Get(ctx, node).Val(), ":")[2]
	const past, future = "0000000000001", "9000000000000"
	for before, after := range map[string]string{
		"":                   `:n:` + run,
		past + ":n:abc":      `:r:` + run, // it has voted in its last life
		future + ":n:abc":    `:n:` + run,
		past + ":a:abc":      `:r:` + run,
		past + ":r:abc":      `:r:` + run,
		future + ":r:abc":    `:r:` + run,
		past + ":a:" + run:   `^` + past + `:a:` + run,
		future + ":n:" + run: `^` + future + `:n:` + run,
	} {
		require.NoError(t, w.plain[0].Del(ctx, node).Err())
		if before != "" {
			require.NoError(t, w.plain[0].Set(ctx, node, before, 0).Err())
		}
		require.NoError(t, w.plain[0].Eval(ctx, join, []string{node}, 60000).Err())
		require.Regexp(t, after+"$", w.plain[0].Get(ctx, node).Val(), before)
	}
}

// TestAbstainingNode: it neither records a token, nor renews, nor takes a grant back, whatever it
// remembers.
func TestAbstainingNode(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	ctx := storetest.Bounded(t)
	keys := p.Keys("k")
	run := strings.Split(w.plain[0].Get(ctx, keys[0]).Val(), ":")[2]
	require.NoError(t, w.plain[0].Set(ctx, keys[0], "9000000000000:r:"+run, 0).Err())
	holds := fmt.Sprintf("49:%d:49:o:1:", time.Now().Add(time.Hour).UnixMilli())
	for name, state := range map[string]string{"confirm": holds, "renew": holds, "rejoin": "49:"} {
		require.NoError(t, w.plain[0].Set(ctx, keys[1], state, time.Hour).Err())
		got, err := w.plain[0].EvalSha(ctx, p.Scripts()[name].SHA, keys, "o", "50", 60000, "").Slice()
		require.NoError(t, err, name)
		require.Equal(t, "abstains", got[0], name)
		require.Equal(t, state, w.plain[0].Get(ctx, keys[1]).Val(), name)
	}
}

// TestRejoinOfForced: no grant that was ended by force comes back.
func TestRejoinOfForced(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	g := storetest.Acquire(t, p, storetest.Request("k"))
	storetest.Eventually(t, "all votes", func() bool { return w.held(t, "k") == 5 })
	require.Error(t, w.reaching(t, []int{3, 4}).ForceRelease(storetest.Bounded(t), "k", g.Owner))
	require.False(t, w.has(t, 4, "k", g.Owner))
	for range 5 {
		g = storetest.Renew(t, p, g)
		storetest.Inspect(t, p, "k")
	}
	require.False(t, w.has(t, 4, "k", g.Owner))
}

// TestTokenIsNearTheClocks: a guess that is not is not taken.
func TestTokenIsNearTheClocks(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	clock := func() lock.Token {
		now, err := w.plain[0].Time(storetest.Bounded(t)).Result()
		require.NoError(t, err)
		return lock.Token(now.UnixMicro())
	}
	for i, off := range []time.Duration{-time.Hour, time.Hour} {
		p.AdvanceClocks(off)
		before := clock()
		g := storetest.Acquire(t, p, storetest.Request(fmt.Sprint("k", i)))
		require.GreaterOrEqual(t, g.Token, before)
		require.LessOrEqual(t, g.Token, clock()+lock.Token((2*time.Second).Microseconds()))
	}
}
