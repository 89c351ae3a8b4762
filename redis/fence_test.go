package redis_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/redis"
)

func staleBy(tb testing.TB, err error, key string, token, newest lock.Token) {
	tb.Helper()
	var stale *lock.StaleError
	require.ErrorAs(tb, err, &stale)
	require.ErrorIs(tb, err, lock.ErrStale)
	require.Equal(tb, lock.StaleError{Key: key, Token: token, Newest: newest}, *stale)
}

// TestFenceOrder: each step is refused once a newer token has taken any step, and leaves
// the value alone then.
func TestFenceOrder(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	f, ctx := redis.NewFence(w.rdb), bounded(t)
	get := func(key string, token lock.Token) error { _, err := f.Get(ctx, key, token); return err }
	set := func(key string, token lock.Token) error { return f.Set(ctx, key, token, token, 0) }
	eval := func(key string, token lock.Token) error {
		_, err := f.Eval(ctx, token, "return redis.call('SET', KEYS[1], ARGV[1])", []string{key}, token)
		return err
	}
	type step struct {
		name string
		do   func(string, lock.Token) error
	}
	steps := []step{{"Get", get}, {"Set", set}, {"Eval", eval}}
	for _, tokens := range [][2]lock.Token{{9, 10}, {99999, 100000}, {lock.MaxToken - 1, lock.MaxToken}} {
		older, newer := tokens[0], tokens[1]
		for _, first := range steps {
			for _, second := range steps {
				key := w.prefix + first.name + second.name + older.String()
				require.NoError(t, set(key, older))
				require.NoError(t, first.do(key, newer))
				before := w.rdb.Get(ctx, key).Val()
				staleBy(t, second.do(key, older), key, older, newer)
				require.Equal(t, before, w.rdb.Get(ctx, key).Val())
				require.NoError(t, second.do(key, newer), "the newest may go on")
			}
		}
	}
}

// TestFenceValues: what goes in comes out; nothing is goredis.Nil.
func TestFenceValues(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	f, ctx := redis.NewFence(w.rdb), bounded(t)
	key := w.prefix + "v"
	_, err := f.Get(ctx, key, 1)
	require.ErrorIs(t, err, goredis.Nil)
	require.NoError(t, f.Set(ctx, key, 1, "", 0))
	v, err := f.Get(ctx, key, 1)
	require.NoError(t, err)
	require.Empty(t, v)
	require.NoError(t, f.Set(ctx, key, 1, "a\x00b", time.Hour))
	v, err = f.Get(ctx, key, 1)
	require.NoError(t, err)
	require.Equal(t, "a\x00b", v)
	require.InDelta(t, time.Hour, w.rdb.PTTL(ctx, key).Val(), float64(time.Minute))
	require.NoError(t, f.Set(ctx, key, 1, "for good", 0))
	require.EqualValues(t, -1, w.rdb.PTTL(ctx, key).Val())

	for step, want := range map[string]any{
		"return 7": int64(7), "return 'x'": "x", "return {1, 'x'}": []any{int64(1), "x"},
		"return #KEYS .. ARGV[2]": "1b",
	} {
		v, err := f.Eval(ctx, 1, step, []string{key}, "a", "b")
		require.NoError(t, err, step)
		require.Equal(t, want, v, step)
	}
	for _, step := range []string{"", "return", "return nil", "return false"} {
		_, err := f.Eval(ctx, 1, step, []string{key})
		require.ErrorIs(t, err, goredis.Nil, step)
	}
	_, err = f.Eval(ctx, 1, "return redis.error_reply('MINE is the fault')", []string{key})
	require.ErrorContains(t, err, "MINE is the fault")
	_, err = f.Eval(ctx, 1, "return redis.call('LPUSH', KEYS[1], 1)", []string{key})
	require.ErrorContains(t, err, "WRONGTYPE")
	_, err = f.Eval(ctx, 1, "not Lua", []string{key})
	require.ErrorContains(t, err, "lock: redis: ")
}

