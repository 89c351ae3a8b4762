package redlock_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/redlock"
)

// ready opens a process, for which the nodes have learnt to vote.
func (w world) ready(tb testing.TB, opts ...redlock.Option) *process {
	tb.Helper()
	p := w.open(tb, opts...)
	p.warmUp(tb, 0, 1, 2, 3, 4)
	return p
}

// warmUp has p know the nodes that it reaches. Nothing of that is under way to them any more,
// which could share a request with what a test wants to catch.
func (p *process) warmUp(tb testing.TB, reached ...int) {
	tb.Helper()
	var g lock.Grant
	storetest.Eventually(tb, "a first grant", func() bool { // of which a busy machine may be late
		var err error
		g, err = p.Acquire(storetest.Bounded(tb), storetest.Request("warm up"))
		return err == nil
	})
	storetest.Release(tb, p, g)
	for _, i := range reached {
		storetest.Eventually(tb, "the stragglers", func() bool { return p.Idle(i) })
	}
}

// TestMinorityFails: with two of five dead, frozen, cut off or without their data, a grant
// stays exclusive, is renewed and released, and tokens rise.
func TestMinorityFails(t *testing.T) {
	t.Parallel()
	kill := func(s *testserver.Server) { s.Kill() }
	for name, fail := range map[string]func(testing.TB, world, int){
		"down":   func(_ testing.TB, w world, i int) { kill(w.servers[i]) },
		"frozen": func(_ testing.TB, w world, i int) { w.servers[i].Pause() },
		"restarted empty": func(_ testing.TB, w world, i int) {
			kill(w.servers[i])
			w.servers[i].Start()
		},
		"flushed": func(tb testing.TB, w world, i int) {
			require.NoError(tb, w.plain[i].FlushAll(storetest.Bounded(tb)).Err())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := ownWorld(t)
			a, b := w.ready(t), w.ready(t)
			for _, mode := range []func(lock.Request) lock.Request{exclusive, storetest.Shared} {
				key := fmt.Sprint("k", mode(lock.Request{}).Shared)
				before := storetest.Acquire(t, a, mode(storetest.Request(key)))
				released := storetest.Acquire(t, b, storetest.Request("released "+key))
				storetest.Release(t, b, released)
				for _, i := range []int{1, 3} {
					if !before.Shared {
						fail(t, w, i)
					}
				}
				storetest.Refused(t, b, storetest.Request(key))
				storetest.Holds(t, b, before)
				before = storetest.Renew(t, a, before)
				storetest.Release(t, a, before)
				next := storetest.Acquire(t, b, mode(storetest.Request(key)))
				require.Greater(t, next.Token, before.Token)
				storetest.Refused(t, a, storetest.Request(key))
				storetest.Release(t, b, next)
				next = storetest.Acquire(t, a, storetest.Request("released "+key))
				require.Greater(t, next.Token, released.Token)
			}
		})
	}
}

func exclusive(req lock.Request) lock.Request { return req }

// TestForgetfulMinority is what Redlock without abstention gets wrong: A holds on nodes 0, 1
// and 2. Then 2 forgets it, and B would have a quorum of 2, 3 and 4.
func TestForgetfulMinority(t *testing.T) {
	t.Parallel()
	for name, forget := range map[string]func(testing.TB, world, int){
		"restarted empty": func(_ testing.TB, w world, i int) {
			w.servers[i].Kill()
			w.servers[i].Start()
		},
		"flushed": func(tb testing.TB, w world, i int) {
			require.NoError(tb, w.plain[i].FlushAll(storetest.Bounded(tb)).Err())
		},
		"flushed, scripts too": func(tb testing.TB, w world, i int) {
			require.NoError(tb, w.plain[i].FlushAll(storetest.Bounded(tb)).Err())
			require.NoError(tb, w.plain[i].ScriptFlush(storetest.Bounded(tb)).Err())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := ownWorld(t)
			w.ready(t, long)
			a := w.reaching(t, []int{0, 1, 2}, long)
			held := storetest.Acquire(t, a, storetest.Request("k"))
			free := storetest.Acquire(t, a, storetest.Request("free"))
			storetest.Release(t, a, free)
			storetest.Eventually(t, "all three votes", func() bool { return w.held(t, "k") == 3 })
			forget(t, w, 2)

			_, err := w.reaching(t, []int{2, 3, 4}, long).Acquire(storetest.Bounded(t), storetest.Request("k"))
			require.ErrorIs(t, err, redlock.ErrNoQuorum)
			require.ErrorContains(t, err, "node 3")
			require.ErrorContains(t, err, "abstains for")
			storetest.Refused(t, w.reaching(t, []int{0, 2, 3, 4}, long), storetest.Request("k"))
			b := w.reaching(t, []int{0, 1, 3, 4}, long)
			require.Greater(t, storetest.Acquire(t, b, storetest.Request("free")).Token, free.Token)
			storetest.Refused(t, b, storetest.Request("k"))
			_, err = w.open(t, long).Renew(storetest.Bounded(t), held) // 0 and 1 are no quorum
			storetest.Lost(t, err)
		})
	}
}

