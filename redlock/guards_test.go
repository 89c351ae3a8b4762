package redlock_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/redlock"
)

// TestHalfHeldIsUndone: who gets no quorum gives back what it has got.
func TestHalfHeldIsUndone(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.ready(t)
	poor := w.reaching(t, []int{0, 1})
	for range 3 {
		_, err := poor.Acquire(storetest.Bounded(t), storetest.Request("k"))
		require.ErrorIs(t, err, redlock.ErrNoQuorum)
		storetest.Eventually(t, "the votes to be given back", func() bool { return w.held(t, "k") == 0 })
	}
	// Beside somebody who holds on the others.
	rich := w.reaching(t, []int{2, 3, 4})
	g := storetest.Acquire(t, rich, storetest.Request("k"))
	storetest.Refused(t, w.open(t), storetest.Request("k"))
	storetest.Eventually(t, "the votes to be given back", func() bool { return w.held(t, "k") == 3 })
	storetest.Holds(t, w.open(t), g)
}

// TestSplitVotes: many processes ask at once, so that often nobody gets a quorum. Each of
// them does in the end.
func TestSplitVotes(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	const processes = 6
	done := make(chan error, processes)
	var ps []*process
	for range processes {
		ps = append(ps, w.ready(t))
	}
	ctx := storetest.Bounded(t)
	for _, p := range ps {
		go func() {
			for range 10 {
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
			done <- nil
		}()
	}
	for range processes {
		require.NoError(t, <-done)
	}
}

// TestTriesBesideDeadNodes: with two nodes of five down each of two tries gets some of the votes
// that are left. That the other has the rest is no proof that it holds the lock: they try again,
// and hardly ever are both refused.
func TestTriesBesideDeadNodes(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.ready(t) // else all nodes would have to answer
	ps := []*process{w.reaching(t, []int{0, 1, 2}), w.reaching(t, []int{0, 1, 2})}
	for _, p := range ps {
		p.warmUp(t, 0, 1, 2)
	}
	const rounds = 100
	neither := 0
	for range rounds {
		type result struct {
			g   lock.Grant
			err error
		}
		done := make(chan result)
		for _, p := range ps {
			go func() {
				g, err := p.Acquire(storetest.Bounded(t), storetest.Request("k"))
				if err == nil {
					err = p.Release(storetest.Bounded(t), g)
				}
				done <- result{g, err}
			}()
		}
		got := 0
		for range ps {
			if r := <-done; r.err == nil {
				got++
			} else {
				require.ErrorIs(t, r.err, lock.ErrHeld)
			}
		}
		if got == 0 {
			neither++
		}
	}
	require.Less(t, neither, rounds/6)
}

// TestHeldOnAMinority: what a minority shows does not say who holds the lock.
func TestHeldOnAMinority(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	g := storetest.Acquire(t, w.ready(t), storetest.Request("k"))
	p := w.reaching(t, []int{0, 1})
	for _, wait := range []bool{false, true} {
		req := storetest.Request("k")
		req.Wait = wait
		_, err := p.Acquire(storetest.Bounded(t), req)
		require.ErrorIs(t, err, redlock.ErrNoQuorum)
		require.NotErrorIs(t, err, lock.ErrHeld)
	}
	storetest.Holds(t, w.open(t), g)
}

// TestStartIsBeforeTheVotes: the replies come late, but soon enough for their timeout.
func TestStartIsBeforeTheVotes(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		w := sharedWorld(t)
		p := w.ready(t, redlock.WithTimeout(time.Minute))
		req := storetest.Request("k")
		req.Shared = shared
		for _, n := range p.nets {
			n.mute(true)
		}
		granted := make(chan lock.Grant, 1)
		go func() {
			g, err := p.Acquire(t.Context(), req)
			if err != nil { // on a starved machine all sendings were before the replies came
				assert.ErrorIs(t, err, redlock.ErrNoQuorum)
			}
			granted <- g
		}()
		for i := range w.servers {
			storetest.Eventually(t, "a vote", func() bool { return w.has(t, i, "k", req.Owner) })
		}
		voted := time.Now()
		for _, n := range p.nets {
			n.mute(false)
		}
		g := storetest.Receive(t, granted)
		require.Less(t, g.Start, voted)
	}
}