// TestFenceMarks are not expired, nor with the value.
func TestFenceMarks(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	f, ctx := redis.NewFence(w.rdb), bounded(t)
	require.NoError(t, f.Set(ctx, "plain", 5, "v", 10*time.Millisecond))
	require.NoError(t, f.Set(ctx, "{tag}:a", 5, "v", 10*time.Millisecond))
	require.NoError(t, f.Set(ctx, "open{brace", 5, "v", 10*time.Millisecond))
	eventually(t, "the values' end", func() bool { return w.rdb.DBSize(ctx).Val() == 3 })
	marks := names(t, w.rdb, "fence:")
	require.Len(t, marks, 3)
	for _, mark := range marks {
		require.EqualValues(t, -1, w.rdb.PTTL(ctx, mark).Val(), mark)
		require.Equal(t, "5", w.rdb.Get(ctx, mark).Val())
	}
	staleBy(t, f.Set(ctx, "plain", 4, "v", 0), "plain", 4, 5)
}

// TestFenceInvalid: nothing is sent.
func TestFenceInvalid(t *testing.T) {
	f := redis.NewFence(nowhere(t))
	ctx := context.Background()
	for want, c := range map[string]struct {
		key   string
		token lock.Token
	}{
		"token 0":                {"k", 0},
		"token 9007199254740992": {"k", lock.MaxToken + 1},
		"key is empty":           {"", 1},
		`"}"`:                    {"}", 1},
		`"a}b"`:                  {"a}b", 1},
		`"{}"`:                   {"{}", 1},
		`"{}a"`:                  {"{}a", 1},
	} {
		_, err := f.Get(ctx, c.key, c.token)
		require.ErrorIs(t, err, lock.ErrInvalid)
		require.ErrorContains(t, err, want)
		require.ErrorIs(t, f.Set(ctx, c.key, c.token, "v", 0), lock.ErrInvalid)
		_, err = f.Eval(ctx, c.token, "return 1", []string{c.key})
		require.ErrorIs(t, err, lock.ErrInvalid)
	}
	_, err := f.Eval(ctx, 1, "return 1", nil)
	require.ErrorIs(t, err, lock.ErrInvalid)
	_, err = redis.NewFence(nil).Get(ctx, "k", 1)
	require.ErrorIs(t, err, lock.ErrInvalid)
}

// TestFenceEvalOnce: the reply gets lost after the step has run. It is not run again.
func TestFenceEvalOnce(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.open(t)
	f, ctx := redis.NewFence(p.rdb), bounded(t)
	const incr = "return redis.call('INCR', KEYS[1])"
	key := w.prefix + "n"
	for want := range int64(3) { // fast enough for any short cut
		for range 20 {
			_, err := f.Eval(ctx, 1, incr, []string{key})
			require.NoError(t, err)
		}
		p.net.set(&p.net.lossy)
		_, err := f.Eval(ctx, 1, incr, []string{key})
		require.Error(t, err)
		n, err := w.rdb.Get(ctx, key).Int64()
		require.NoError(t, err)
		require.Equal(t, (want+1)*21, n)
	}
}

// TestFenceEvalFailsOnce: a step fails after its first write, with words like those of a server that has
// executed nothing. It is not run again.
func TestFenceEvalFailsOnce(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	f, ctx := redis.NewFence(w.rdb), bounded(t)
	group := w.prefix + "{s}group"
	require.NoError(t, w.rdb.XGroupCreateMkStream(ctx, group, "g", "$").Err())
	dump, err := w.rdb.Dump(ctx, group).Result()
	require.NoError(t, err)
	for says, fails := range map[string]string{
		"BUSYGROUP":  "redis.call('XGROUP', 'CREATE', KEYS[2], 'g', '$', 'MKSTREAM')",
		"BUSYKEY":    "redis.call('RESTORE', KEYS[2], 0, ARGV[1])",
		"BUSY mine":  "error({err = 'BUSY mine'})",
		"OOM mine":   "error({err = 'OOM mine'})",
		"ASK mine":   "return error({err = 'ASK mine'})",
		"NOSCRIPT m": "error({err = 'NOSCRIPT mine'})",
	} {
		counter := w.prefix + "{s}" + says
		for want := range 2 { // the server does not know the script, and knows it
			_, err := f.Eval(ctx, 1, "redis.call('INCR', KEYS[1]) "+fails, []string{counter, group}, dump)
			require.ErrorContains(t, err, says)
			n, err := w.rdb.Get(ctx, counter).Int()
			require.NoError(t, err)
			require.Equal(t, want+1, n, says)
		}
	}
}