// TestRestartWithItsData: what is on disk may be a second old, so the node abstains all the
// same. Here it has the whole of it, and would vote for a renewal after a force release that
// it had lost.
func TestRestartWithItsData(t *testing.T) {
	t.Parallel()
	w := ownWorld(t, "--appendonly", "yes", "--appendfsync", "always")
	p := w.ready(t, long)
	g := storetest.Acquire(t, p, storetest.Request("k"))
	storetest.Eventually(t, "all five votes", func() bool { return w.held(t, "k") == 5 })
	for _, i := range []int{0, 1} {
		w.servers[i].Kill()
		w.servers[i].Start()
		require.Positive(t, w.plain[i].Exists(storetest.Bounded(t), w.prefix+"s:k").Val())
	}
	g = storetest.Renew(t, p, g) // by the other three
	p = w.reaching(t, []int{0, 1, 2}, long)
	_, err := p.Renew(storetest.Bounded(t), g)
	require.Error(t, err)
	_, err = p.Acquire(storetest.Bounded(t), storetest.Request("other"))
	require.ErrorIs(t, err, redlock.ErrNoQuorum)
	require.ErrorContains(t, err, "abstains")
}

// held counts the nodes that have an exclusive holder of key.
func (w world) held(tb testing.TB, key string) (n int) {
	tb.Helper()
	for i := range w.servers {
		s, _ := w.plain[i].Get(storetest.Bounded(tb), w.prefix+"s:"+key).Result()
		if len(s) > 0 && s[len(s)-1] == ':' && len(s) > 20 {
			n++
		}
	}
	return n
}

// TestAbstentionEnds: after MaxTTL a node that has lost its data votes again, and its vote
// is needed here.
func TestAbstentionEnds(t *testing.T) {
	t.Parallel()
	const maxTTL = 5 * time.Second
	w := ownWorld(t)
	p := w.open(t, redlock.WithMaxTTL(maxTTL))
	short := storetest.Lasting(storetest.Request("k"), maxTTL)
	before := storetest.Acquire(t, p, short)
	storetest.Release(t, p, before)
	lost := time.Now()
	require.NoError(t, w.plain[2].FlushAll(storetest.Bounded(t)).Err())
	p = w.reaching(t, []int{2, 3, 4}, redlock.WithMaxTTL(maxTTL))
	var g lock.Grant
	storetest.Eventually(t, "the node's vote", func() bool {
		var err error
		short.Owner = storetest.Request("k").Owner
		g, err = p.Acquire(storetest.Bounded(t), short)
		return err == nil
	})
	require.GreaterOrEqual(t, time.Since(lost), maxTTL)
	require.Greater(t, g.Token, before.Token)
}

// TestRollingRestarts: a lease that is renewed outlives the restart of each node in turn,
// since it is given back to those that have forgotten it, though another process waits for the lock.
func TestRollingRestarts(t *testing.T) {
	t.Parallel()
	const maxTTL = 12 * time.Second
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprint("shared ", shared), func(t *testing.T) {
			t.Parallel()
			w := ownWorld(t)
			p := w.open(t, redlock.WithMaxTTL(maxTTL))
			opts := []lock.Option{lock.WithTTL(maxTTL)}
			if shared {
				opts = append(opts, lock.WithShared())
			}
			ctx, c := storetest.Bounded(t), lock.New(p)
			lease, err := c.TryLock(ctx, "k", opts...)
			require.NoError(t, err)
			rival := storetest.Lasting(storetest.Request("k"), maxTTL)
			rival.Shared = !shared
			waiting := storetest.Waits(t, w.open(t, redlock.WithMaxTTL(maxTTL)), rival)
			for i, s := range w.servers {
				s.Kill()
				s.Start()
				storetest.Eventually(t, "the node to know the grant again", func() bool {
					return lease.Err() != nil || w.has(t, i, "k", lease.Owner())
				})
				require.NoError(t, lease.Err())
			}
			storetest.Refused(t, p, storetest.Lasting(storetest.Request("k"), maxTTL))
			ctx = storetest.Bounded(t)
			require.NoError(t, lease.Release(ctx))
			require.NoError(t, c.Close(ctx))
			waiting.Granted(t)
		})
	}
}