// TestOneOwnerTwice: the lock service asks for a client by way of two replicas. Both get the one grant, which
// neither takes from the other, nor cuts.
func TestOneOwnerTwice(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		w := sharedWorld(t)
		a, b := w.ready(t), w.ready(t)
		req := storetest.Request("k")
		req.Shared = shared
		g := storetest.Acquire(t, a, req)
		require.Equal(t, g.Token, storetest.Acquire(t, b, storetest.Lasting(req, g.TTL/2)).Token)
		holders := storetest.Inspect(t, b, "k").Holders
		require.Len(t, holders, 1)
		require.Greater(t, holders[0].ExpiresIn, g.TTL/2)
		storetest.Release(t, a, storetest.Renew(t, a, g))
		for i := range w.servers {
			storetest.Eventually(t, "the node to be free", func() bool { return !w.has(t, i, "k", req.Owner) })
		}
	}
}

// TestEndedWaitOfAnOwnerUsedAgain: a replica of the lock service that has lost its nodes gives up a wait,
// whose owner has been granted the lock by way of another replica, and goes on to hold it.
func TestEndedWaitOfAnOwnerUsedAgain(t *testing.T) {
	t.Parallel()
	for _, reused := range []bool{false, true} {
		t.Run(fmt.Sprint("reused ", reused), func(t *testing.T) {
			t.Parallel()
			w := sharedWorld(t)
			holder, a, b := w.ready(t), w.ready(t), w.ready(t)
			g := storetest.Acquire(t, holder, storetest.Request("k"))
			req := storetest.Request("k")
			req.Wait = true
			ctx, cancel := context.WithCancel(storetest.Bounded(t))
			if reused {
				ctx = storekit.ReuseOwner(ctx)
			}
			over, asked := make(chan error, 1), make(chan struct{})
			late := make([]*trap, len(w.servers))
			req.Waiting = func(lock.Record) {
				for i := range late {
					late[i] = a.nets[i].set(&trap{texts: []string{req.Owner}})
				}
				close(asked)
			}
			go func() {
				_, err := a.Acquire(ctx, req)
				over <- err
			}()
			storetest.Receive(t, asked)
			for i, trap := range late {
				trap.await(t) // it is sent again, so each node is in doubt
				a.nets[i].sever()
			}
			storetest.Release(t, holder, g)
			again := req // a still has the first one's callback
			again.Waiting = nil
			next := storetest.Acquire(t, b, again)
			cancel()
			require.ErrorIs(t, storetest.Receive(t, over), context.Canceled)
			for i := range w.servers {
				a.nets[i].heal()
				storetest.Eventually(t, "nothing to be under way", func() bool { return a.Idle(i) })
			}
			storetest.Inspect(t, a, "k")
			next = storetest.Renew(t, b, next)
			storetest.Holds(t, b, next)
			storetest.Release(t, b, next)
		})
	}
}

// TestLostIsGivenBack: a renewal finds that no quorum has the grant, and has prolonged it on the few that
// do. They are free for others at once. That another has it on one node does not mean that it was taken.
func TestLostIsGivenBack(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t, long)
	g := storetest.Acquire(t, p, storetest.Lasting(storetest.Request("k"), time.Hour))
	storetest.Eventually(t, "all votes", func() bool { return w.held(t, "k") == 5 })
	w.block(t, 0, "k")
	for _, i := range []int{1, 2} {
		w.counter(t, i, "k", g.Token)
	}
	_, err := p.Renew(storetest.Bounded(t), g)
	require.Zero(t, storetest.Lost(t, err))
	storetest.Eventually(t, "the other nodes to be free", func() bool { return w.held(t, "k") == 1 })
	again := storetest.Request("k") // a client of the lock service asks anew as the same owner
	again.Owner = g.Owner
	storetest.Acquire(t, p, again)
}

