package redlock_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
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
			require.NoError(t, w.plain[0].EvalSha(ctx, p.Scripts()["release"].SHA, keys, "o", 0, 0, shared, "", cast, "", "").Err())
		}
		first, second := vote(), vote()
		giveBack(first)
		require.True(t, w.has(t, 0, "k", "o"))
		giveBack(second)
		require.False(t, w.has(t, 0, "k", "o"))
	}
}

// TestOneOwnerByTwoAcquisitions: a node leaves as it is what an owner has by one, until the other adopts
// it. Then nothing ends it that the first has sent on its way, but the release does.
func TestOneOwnerByTwoAcquisitions(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	w.age(t)
	token := lock.Token(time.Now().Add(time.Hour).UnixMicro())
	for shared, other := range map[string]string{"": "1", "1": ""} {
		ctx, key := storetest.Bounded(t), "k"+shared
		run := func(script string, args ...any) any {
			r, err := w.plain[0].EvalSha(ctx, p.Scripts()[script].SHA, p.Keys(key), args...).Result()
			require.NoError(t, err)
			return r
		}
		ask := func(owner, by string, proposal lock.Token) any {
			return run("lock", owner, 60000, proposal.String(), 2*time.Hour.Microseconds(), "", shared, by)
		}
		adopt := func(token lock.Token) any { return run("adopt", "o", token.String(), 60000, shared) }
		giveBack := func(cast any) any { return run("release", "o", 0, 0, shared, "", cast, "", "") }
		one, none, had := any(int64(1)), any(int64(0)), any([]any{"has", int64(token)})

		cast := ask("o", "first", token)
		require.IsType(t, int64(0), cast)
		require.Equal(t, had, ask("o", "second", token+1))
		require.Equal(t, had, ask("o", "second", token))
		require.Equal(t, "held", run("lock", "o", 60000, "1", 0, "", other, "second").([]any)[0])
		require.Equal(t, one, giveBack(cast), "it has its name")

		cast = ask("o", "first", token)
		require.Equal(t, none, adopt(token+1))
		require.Equal(t, one, adopt(token))
		require.Equal(t, none, giveBack(cast))
		require.Equal(t, none, run("confirm", "o", (token+1).String(), cast))
		require.Equal(t, had, ask("o", "first", token+1), "a late copy")
		require.Equal(t, none, run("release", "o", token.String(), 0, shared, "", "", "", "1"), "after a lost renewal")
		require.Equal(t, one, run("renew", "o", token.String(), 60000, shared, ""))
		require.Equal(t, one, adopt(token))
		require.Equal(t, one, run("release", "o", token.String(), 0, shared, "", "", "", ""))
		require.False(t, w.has(t, 0, key, "o"))

		cast = run("lock", "o", 60000, "1", 0, "", shared, "second").([]any)[0]
		require.Equal(t, any([]any{"has", int64(0)}), ask("o", "first", token+1), "a vote without a token")
		require.Equal(t, one, run("renew", "o", (token+1).String(), 60000, shared, ""))
		require.Equal(t, none, giveBack(cast), "it is part of the grant that was renewed")
		require.True(t, w.has(t, 0, key, "o"))
		require.Equal(t, none, adopt(token+1), "the counter may be that of another")
	}
}

// TestUndoOfOneAcquisition: it ends what that one has, and refuses what comes late of that one, and of no
// other of the same owner.
func TestUndoOfOneAcquisition(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	for _, shared := range []string{"", "1"} {
		ctx, key := storetest.Bounded(t), "k"+shared
		run := func(script string, args ...any) any {
			r, err := w.plain[0].EvalSha(ctx, p.Scripts()[script].SHA, p.Keys(key), args...).Result()
			require.NoError(t, err)
			return r
		}
		ask := func(by string) any { return run("lock", "o", 60000, "1", 0, "", shared, by) }
		undo := func(by string) any { return run("release", "o", 0, 60000, shared, "1", "", "", "", by) }
		require.IsType(t, []any{}, ask("first"))
		require.Equal(t, int64(0), undo("second"))
		require.Equal(t, "undone", ask("second"))
		require.True(t, w.has(t, 0, key, "o"))
		require.Equal(t, int64(1), undo("first"))
		require.False(t, w.has(t, 0, key, "o"))
		require.Equal(t, "undone", ask("first"))
		require.IsType(t, []any{}, ask("third"))
		require.True(t, w.has(t, 0, key, "o"))
	}
}