// TestAllRestart: the grants are forgotten, as declared; tokens rise all the same, and there
// is no wait before the first.
func TestAllRestart(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	p := w.ready(t)
	g := storetest.Acquire(t, p, storetest.Request("k"))
	for _, s := range w.servers {
		s.Kill()
	}
	for _, s := range w.servers {
		s.Start()
	}
	storetest.Eventually(t, "the loss", func() bool { // not while nodes are too slow to say
		_, err := p.Renew(storetest.Bounded(t), g)
		require.Error(t, err)
		return errors.Is(err, lock.ErrLost)
	})
	require.Greater(t, storetest.Acquire(t, p, storetest.Request("k")).Token, g.Token)
}

// TestReleaseOfForgotten: that the nodes had to learn the scripts again does not mean that a
// first request has released what they have forgotten.
func TestReleaseOfForgotten(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	p := w.ready(t)
	g := storetest.Acquire(t, p, storetest.Request("k"))
	storetest.Eventually(t, "all votes", func() bool { return w.held(t, "k") == 5 })
	for i := range w.servers {
		require.NoError(t, w.plain[i].FlushAll(storetest.Bounded(t)).Err())
		require.NoError(t, w.plain[i].ScriptFlush(storetest.Bounded(t)).Err())
	}
	storetest.Lost(t, p.Release(storetest.Bounded(t), g))
}

// TestReleaseBesideAbstainers: nodes 3 and 4 have confirmed the end of a grant, but abstain, so that
// others take them for its voters. Only when all nodes that vote have confirmed it is the lock free.
func TestReleaseBesideAbstainers(t *testing.T) {
	t.Parallel()
	release := func(p *process, g lock.Grant) error { return p.Release(storetest.Bounded(t), g) }
	force := func(p *process, g lock.Grant) error { return p.ForceRelease(storetest.Bounded(t), g.Key, g.Owner) }
	for _, c := range []struct {
		name, script string
		args         []string
		end          func(*process, lock.Grant) error
	}{
		{"released/without data", "release", nil, release},
		{"released/with data", "release", []string{"--appendonly", "yes", "--appendfsync", "always"}, release},
		{"forced/with data", "force", []string{"--appendonly", "yes", "--appendfsync", "always"}, force},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := ownWorld(t, c.args...)
			p, rival := w.ready(t, long), w.ready(t, long)
			g := storetest.Acquire(t, p, storetest.Request("k"))
			storetest.Eventually(t, "all votes", func() bool { return w.held(t, "k") == 5 })
			for _, i := range []int{3, 4} {
				w.servers[i].Kill() // p's connections break: it sends its release again
				w.servers[i].Start()
			}
			var late []*trap
			for _, i := range []int{1, 2} {
				late = append(late, p.nets[i].set(&trap{texts: []string{p.Scripts()[c.script].SHA, g.Owner}, slow: true}))
			}
			ended := make(chan error, 1)
			go func() { ended <- c.end(p, g) }()
			for _, trap := range late {
				trap.await(t)
			}
			for _, i := range []int{0, 3, 4} {
				storetest.Eventually(t, "the others' answers", func() bool { return p.Idle(i) })
			}
			storetest.Refused(t, rival, storetest.Request("k"))
			select {
			case err := <-ended:
				require.FailNow(t, "it has ended, and others are refused", "%v", err)
			default:
			}
			for _, trap := range late {
				trap.deliver(t)
			}
			require.NoError(t, <-ended)
			for i := range w.servers {
				storetest.Eventually(t, "the rival's vote to be given back", func() bool { return rival.Idle(i) })
			}
			storetest.Acquire(t, rival, storetest.Request("k"))
		})
	}
}

// TestReleaseTwice: the nodes have released the grant, their answers are lost, and somebody
// else has the lock when the release is sent again. It was not lost.
func TestReleaseTwice(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p, rival := w.ready(t), w.ready(t)
	g := storetest.Acquire(t, p, storetest.Request("k"))
	storetest.Eventually(t, "all votes", func() bool { return w.held(t, "k") == 5 })
	for _, n := range p.nets {
		n.mute(true)
	}
	done := make(chan error, 1)
	go func() { done <- p.Release(storetest.Bounded(t), g) }()
	storetest.Eventually(t, "the release", func() bool { return w.held(t, "k") <= minority })
	storetest.Acquire(t, rival, storetest.Request("k"))
	for _, n := range p.nets {
		n.mute(false)
	}
	require.NoError(t, <-done)
}

