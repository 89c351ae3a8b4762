package redis_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/redis"
)

// loss is a way in which a server loses what it knows of tokens.
type loss struct {
	name string
	args []string // of the server
	opts []redis.Option
	do   func(t *testing.T, w world)
}

func losses() []loss {
	restart := func(_ *testing.T, w world) { w.server.Kill(); w.server.Start() }
	return []loss{
		{name: "FLUSHALL", do: func(t *testing.T, w world) { flush(t, w.server) }},
		{name: "counter deleted", do: func(t *testing.T, w world) {
			for _, key := range []string{"exclusive", "shared"} {
				n, err := w.rdb.Del(bounded(t), keysOf(w.prefix, key)["counter"]).Result()
				require.NoError(t, err)
				require.EqualValues(t, 1, n)
			}
		}},
		{
			name: "counter expired", opts: []redis.Option{redis.WithCounterTTL(time.Second)},
			do: func(t *testing.T, w world) {
				eventually(t, "the counters' end", func() bool { return len(names(t, w.rdb, w.prefix)) == 0 })
			},
		},
		{name: "SCRIPT FLUSH", do: func(t *testing.T, w world) {
			require.NoError(t, w.rdb.ScriptFlush(bounded(t)).Err())
		}},
		{name: "restart without data", do: restart},
		{name: "restart with old data", args: []string{"--appendonly", "yes", "--appendfsync", "always"}, do: restart},
	}
}

// TestTokensRise: whatever the server has lost, the next token is greater.
func TestTokensRise(t *testing.T) {
	t.Parallel()
	for _, loss := range losses() {
		t.Run(loss.name, func(t *testing.T) {
			t.Parallel()
			w := ownWorld(t, loss.args...)
			l := w.open(t, loss.opts...)
			highest := map[string]lock.Token{}
			grants := func() {
				for range 3 {
					for key, req := range map[string]lock.Request{
						"exclusive": request("exclusive"), "shared": shared(request("shared")),
					} {
						g := acquire(t, l, req)
						require.Greater(t, g.Token, highest[key], "token of %s", key)
						highest[key] = g.Token
						release(t, l, g)
					}
				}
			}
			grants()
			loss.do(t, w)
			grants()
		})
	}
}

// TestTokenAfterFlushDuringHold: the server forgets a live grant. The next holder's token is
// greater, and the first is told at its next renewal.
func TestTokenAfterFlushDuringHold(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	a, b := w.open(t), w.open(t)
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		first := acquire(t, a, mode(request("k")))
		flush(t, w.server)
		next := acquire(t, b, request("k"))
		require.Greater(t, next.Token, first.Token)
		_, err := a.Renew(bounded(t), first)
		lostBecause(t, lock.ReasonTaken, err)
		holds(t, b, next)
		release(t, b, next)
	})
}

// TestTokenCounterAheadOfClock: a clock that was set back by an hour.
func TestTokenCounterAheadOfClock(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	ahead := lock.Token(time.Now().Add(time.Hour).UnixMicro())
	require.NoError(t, w.rdb.Set(bounded(t), keysOf(w.prefix, "k")["counter"], ahead.String(), time.Hour).Err())
	for i := range lock.Token(6) {
		req := request("k")
		if i%2 == 1 {
			req.Shared = true
		}
		g := acquire(t, l, req)
		require.Equal(t, ahead+1+i, g.Token)
		require.Equal(t, g.Token, inspect(t, l, "k").Token)
		release(t, l, g)
	}
}

// TestTokenFormat: digits, in the counter and in the records. Lua's own conversion would
// make 1.79e+15 of a token, and so lose its end.
func TestTokenFormat(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	ctx := bounded(t)
	for _, ahead := range []bool{false, true} {
		for key, req := range map[string]lock.Request{"x": request("x"), "s": shared(request("s"))} {
			k := keysOf(w.prefix, key)
			if ahead {
				v := time.Now().Add(time.Hour).UnixMicro()
				require.NoError(t, w.rdb.Set(ctx, k["counter"], fmt.Sprint(v), time.Hour).Err())
			}
			g := acquire(t, l, req)
			counter, err := w.rdb.Get(ctx, k["counter"]).Result()
			require.NoError(t, err)
			require.Equal(t, g.Token.String(), counter)
			record, err := rawEntry(ctx, w, k, req)
			require.NoError(t, err)
			digits, rest, _ := strings.Cut(record, ":")
			require.Equal(t, g.Token.String(), digits)
			if !req.Shared {
				_, rest, _ = strings.Cut(rest, ":")
			}
			granted, _, _ := strings.Cut(rest, ":")
			require.Regexp(t, "^[0-9]{16}$", granted)
			release(t, l, g)
		}
	}
}

// rawEntry is what a grant has written, from the token on.
func rawEntry(ctx context.Context, w world, k map[string]string, req lock.Request) (string, error) {
	if !req.Shared {
		return w.rdb.Get(ctx, k["record"]).Result()
	}
	s, err := w.rdb.HGet(ctx, k["info"], req.Owner).Result()
	if err != nil {
		return "", err
	}
	return s[13:], nil
}

// TestTokenLimit: a counter that leaves no token above it is told, not wrapped.
func TestTokenLimit(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	ctx := bounded(t)
	for _, value := range []string{lock.MaxToken.String(), "9007199254740992", "1e300", "inf", "nan", "-nan"} {
		both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
			counter := keysOf(w.prefix, value)["counter"]
			require.NoError(t, w.rdb.Set(ctx, counter, value, time.Hour).Err())
			_, err := l.Acquire(ctx, mode(request(value)))
			require.ErrorContains(t, err, counter)
			require.Equal(t, value, w.rdb.Get(ctx, counter).Val())
			rec := names(t, w.rdb, keysOf(w.prefix, value)["record"])
			require.Equal(t, []string{counter}, rec, "nothing else is written")
		})
	}
	last := lock.MaxToken - 1
	require.NoError(t, w.rdb.Set(ctx, keysOf(w.prefix, "last")["counter"], last.String(), time.Hour).Err())
	require.Equal(t, lock.MaxToken, acquire(t, l, request("last")).Token)
}

// TestTokenOfRefusedTry: who is refused raises nothing. The token that Inspect shows has
// been granted.
func TestTokenOfRefusedTry(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		key := t.Name()
		g := acquire(t, l, mode(request(key)))
		for range 2 {
			refused(t, w.open(t), request(key)) // by a process that has never heard of the key
			require.Equal(t, g.Token, inspect(t, l, key).Token)
		}
		release(t, l, g)
		require.Equal(t, g.Token, inspect(t, l, key).Token)
	})
}