// TestFenceThroughTrouble: a Set that the server refuses for a time is sent again, and a step of the
// caller's is not, whose own words they could be.
func TestFenceThroughTrouble(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	f, ctx := redis.NewFence(w.rdb), bounded(t)
	require.NoError(t, w.rdb.ConfigSet(ctx, "min-replicas-to-write", "1").Err())
	_, err := f.Eval(ctx, 1, "return redis.call('SET', KEYS[1], 'v')", []string{w.prefix + "v"})
	require.ErrorContains(t, err, "NOREPLICAS")
	require.Equal(t, 2, calls(t, w.rdb, "evalsha", "eval"), "the first is refused since the script is not known")
	before := w.refusals(t)
	set := make(chan error, 1)
	go func() { set <- f.Set(ctx, w.prefix+"v", 1, "v", 0) }()
	eventually(t, "a refusal", func() bool { return w.refusals(t) > before+1 })
	require.NoError(t, w.rdb.ConfigSet(ctx, "min-replicas-to-write", "0").Err())
	if err := <-set; err != nil { // on a starved machine all of its tries were before
		require.ErrorContains(t, err, "NOREPLICAS")
		t.Skip("too slow a machine")
	}
}

// TestFenceEvalForgets: a program that makes up its steps, each another, keeps none of them.
func TestFenceEvalForgets(t *testing.T) { // not in parallel: it looks at all of the heap
	const steps, size = 2000, 10_000
	w := sharedWorld(t)
	f, ctx := redis.NewFence(w.rdb), bounded(t)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for i := range steps {
		step := fmt.Sprintf("return '%d' -- %s", i, strings.Repeat("x", size))
		reply, err := f.Eval(ctx, 1, step, []string{w.prefix + "n"})
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(i), reply)
	}
	require.Less(t, heap(), before+steps*size/4)
	runtime.KeepAlive(f)
}

// TestFenceSetOnce: a Set whose reply gets lost is not sent again, since a copy that is late
// has the holder's own token, and would undo what the holder writes next.
func TestFenceSetOnce(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.open(t)
	f, ctx := redis.NewFence(p.rdb), bounded(t)
	key := w.prefix + "v"
	for range 20 { // fast enough for any short cut
		require.NoError(t, f.Set(ctx, key, 1, "before", 0))
	}
	p.net.set(&p.net.lossy)
	require.Error(t, f.Set(ctx, key, 1, "lost reply", 0))
	v, err := w.rdb.Get(ctx, key).Result()
	require.NoError(t, err)
	require.Equal(t, "lost reply", v)
}

// TestFenceOfLease is the whole: a stale holder's write is refused.
func TestFenceOfLease(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	f, ctx := redis.NewFence(l.rdb), bounded(t)
	key := w.prefix + "stock"
	first := acquire(t, l, request("k"))
	require.NoError(t, f.Set(ctx, key, first.Token, 10, 0))
	require.NoError(t, l.ForceRelease(ctx, "k", first.Owner))
	next := acquire(t, l, request("k"))
	v, err := f.Get(ctx, key, next.Token)
	require.NoError(t, err)
	require.Equal(t, "10", v)
	staleBy(t, f.Set(ctx, key, first.Token, 9, 0), key, first.Token, next.Token)
	require.NoError(t, f.Set(ctx, key, next.Token, 9, 0))
}

// fenceOnCluster: the mark is beside its key.
func fenceOnCluster(t *testing.T, cluster *testserver.Cluster) {
	p := openCluster(t, cluster)
	f, ctx := redis.NewFence(p.rdb), bounded(t)
	for _, key := range []string{"a", "{a}b", "b{a}", "a{b", "{", "a{b}c{d}", "x:y", "\x00", "a b"} {
		require.NoError(t, f.Set(ctx, key, 2, "v", 0), key)
		v, err := f.Get(ctx, key, 3)
		require.NoError(t, err)
		require.Equal(t, "v", v)
		staleBy(t, f.Set(ctx, key, 2, "v", 0), key, 2, 3)
		v2, err := f.Eval(ctx, 3, "return redis.call('APPEND', KEYS[1], 'w')", []string{key})
		require.NoError(t, err)
		require.EqualValues(t, 2, v2)
	}
}