// TestMajorityFails: a clear error, and no later than the timeout.
func TestMajorityFails(t *testing.T) {
	t.Parallel()
	const timeout = 500 * time.Millisecond
	w := ownWorld(t)
	p := w.ready(t, redlock.WithTimeout(timeout))
	g, forced := storetest.Acquire(t, w.open(t), storetest.Request("k")), storetest.Acquire(t, w.open(t), storetest.Request("forced"))
	w.servers[0].Pause()
	w.servers[1].Kill()
	w.servers[2].Pause()
	calls := map[string]func(context.Context) error{
		"Acquire": func(ctx context.Context) error { _, err := p.Acquire(ctx, storetest.Request("new")); return err },
		"Wait": func(ctx context.Context) error {
			req := storetest.Request("new")
			req.Wait = true
			_, err := p.Acquire(ctx, req)
			return err
		},
		"Renew":   func(ctx context.Context) error { _, err := p.Renew(ctx, g); return err },
		"Inspect": func(ctx context.Context) error { _, err := p.Inspect(ctx, "k"); return err },
		"List": func(ctx context.Context) (last error) {
			for _, err := range p.List(ctx, "") {
				last = err
			}
			return last
		},
		"ForceRelease": func(ctx context.Context) error { return p.ForceRelease(ctx, forced.Key, forced.Owner) },
	}
	for name, call := range calls {
		ctx := storetest.Bounded(t)
		err := call(ctx)
		require.NoError(t, ctx.Err(), "%s is bounded by ctx only", name)
		require.ErrorIs(t, err, redlock.ErrNoQuorum, name)
		require.NotErrorIs(t, err, lock.ErrLost, name)
		require.NotErrorIs(t, err, lock.ErrHeld, name)
		for i := range 3 {
			require.ErrorContains(t, err, fmt.Sprintf("node %d (%s)", i+1, w.servers[i].Addr()), name)
		}
	}
}

// TestFrozenMinorityCostsNothing: acquires wait for the quorum that answers, and neither
// goroutines nor connections pile up.
func TestFrozenMinorityCostsNothing(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	var ps []*process
	for range 10 {
		ps = append(ps, w.ready(t, redlock.WithTimeout(time.Minute)))
	}
	w.servers[0].Pause()
	w.servers[4].Pause()
	first := 0
	storetest.Fastest(t, "go-redis' timeout of 3 s", 2500*time.Millisecond, func() time.Duration {
		since := time.Now()
		storetest.Acquire(t, ps[first], storetest.Request(fmt.Sprint("first", first)))
		first++
		return time.Since(since)
	})
	p := ps[0]
	before := runtime.NumGoroutine()
	for i := range 100 {
		key := fmt.Sprint("k", i%3)
		g := storetest.Acquire(t, p, storetest.Request(key))
		if i%10 == 0 {
			storetest.Refused(t, p, storetest.Request(key))
		}
		storetest.Release(t, p, storetest.Renew(t, p, g))
	}
	after := runtime.NumGoroutine()
	for range 50 { // other tests run too
		time.Sleep(2 * time.Millisecond)
		after = min(after, runtime.NumGoroutine())
	}
	require.Less(t, after-before, 300)
	for _, i := range []int{0, 4} {
		stats := p.pool(i)
		require.LessOrEqual(t, stats, 20)
		w.servers[i].Resume()
	}
	storetest.Release(t, p, storetest.Acquire(t, p, storetest.Request("k0")))
}

// TestLossBesideSilentNodes: two nodes are frozen, and the three that answer know that the
// grant is gone. That is a quorum, so the holder is told of the loss, and not of too few nodes.
func TestLossBesideSilentNodes(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	p := w.ready(t, redlock.WithTimeout(time.Second))
	g := storetest.Acquire(t, w.open(t), storetest.Request("k"))
	for i := range w.servers {
		storetest.Eventually(t, "its vote", func() bool { return w.has(t, i, "k", g.Owner) })
		require.NoError(t, w.plain[i].Del(storetest.Bounded(t), w.prefix+"s:k").Err())
	}
	for _, i := range []int{0, 4} {
		w.servers[i].Pause()
	}
	_, _ = p.Inspect(storetest.Bounded(t), "k") // finds out that they are silent
	for name, call := range map[string]func(context.Context) error{
		"Renew":        func(ctx context.Context) error { _, err := p.Renew(ctx, g); return err },
		"Release":      func(ctx context.Context) error { return p.Release(ctx, g) },
		"ForceRelease": func(ctx context.Context) error { return p.ForceRelease(ctx, "k", g.Owner) },
	} {
		storetest.Eventually(t, name+" to tell of the loss", func() bool {
			return errors.Is(call(storetest.Bounded(t)), lock.ErrLost)
		})
	}
}

// TestLateVoteIsGivenBack: a frozen node gets the request and its release when it thaws, in
// whichever order, and keeps nothing.
func TestLateVoteIsGivenBack(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	p := w.ready(t)
	for round := range 5 {
		key := fmt.Sprint("k", round)
		w.servers[3].Pause()
		g := storetest.Acquire(t, p, storetest.Request(key))
		storetest.Release(t, p, g)
		w.servers[3].Resume()
	}
	storetest.Eventually(t, "the frozen node to be clean", func() bool {
		n := 0
		for round := range 5 {
			n += w.held(t, fmt.Sprint("k", round))
		}
		return n == 0
	})
}
