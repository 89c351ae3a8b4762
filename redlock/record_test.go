package redlock_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

// votes has a node say that owner has its vote, by a token; 0 is for a vote without one.
func (w world) votes(tb testing.TB, key, owner string, token lock.Token, nodes ...int) {
	tb.Helper()
	for _, i := range nodes {
		held := fmt.Sprintf("%d:%d:%d:%s:1:", token, time.Now().Add(time.Hour).UnixMilli(), token, owner)
		require.NoError(tb, w.plain[i].Set(storetest.Bounded(tb), w.prefix+"s:"+key, held, time.Hour).Err())
	}
}

// TestRecordIsConsistent: votes are no grant before a quorum has them, and their token.
func TestRecordIsConsistent(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	all := w.ready(t)
	three := w.reaching(t, []int{0, 1, 2})
	three.warmUp(t, 0, 1, 2)
	type votes struct {
		owner string
		token lock.Token
		nodes []int
	}
	for name, c := range map[string]struct {
		of    *process
		votes []votes
		want  []string
		token lock.Token
	}{
		"granted":                  {all, []votes{{"a", 7, []int{0, 1, 2}}}, []string{"a"}, 7},
		"granted, one more vote":   {all, []votes{{"a", 7, []int{0, 1, 2}}, {"a", 0, []int{3}}}, []string{"a"}, 7},
		"too few":                  {all, []votes{{"a", 7, []int{0, 1}}}, nil, 0},
		"no token":                 {all, []votes{{"a", 0, []int{0, 1, 2, 3, 4}}}, nil, 0},
		"a token of too few":       {all, []votes{{"a", 7, []int{0, 1}}, {"a", 0, []int{2, 3, 4}}}, nil, 0},
		"a token of another try":   {all, []votes{{"a", 7, []int{0, 1, 2}}, {"a", 9, []int{3}}}, []string{"a"}, 7},
		"split":                    {all, []votes{{"a", 7, []int{0, 1}}, {"b", 8, []int{2, 3}}}, nil, 0},
		"either, of three":         {three, []votes{{"a", 7, []int{0, 1}}, {"b", 8, []int{2}}}, []string{"a"}, 7},
		"any, of three":            {three, []votes{{"a", 7, []int{0}}, {"b", 8, []int{1}}, {"c", 9, []int{2}}}, []string{"c"}, 9},
		"likely one without token": {three, []votes{{"a", 0, []int{0, 1}}, {"b", 8, []int{2}}}, []string{"b"}, 8},
	} {
		for _, v := range c.votes {
			w.votes(t, name, v.owner, v.token, v.nodes...)
		}
		rec := storetest.Inspect(t, c.of, name)
		var owners []string
		for _, h := range rec.Holders {
			owners = append(owners, h.Owner)
			require.Equal(t, c.token, h.Token, name)
		}
		require.Equal(t, c.want, owners, name)
		require.Equal(t, len(c.want), rec.HolderCount, name)
		require.Equal(t, c.token, rec.Token, name)
	}
}

// TestRecordOfContention: however many processes ask at once, each look shows one holder at
// most, with the token of its grant.
func TestRecordOfContention(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	ctx := t.Context() // which 300 looks of a busy machine do not end
	stop := make(chan struct{})
	done := make(chan error, 4)
	for range cap(done) {
		p := w.ready(t)
		go func() {
			for {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				p.ForgetClocks() // so that each token takes a second round trip
				req := storetest.Request("k")
				req.Wait = true
				g, err := p.Acquire(ctx, req)
				if err == nil {
					err = p.Release(ctx, g)
				}
				if err != nil {
					done <- err
					return
				}
			}
		}()
	}
	l := w.ready(t)
	tokens := make(map[string]lock.Token)
	for range 300 {
		rec := storetest.Inspect(t, l, "k")
		require.LessOrEqual(t, len(rec.Holders), 1)
		for _, h := range rec.Holders {
			require.NotZero(t, h.Token)
			if before := tokens[h.Owner]; before != 0 {
				require.Equal(t, before, h.Token, "an owner has one grant")
			}
			tokens[h.Owner] = h.Token
		}
	}
	close(stop)
	for range cap(done) {
		require.NoError(t, <-done)
	}
}

// TestManyReaders: a record shows some of them and counts all, and a look at very many costs
// no more.
func TestManyReaders(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	ctx := storetest.Bounded(t)
	storetest.Acquire(t, p, storetest.Shared(storetest.Request("k")))
	script := `local t = redis.call('TIME')
		for i = 1, 9999 do
			redis.call('ZADD', KEYS[1], t[1] * 1000 + 3600000 + i, 'r' .. i)
			redis.call('HSET', KEYS[2], 'r' .. i, string.format('%d:5:1:', t[1] * 1000 + 3600000 + i))
		end`
	for i := range w.servers {
		storetest.Eventually(t, "its vote", func() bool {
			return w.plain[i].Exists(ctx, w.prefix+"r:k").Val() == 1
		})
		w.plain[i].Eval(ctx, script, []string{w.prefix + "r:k", w.prefix + "i:k"})
	}
	rec := storetest.Inspect(t, p, "k")
	require.Equal(t, 10000, rec.HolderCount)
	require.Len(t, rec.Holders, lock.MaxRecord)
	_, err := p.Acquire(ctx, storetest.Request("k"))
	var held *lock.HeldError
	require.ErrorAs(t, err, &held)
	require.Equal(t, 10000, held.Record.HolderCount)
	require.Len(t, held.Record.Holders, lock.MaxRecord)
}