// TestLossBesideAbstainers: two nodes abstain, so that another, who has the lock on a third, cannot have
// taken it. It was not taken, then.
func TestLossBesideAbstainers(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	g := storetest.Acquire(t, p, storetest.Request("k"))
	storetest.Eventually(t, "all votes", func() bool { return w.held(t, "k") == 5 && p.Idle(3) && p.Idle(4) })
	w.abstain(t, 1, 2)
	w.block(t, 0, "k")
	_, err := p.Renew(storetest.Bounded(t), g)
	require.Zero(t, storetest.Lost(t, err))
}

// abstain has nodes keep out of votes, as after a restart.
func (w world) abstain(tb testing.TB, nodes ...int) {
	tb.Helper()
	for _, i := range nodes {
		ctx, node := storetest.Bounded(tb), w.prefix+"node"
		was := w.plain[i].Get(ctx, node).Val()
		require.Greater(tb, len(was), 13)
		run := was[strings.LastIndex(was, ":"):]
		require.NoError(tb, w.plain[i].Set(ctx, node, "9000000000000:r"+run, 0).Err())
	}
}

// TestRejoinGivesNothingToTheSuperseded: a node has recorded the token of a later grant than
// this one, so it must not take this one back, whatever a quorum has said a while ago.
func TestRejoinGivesNothingToTheSuperseded(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	g := storetest.Acquire(t, p, storetest.Request("k"))
	storetest.Eventually(t, "all votes", func() bool { return w.held(t, "k") == 5 })
	w.counter(t, 4, "k", g.Token+1)
	w.counter(t, 3, "k", g.Token)
	g = storetest.Renew(t, p, g)
	storetest.Eventually(t, "the other node to have it back", func() bool {
		return w.plain[3].Get(storetest.Bounded(t), w.prefix+"s:k").Val() != g.Token.String()+":"
	})
	storetest.Renew(t, p, g)
	require.Equal(t, (g.Token+1).String()+":", w.plain[4].Get(storetest.Bounded(t), w.prefix+"s:k").Val())
}

// TestRejoinBesideAnother: a node where another has the lock does not get the grant back, though its
// counter would allow it.
func TestRejoinBesideAnother(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		w := sharedWorld(t)
		p := w.ready(t)
		req := storetest.Request("k")
		req.Shared = shared
		g := storetest.Acquire(t, p, req)
		storetest.Eventually(t, "all votes", func() bool { return w.has(t, 3, "k", g.Owner) && w.has(t, 4, "k", g.Owner) })
		ctx := storetest.Bounded(t)
		require.NoError(t, w.plain[3].Del(ctx, w.prefix+"s:k", w.prefix+"r:k", w.prefix+"i:k").Err())
		w.block(t, 4, "k")
		g = storetest.Renew(t, p, g)
		storetest.Eventually(t, "the empty node to have it back", func() bool { return w.has(t, 3, "k", g.Owner) })
		storetest.Renew(t, p, g)
		require.True(t, w.has(t, 4, "k", "blocker"))
	}
}

// TestRejoinOfReaders: a node that has lost its data gets all readers back, whoever of them is
// renewed first.
func TestRejoinOfReaders(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	first := storetest.Acquire(t, p, storetest.Shared(storetest.Request("k")))
	second := storetest.Acquire(t, p, storetest.Shared(storetest.Request("k")))
	require.Greater(t, second.Token, first.Token)
	for _, g := range []lock.Grant{first, second} {
		storetest.Eventually(t, "its vote", func() bool { return w.has(t, 4, "k", g.Owner) })
	}
	ctx := storetest.Bounded(t)
	require.NoError(t, w.plain[4].Del(ctx, w.prefix+"s:k", w.prefix+"r:k", w.prefix+"i:k").Err())
	for _, g := range []lock.Grant{second, first} {
		storetest.Renew(t, p, g)
		storetest.Eventually(t, "the node to have it back", func() bool { return w.has(t, 4, "k", g.Owner) })
	}
	require.Contains(t, w.plain[4].Get(ctx, w.prefix+"s:k").Val(), second.Token.String())
}