// TestTriesLeaveNoToken: a counter is what it was when all votes have been given back, in whatever
// order, but never below what may have been granted.
func TestTriesLeaveNoToken(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	w.age(t)
	const before = 49
	ahead := lock.Token(time.Now().Add(time.Hour).UnixMicro())
	for _, c := range []struct {
		name, shared string
		steps        []string
		granted      lock.Token // 0: none
	}{
		{"one", "", []string{"vote a", "back a"}, 0},
		{"readers", "1", []string{"vote a", "vote b", "vote c", "back c", "back b", "back a"}, 0},
		{"readers, the first first", "1", []string{"vote a", "vote b", "vote c", "back a", "back b", "back c"}, 0},
		{"readers, the second first", "1", []string{"vote a", "vote b", "vote c", "back b", "back a", "back c"}, 0},
		{"readers, one without a token", "1", []string{"blank a", "vote b", "back a", "back b"}, 0},

		{"granted", "", []string{"vote a", "end a"}, ahead + 1},
		{"asked for twice", "", []string{"vote a", "vote a", "back a"}, ahead + 1},
		{"seen by a writer, and expired", "1", []string{"vote a", "vote b", "expire a", "rival w", "back b"}, ahead + 1},
		{"confirmed", "", []string{"blank a", "confirm a", "back a"}, ahead + 1},
		{"the first granted", "1", []string{"vote a", "vote b", "end a", "back b"}, ahead + 1},
		{"the second granted", "1", []string{"vote a", "vote b", "back a", "end b"}, ahead + 2},
		{"the first granted, and forced", "1", []string{"vote a", "vote b", "force a", "back b"}, ahead + 1},
		{"the first granted, and expired", "1", []string{"vote a", "vote b", "expire a", "back b"}, ahead + 1},
		{"the first granted, a token that both confirm", "1", []string{"blank a", "blank b", "confirm a", "confirm b", "back b"}, ahead + 1},
		{"the first granted, the token of the second's vote", "1", []string{"blank a", "vote b", "confirm a", "back b"}, ahead + 1},
		{"given back to the node beside a reader", "1", []string{"vote a", "rejoin b", "back a"}, before + 1},
	} {
		ctx, keys := storetest.Bounded(t), p.Keys(c.name)
		run := func(script string, args ...any) any {
			r, err := w.plain[0].EvalSha(ctx, p.Scripts()[script].SHA, keys, args...).Result()
			require.NoError(t, err, c.name)
			return r
		}
		w.counter(t, 0, c.name, before)
		next, tokens, votes := ahead, map[string]lock.Token{}, map[string]int64{}
		for _, step := range c.steps {
			verb, owner, _ := strings.Cut(step, " ")
			switch verb {
			case "vote":
				next++
				tokens[owner] = next
				votes[owner] = run("lock", owner, 60000, next.String(), 2*time.Hour.Microseconds(), "", c.shared).(int64)
				continue
			case "blank":
				votes[owner] = run("lock", owner, 60000, 1, 0, "", c.shared).([]any)[0].(int64)
				continue
			case "rival":
				require.Equal(t, "held", run("lock", owner, 60000, 1, 0, "", "").([]any)[0], c.name)
				continue
			case "expire":
				require.NoError(t, w.plain[0].ZAdd(ctx, keys[2], goredis.Z{Score: 1, Member: owner}).Err())
				continue
			}
			require.Equal(t, int64(1), map[string]func() any{
				"confirm": func() any { return run("confirm", owner, (ahead + 1).String(), votes[owner]) },
				"rejoin":  func() any { return run("rejoin", owner, before+1, 60000, c.shared) },
				"back":    func() any { return run("release", owner, 0, 0, c.shared, "", votes[owner], "", "") },
				"end":     func() any { return run("release", owner, tokens[owner].String(), 0, c.shared, "", "", "", "") },
				"force":   func() any { return run("force", owner, 60000) },
			}[verb](), "%s: %s", c.name, step)
		}
		digits, _, _ := strings.Cut(strings.ReplaceAll(w.plain[0].Get(ctx, keys[1]).Val(), "*", ""), ":")
		counter, err := lock.ParseToken(digits)
		require.NoError(t, err, c.name)
		if c.granted == 0 {
			require.Equal(t, lock.Token(before), counter, c.name)
		} else {
			require.GreaterOrEqual(t, counter, c.granted, c.name)
		}
	}
}

// TestLateCopyOfAVote: it was sent again, and granted, and renewed for longer. The first copy comes last,
// and does not cut that.
func TestLateCopyOfAVote(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	w.age(t)
	for _, shared := range []string{"", "1"} {
		for _, proposal := range []string{"1", "50"} {
			ctx, keys := storetest.Bounded(t), p.Keys(shared+proposal)
			run := func(script string, args ...any) {
				require.NoError(t, w.plain[0].EvalSha(ctx, p.Scripts()[script].SHA, keys, args...).Err())
			}
			run("lock", "o", 60000, "1", 0, "", shared)
			run("renew", "o", "50", time.Hour.Milliseconds(), shared, "")
			run("lock", "o", 60000, proposal, 0, "", shared)
			expiry := int64(w.plain[0].ZScore(ctx, keys[2], "o").Val())
			if shared == "" {
				var err error
				expiry, err = strconv.ParseInt(strings.Split(w.plain[0].Get(ctx, keys[1]).Val(), ":")[1], 10, 64)
				require.NoError(t, err)
			}
			require.Greater(t, expiry, time.Now().Add(30*time.Minute).UnixMilli())
		}
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
	for name, state := range map[string]string{"adopt": strings.ReplaceAll(holds, "49", "50"), "confirm": holds, "renew": holds, "rejoin": "49:"} {
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
