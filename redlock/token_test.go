package redlock_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/redlock"
)

// counter sets what a node has counted to for key, while nobody holds it.
func (w world) counter(tb testing.TB, i int, key string, token lock.Token) {
	tb.Helper()
	require.NoError(tb, w.plain[i].Set(storetest.Bounded(tb), w.prefix+"s:"+key, token.String()+":", time.Hour).Err())
}

// TestTokensOfUnevenCounters: by what each has counted, A on nodes 0, 1 and 2 would get
// 11, and then B on nodes 2, 3 and 4 would get 3. The counters are far ahead of the clocks,
// so neither the clocks nor the guess of a token can hide that.
func TestTokensOfUnevenCounters(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	const far = lock.Token(8e15)
	storetest.Release(t, w.open(t), storetest.Acquire(t, w.open(t), storetest.Request("warm up")))
	a, b := w.reaching(t, []int{0, 1, 2}), w.reaching(t, []int{2, 3, 4})
	for i, ahead := range []lock.Token{10, 1, 1, 2, 2} {
		w.counter(t, i, "k", far+ahead)
	}
	first := storetest.Acquire(t, a, storetest.Request("k"))
	require.Equal(t, far+11, first.Token)
	storetest.Release(t, a, first)
	second := storetest.Acquire(t, b, storetest.Request("k"))
	require.Greater(t, second.Token, first.Token)
	storetest.Release(t, b, second)

	reader := storetest.Acquire(t, a, storetest.Shared(storetest.Request("k")))
	require.Greater(t, reader.Token, second.Token)
	storetest.Release(t, a, reader)
	require.Greater(t, storetest.Acquire(t, b, storetest.Request("k")).Token, reader.Token)
}

// TestTokenOfMixedVotes: the guess is a good one for two nodes of three, and below what the third
// has counted to. The token is above all, and is recorded by all.
func TestTokenOfMixedVotes(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.ready(t)
	w.age(t)
	a, b := w.reaching(t, []int{0, 1, 2}), w.reaching(t, []int{0, 3, 4})
	a.warmUp(t, 0, 1, 2)
	last := lock.Token(8e15)
	w.counter(t, 2, "k", last)
	for _, p := range []*process{a, b} {
		g := storetest.Acquire(t, p, storetest.Request("k"))
		require.Greater(t, g.Token, last)
		last = g.Token
		storetest.Release(t, p, g)
	}
}

// TestTokensOfCrowds: processes that reach different quorums, and guess by different clocks.
func TestTokensOfCrowds(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	often := redlock.WithPoll(time.Millisecond, 20*time.Millisecond)
	ps := []*process{w.ready(t, often)}
	for _, nodes := range [][]int{{0, 1, 2}, {2, 3, 4}, {0, 2, 4}} {
		ps = append(ps, w.reaching(t, nodes, often))
	}
	var mu sync.Mutex // guards tokens, and stands for the critical section
	var tokens []lock.Token
	var all sync.WaitGroup
	ctx := storetest.Bounded(t)
	errs := make(chan error, 20)
	for i := range 20 {
		all.Go(func() {
			req := storetest.Request("k")
			req.Wait = true
			g, err := ps[i%len(ps)].Acquire(ctx, req)
			if err == nil {
				if !mu.TryLock() {
					errs <- fmt.Errorf("token %d is beside another", g.Token)
					return
				}
				tokens = append(tokens, g.Token)
				mu.Unlock()
				err = ps[i%len(ps)].Release(ctx, g)
			}
			if err != nil {
				errs <- err
			}
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	require.IsIncreasing(t, tokens)
}

// TestTokenInOneRoundTrip: the votes bring the token, and nothing needs to be confirmed, but in
// the first two seconds, and once where the clock of the process is off.
func TestTokenInOneRoundTrip(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	p := w.open(t)
	storetest.Release(t, p, storetest.Acquire(t, p, storetest.Request("warm up")))
	for _, off := range []time.Duration{0, time.Hour, -time.Hour} {
		p.AdvanceClocks(off)
		const rounds = 4 // the stragglers of all but the last have come by then
		costs(t, w, rounds*2*len(w.servers), func() {
			for range rounds {
				storetest.Release(t, p, storetest.Acquire(t, p, storetest.Request("k")))
			}
		})
	}
}

// costs checks that f is so many scripts, stragglers included, when nothing is slow.
func costs(tb testing.TB, w world, scripts int, f func()) {
	tb.Helper()
	storetest.Eventually(tb, "a cheap round", func() bool {
		before := evals(tb, w)
		f()
		storetest.Eventually(tb, "the stragglers", func() bool { return evals(tb, w)-before >= scripts })
		return evals(tb, w)-before == scripts
	})
}

// evals counts the scripts that the nodes have run.
func evals(tb testing.TB, w world) (n int) {
	tb.Helper()
	for i := range w.servers {
		stats, err := w.plain[i].Info(storetest.Bounded(tb), "commandstats").Result()
		require.NoError(tb, err)
		n += storetest.RedisInfo(tb, stats, "cmdstat_evalsha")
	}
	return n
}

// TestTokenAtItsLimit: there is no token above the highest, and the error says so.
func TestTokenAtItsLimit(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.open(t)
	storetest.Release(t, p, storetest.Acquire(t, p, storetest.Request("warm up")))
	for i := range w.servers {
		w.counter(t, i, "k", lock.MaxToken)
	}
	_, err := p.Acquire(context.Background(), storetest.Request("k"))
	require.ErrorContains(t, err, "leaves no higher token")
	require.NotErrorIs(t, err, lock.ErrHeld)
}

// TestTokenWithoutGuess: the nodes say what is high enough, in a second round trip, by their
// counters or, where these are lost, by their clocks.
func TestTokenWithoutGuess(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	w.age(t) // else each node is ahead of its clock by what it took to begin, and its record is gone
	last := lock.Token(0)
	for round := range 6 {
		req := storetest.Request("k")
		req.Shared = round%3 == 1
		if round >= 3 {
			for i := range w.servers {
				require.NoError(t, w.plain[i].Del(storetest.Bounded(t), w.prefix+"s:k").Err())
			}
		}
		p.ForgetClocks()
		g := storetest.Acquire(t, p, req)
		require.Greater(t, g.Token, last)
		last = g.Token
		storetest.Holds(t, p, g)
		storetest.Release(t, p, storetest.Renew(t, p, g))
	}
}

// TestTokensOfAllNew: a token is ahead of the nodes' clocks, as far as they let a guess be.
// Then they lose everything, which lets them vote at once, and the next guess is a better one.
func TestTokensOfAllNew(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.ready(t), w.ready(t)
	a.AdvanceClocks(redlock.Window - redlock.Lead - 20*time.Millisecond)
	g := storetest.Acquire(t, a, storetest.Request("k"))
	for range 3 { // again at once, too
		w.forget(t)
		h := storetest.Acquire(t, b, storetest.Request("k"))
		require.Greater(t, h.Token, g.Token)
		g = h
	}
}

// TestTokenBelowTheCounter: the guess is a good one, and yet below a token that was granted
// by a worse one a moment ago.
func TestTokenBelowTheCounter(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.ready(t), w.ready(t)
	w.age(t)
	a.AdvanceClocks(redlock.Window - redlock.Lead - 20*time.Millisecond)
	last := lock.Token(0)
	for range 5 {
		for _, p := range []*process{a, b} {
			g := storetest.Acquire(t, p, storetest.Request("k"))
			require.Greater(t, g.Token, last)
			last = g.Token
			storetest.Release(t, p, g)
		}
	}
}