// TestRestartOfTwoPrefixes: what one Locker teaches a restarted server must not speak for
// the locks of another prefix.
func TestRestartOfTwoPrefixes(t *testing.T) {
	t.Parallel()
	w := ownWorld(t, "--appendonly", "yes", "--appendfsync", "always")
	p, other := w.ready(t, long), w
	other.prefix += "other:"
	other.ready(t, long)
	g := storetest.Acquire(t, p, storetest.Request("k"))
	for _, i := range []int{0, 1, 2} {
		w.servers[i].Kill()
		w.servers[i].Start()
	}
	_, err := other.open(t, long).Acquire(storetest.Bounded(t), storetest.Request("k"))
	require.ErrorIs(t, err, redlock.ErrNoQuorum) // but it has taught them its scripts
	_, err = p.Renew(storetest.Bounded(t), g)
	storetest.Lost(t, err)
	_, err = w.open(t, long).Acquire(storetest.Bounded(t), storetest.Request("free"))
	require.ErrorIs(t, err, redlock.ErrNoQuorum)
}

// TestRestartOfAFullNode: a server that is restarted abstains, although it is full, and although the
// first that comes may not run what has it abstain.
func TestRestartOfAFullNode(t *testing.T) {
	t.Parallel()
	for name, hinder := range map[string]func(ctx context.Context, w world, i int){
		"full": func(ctx context.Context, w world, i int) {
			require.NoError(t, w.plain[i].ConfigSet(ctx, "maxmemory", "1").Err())
		},
		"without INFO": func(ctx context.Context, w world, i int) {
			require.NoError(t, w.plain[i].Do(ctx, "ACL", "SETUSER", "default", "-info").Err())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := ownWorld(t, "--appendonly", "yes", "--appendfsync", "always")
			p, other := w.ready(t, long), w.open(t, long)
			ctx := storetest.Bounded(t)
			g := storetest.Acquire(t, p, storetest.Request("k"))
			storetest.Eventually(t, "answers of all nodes", func() bool { return w.held(t, "k") == 5 && p.Idle(0) && p.Idle(1) && p.Idle(2) })
			for _, i := range []int{0, 1, 2} {
				w.servers[i].Kill()
				w.servers[i].Start()
				hinder(ctx, w, i)
			}
			for _, i := range []int{3, 4} {
				p.nets[i].sever()
			}
			_, err := other.Acquire(ctx, storetest.Request("free"))
			require.Error(t, err)
			require.NoError(t, other.Close()) // else it comes again
			storetest.Eventually(t, "the last of its joins", func() bool { return other.Idle(0) && other.Idle(1) && other.Idle(2) })
			for _, i := range []int{0, 1, 2} {
				require.NoError(t, w.plain[i].Do(ctx, "ACL", "SETUSER", "default", "+info").Err())
				require.NoError(t, w.plain[i].ConfigSet(ctx, "maxmemory", "0").Err())
			}
			_, err = p.Acquire(ctx, storetest.Request("free"))
			require.ErrorIs(t, err, redlock.ErrNoQuorum)
			require.ErrorContains(t, err, "abstains")
			_, err = p.Renew(ctx, g)
			require.Error(t, err)
		})
	}
}

// TestMajorityForgets: it is no first start, as long as one that remembers may be there.
func TestMajorityForgets(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	storetest.Acquire(t, w.ready(t, long), storetest.Request("k"))
	for _, i := range []int{0, 1, 2} {
		require.NoError(t, w.plain[i].FlushAll(storetest.Bounded(t)).Err())
	}
	for _, nodes := range [][]int{{0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2, 3, 4}} {
		_, err := w.reaching(t, nodes, long).Acquire(storetest.Bounded(t), storetest.Request("k"))
		require.Error(t, err, "%v", nodes)
		if len(nodes) == 3 {
			require.ErrorContains(t, err, "abstains")
		}
	}
}

// TestFirstStartByMany: processes that start together, on servers that know nothing.
func TestFirstStartByMany(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	done := make(chan error, 8)
	for i := range cap(done) {
		p := w.open(t)
		go func() {
			_, err := p.Acquire(context.Background(), storetest.Request(fmt.Sprint("k", i)))
			done <- err
		}()
	}
	for range cap(done) {
		require.NoError(t, <-done)
	}
}

// TestNothingStays: each key that a lock ever writes has a TTL; only what says that a node
// votes is for good.
func TestNothingStays(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p, other := w.ready(t), w.open(t)
	ctx := storetest.Bounded(t)
	seen := 0
	ephemeral := func() {
		for i := range w.servers {
			rdb := w.plain[i]
			for _, name := range rdb.Keys(ctx, w.prefix+"*").Val() {
				left := rdb.PTTL(ctx, name).Val()
				if name != w.prefix+"node" && left != -2 {
					require.Positive(t, left, "%s stays for ever", name)
					require.LessOrEqual(t, left, 24*time.Hour)
					seen++
				}
			}
		}
	}
	for _, mode := range []bool{false, true} {
		req := storetest.Request(fmt.Sprint("k", mode))
		req.Shared = mode
		g := storetest.Renew(t, p, storetest.Acquire(t, p, req))
		ephemeral()
		storetest.Refused(t, other, storetest.Request(req.Key))
		storetest.Release(t, p, g)
		ephemeral()
		again := req
		again.Owner = storetest.Request("").Owner
		require.NoError(t, other.ForceRelease(ctx, req.Key, storetest.Acquire(t, p, again).Owner))
		ephemeral()
		undone := storetest.Request(req.Key)
		undone.Shared = mode
		require.NoError(t, p.Release(ctx, grantOf(undone)))
		ephemeral()
		_, err := other.Acquire(ctx, undone)
		require.ErrorIs(t, err, lock.ErrReleased)
	}
	require.NotZero(t, seen)
}

// TestOutOfMemory: nodes that refuse to store more grant nothing, but they keep what they
// have granted, and let go of it.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	p, other := w.ready(t), w.ready(t)
	ctx := storetest.Bounded(t)
	limit := func(bytes string) {
		for i := range w.servers {
			require.NoError(t, w.plain[i].ConfigSet(ctx, "maxmemory", bytes).Err())
		}
	}
	for _, shared := range []bool{false, true} {
		req := storetest.Request(fmt.Sprint("k", shared))
		req.Shared = shared
		g, forced := storetest.Acquire(t, p, req), req
		forced.Key += "forced"
		h := storetest.Acquire(t, p, forced)
		limit("1")
		// Redis refuses only a script's first write: that of a key without marks of late releases.
		_, err := p.Acquire(ctx, storetest.Request("new to "+req.Key))
		require.ErrorContains(t, err, "OOM")
		storetest.Release(t, p, storetest.Renew(t, p, g))
		require.NoError(t, p.ForceRelease(ctx, h.Key, h.Owner))
		_, err = p.Renew(ctx, h)
		storetest.Lost(t, err)
		limit("0")
		for _, key := range []string{g.Key, h.Key} {
			storetest.Release(t, other, storetest.Acquire(t, other, storetest.Request(key)))
		}
	}
}

// TestListOfManyKeys: a scan takes as long as it takes. Only a step that is not answered in time
// is a fault of the node.
func TestListOfManyKeys(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	const timeout = 3 * time.Second
	p := w.ready(t, redlock.WithTimeout(timeout))
	g := storetest.Acquire(t, p, storetest.Request("k"))
	for i := range w.servers {
		var foreign []any
		for n := range 4096 {
			foreign = append(foreign, fmt.Sprint("foreign", n), "")
		}
		require.NoError(t, w.plain[i].MSet(storetest.Bounded(t), foreign...).Err())
		p.nodes[i].AddHook(slowScan(timeout / 4))
	}
	begun, keys := time.Now(), []string(nil)
	for r, err := range p.List(storetest.Bounded(t), "") {
		require.NoError(t, err)
		keys = append(keys, r.Key)
	}
	require.Equal(t, []string{"k"}, keys)
	require.Greater(t, time.Since(begun), timeout)
	storetest.Release(t, p, g)
}

// slowScan has each step of a scan take that long.
type slowScan time.Duration

func (slowScan) DialHook(next goredis.DialHook) goredis.DialHook { return next }

func (d slowScan) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook {
	return func(ctx context.Context, cmd goredis.Cmder) error {
		if cmd.Name() == "scan" {
			time.Sleep(time.Duration(d))
		}
		return next(ctx, cmd)
	}
}

func (slowScan) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return next
}
