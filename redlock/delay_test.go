package redlock_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/redlock"
)

// Requests of one owner take different connections, so one may overtake another, and one
// whose connection broke may come after the one that was sent in its stead.

// TestLateGiveBack: a waiter gives its votes back. Node 0 gets that when the waiter has a grant, with
// a later vote of node 0: because it was slow, or lost and sent again, at once or after some time
// out of reach.
func TestLateGiveBack(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"slow", "lost", "owed"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			w := sharedWorld(t)
			w.ready(t)
			a, b := w.reaching(t, []int{0, 1, 2, 3}), w.reaching(t, []int{0, 3, 4})
			a.warmUp(t, 0, 1, 2, 3)
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
			g := waiting.Granted(t)
			w.counter(t, 3, "k", 1)
			late.deliver(t)
			for range 20 {
				storetest.Inspect(t, b, "other") // time enough for what is not waited for
			}
			_, err := b.Acquire(storetest.Bounded(t), storetest.Request("k"))
			require.ErrorIs(t, err, lock.ErrHeld)
			storetest.Release(t, a, storetest.Renew(t, a, g))
		})
	}
}

// TestGiveBackComesFirst: a waiter whose votes were split does not ask for them again before it has
// given back what it had. Else two that are far from the nodes would split them for ever.
func TestGiveBackComesFirst(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.patient = true
	p := w.ready(t, redlock.WithTimeout(time.Minute))
	for _, i := range []int{2, 3, 4} {
		w.block(t, i, "k")
	}
	req := storetest.Request("k")
	var back [2]*trap
	for i := range back {
		back[i] = p.nets[i].set(&trap{texts: []string{p.Scripts()["release"].SHA, req.Owner}, slow: true})
	}
	waiting := storetest.Waits(t, p, req)
	back[0].await(t)
	back[1].await(t)
	back[1].deliver(t)
	storetest.Eventually(t, "the other vote to be given back", func() bool { return !w.has(t, 1, "k", req.Owner) })
	for range 50 {
		storetest.Inspect(t, p, "other") // time enough for a poll that must not be
		require.False(t, w.has(t, 1, "k", req.Owner))
	}
	back[0].deliver(t)
	for _, i := range []int{2, 3} {
		w.counter(t, i, "k", 1)
	}
	storetest.Release(t, p, waiting.Granted(t))
}

// TestLateSecondVote: node 4 votes, and its reply is lost. The release overtakes what was sent
// again, finds the vote and ends it. Nobody must have it then, when the second one comes.
func TestLateSecondVote(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprint("shared ", shared), func(t *testing.T) {
			t.Parallel()
			w := sharedWorld(t)
			p := w.ready(t)
			req := storetest.Request("k")
			req.Shared = shared
			second := &trap{texts: []string{req.Owner}, slow: true, caught: make(chan struct{})}
			p.nets[4].set(&trap{texts: []string{req.Owner}, then: second})
			g := storetest.Acquire(t, p, req)
			second.await(t)
			require.True(t, w.has(t, 4, "k", req.Owner))
			storetest.Release(t, p, g)
			storetest.Eventually(t, "the release", func() bool { return !w.has(t, 4, "k", req.Owner) })
			second.deliver(t)
			storetest.Eventually(t, "the vote to be given back, for good", func() bool {
				return w.plain[4].ZCard(storetest.Bounded(t), p.Keys("k")[4]).Val() == 1 && !w.has(t, 4, "k", req.Owner)
			})
		})
	}
}

// TestLateConfirm: node 1 is to record the token of a try that came to nothing when the owner has a
// grant by a lower token, with a later vote of node 1. It must not, or it would not know the token
// that the holder renews.
func TestLateConfirm(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t, redlock.WithTimeout(2*time.Second))
	const far = lock.Token(8e15)
	for _, i := range []int{2, 3, 4} {
		w.block(t, i, "k")
	}
	w.counter(t, 0, "k", far+10)
	w.counter(t, 1, "k", far)
	req := storetest.Request("k")
	late := p.nets[1].set(&trap{texts: []string{p.Scripts()["confirm"].SHA, req.Owner}, slow: true})
	waiting := storetest.Waits(t, p, req)
	w.counter(t, 2, "k", far)
	late.await(t)
	for _, i := range []int{0, 2} {
		w.block(t, i, "k")
	}
	w.counter(t, 4, "k", far)
	storetest.Eventually(t, "the vote to be given back", func() bool { return !w.has(t, 1, "k", req.Owner) })
	w.counter(t, 3, "k", far)
	g := waiting.Granted(t)
	require.Less(t, g.Token, far+10)
	late.deliver(t)
	for range 20 {
		storetest.Inspect(t, p, "other") // time enough for what is not waited for
	}
	storetest.Release(t, p, storetest.Renew(t, p, g))
}

// TestLateVoteAboveTheToken: a guess is too far ahead of the nodes' clocks, so that a lower token is
// granted. Node 4 gets the request later, when the guess is a good one. It records the token of the grant
// all the same: else it would neither renew the grant nor let it go.
func TestLateVoteAboveTheToken(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.patient = true
	p := w.ready(t)
	w.age(t)
	const ahead = 4 * redlock.Window
	p.AdvanceClocks(ahead)
	req := storetest.Request("k")
	late := p.nets[4].set(&trap{texts: []string{req.Owner}, slow: true})
	asked := time.Now()
	g := storetest.Acquire(t, p, req)
	late.await(t)
	storetest.Eventually(t, "the guess to be a good one", func() bool {
		return time.Since(asked) > ahead+redlock.Lead-redlock.Window/2
	})
	late.deliver(t)
	storetest.Eventually(t, "its vote, with the token", func() bool {
		state := w.plain[4].Get(storetest.Bounded(t), p.Keys("k")[1]).Val()
		return strings.Contains(state, ":"+g.Token.String()+":"+req.Owner+":")
	})
	storetest.Release(t, p, storetest.Renew(t, p, g))
	storetest.Eventually(t, "the node to be free", func() bool { return !w.has(t, 4, "k", req.Owner) })
}

// TestConfirmByTooFew: a vote is gone by the time that the token is to be recorded with it. The
// two of five that are left neither hold the lock nor are sure to remember the token.
func TestConfirmByTooFew(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.patient = true
	a, b := w.ready(t), w.reaching(t, []int{2, 3, 4})
	const far = lock.Token(8e15)
	for i, token := range []lock.Token{far + 10, far, far} {
		w.counter(t, i, "k", token)
	}
	w.block(t, 3, "k")
	w.block(t, 4, "k")
	req := storetest.Request("k")
	late := a.nets[2].set(&trap{texts: []string{a.Scripts()["confirm"].SHA, req.Owner}, slow: true})
	var g lock.Grant
	done := make(chan error, 1)
	go func() {
		var err error
		g, err = a.Acquire(storetest.Bounded(t), req)
		done <- err
	}()
	late.await(t)
	w.counter(t, 2, "k", far)
	late.deliver(t)
	require.NoError(t, <-done) // by another try
	w.counter(t, 3, "k", far)
	w.counter(t, 4, "k", far)
	storetest.Refused(t, b, storetest.Request("k"))
	storetest.Release(t, a, g)
	require.Greater(t, storetest.Await(t, b, storetest.Request("k")).Token, g.Token)
}

// TestSilentBesideAbstainers: two nodes abstain, and two did not answer the last call in time. Those are
// waited for, since without them there is no quorum.
func TestSilentBesideAbstainers(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.patient = true
	p := w.ready(t, redlock.WithTimeout(time.Minute))
	w.abstain(t, 1, 2)
	req := storetest.Request("k")
	var late []*trap
	for _, i := range []int{3, 4} {
		late = append(late, p.nets[i].set(&trap{texts: []string{req.Owner}, slow: true}))
		p.Silence(i)
	}
	type result struct {
		g   lock.Grant
		err error
	}
	done := make(chan result, 1)
	go func() {
		g, err := p.Acquire(storetest.Bounded(t), req)
		done <- result{g, err}
	}()
	for _, trap := range late {
		trap.await(t)
	}
	for _, i := range []int{0, 1, 2} {
		storetest.Eventually(t, "the others' answers", func() bool { return p.Idle(i) })
	}
	for range 20 {
		storetest.Inspect(t, p, "other") // time enough for a refusal
	}
	for _, trap := range late {
		trap.deliver(t)
	}
	r := storetest.Receive(t, done)
	require.NoError(t, r.err)
	storetest.Release(t, p, r.g)
}

// TestRefusedConfirm: a waiter whose token the nodes refuse to record asks them again.
func TestRefusedConfirm(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	p := w.ready(t)
	const far = lock.Token(8e15)
	for _, i := range []int{2, 3, 4} {
		w.block(t, i, "k")
	}
	req, ctx := storetest.Request("k"), storetest.Bounded(t)
	waiting := storetest.Waits(t, p, req)
	var late []*trap
	for i := range 3 {
		late = append(late, p.nets[i].set(&trap{texts: []string{p.Scripts()["confirm"].SHA, req.Owner}, slow: true}))
		w.counter(t, i, "k", far)
	}
	for i, trap := range late {
		trap.await(t)
		require.NoError(t, w.plain[i].ConfigSet(ctx, "maxmemory", "1").Err())
		trap.deliver(t)
		storetest.Eventually(t, "a refusal", func() bool {
			stats, err := w.plain[i].Info(ctx, "errorstats").Result()
			return err == nil && strings.Contains(stats, "OOM")
		})
		require.NoError(t, w.plain[i].ConfigSet(ctx, "maxmemory", "0").Err())
	}
	storetest.Release(t, p, waiting.Granted(t))
}

// TestCanceledTryIsUndone: ctx ends while votes are missing. Those that are there are given
// back, and so is the one that comes.
func TestCanceledTryIsUndone(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.patient = true
	w.ready(t)
	p := w.reaching(t, []int{0, 1, 2})
	req := storetest.Request("k")
	late := p.nets[2].set(&trap{texts: []string{req.Owner}, slow: true})
	ctx, cancel := context.WithCancel(storetest.Bounded(t))
	done := make(chan error, 1)
	go func() { _, err := p.Acquire(ctx, req); done <- err }()
	late.await(t)
	for _, i := range []int{0, 1} {
		storetest.Eventually(t, "its vote", func() bool { return w.has(t, i, "k", req.Owner) })
	}
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	for _, i := range []int{0, 1} {
		storetest.Eventually(t, "the vote to be given back", func() bool { return !w.has(t, i, "k", req.Owner) })
	}
	late.deliver(t)
	storetest.Eventually(t, "the late vote to be given back", func() bool {
		return w.plain[2].Exists(storetest.Bounded(t), p.Keys("k")[1]).Val() == 1 && !w.has(t, 2, "k", req.Owner)
	})
}

// TestDoubtAndDebt: node 0 may have got a first request of a waiter, and owes it nothing but the
// release of a second one when it gives up. It is told to refuse the first as well, once it is
// within reach.
func TestDoubtAndDebt(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t, redlock.WithTimeout(2*time.Second))
	for _, i := range []int{2, 3, 4} {
		w.block(t, i, "k")
	}
	req := storetest.Request("k")
	vote := p.nets[0].set(&trap{texts: []string{req.Owner}, cuts: true})
	waiting := storetest.Waits(t, p, req)
	vote.await(t)
	for range 2 { // each is after the one before has come to an end
		w.tries(t, 1, "k")
	}
	back := p.nets[0].set(&trap{texts: []string{p.Scripts()["release"].SHA, req.Owner}, cuts: true})
	p.nets[0].heal()
	back.await(t)
	storetest.Eventually(t, "a release to be owed", func() bool { return p.Owes(0) })
	waiting.Cancel()
	waiting.End(t)
	p.nets[0].heal()
	storetest.Eventually(t, "a mark", func() bool {
		return w.plain[0].ZCard(storetest.Bounded(t), p.Keys("k")[4]).Val() == 1
	})
	storetest.Eventually(t, "nothing to be owed", func() bool { return !p.Owes(0) })
	vote.deliver(t)
	back.deliver(t)
	require.False(t, w.has(t, 0, "k", req.Owner))
}

// TestDebtsEnd: with the TTL of what was to be released, however long the node is out of reach.
// More than so many are not taken on.
func TestDebtsEnd(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	for _, i := range []int{2, 3, 4} {
		w.block(t, i, "k")
	}
	p.nets[0].sever()
	storetest.Refused(t, p, storetest.Lasting(storetest.Request("k"), 5*time.Second))
	storetest.Eventually(t, "a release to be owed", func() bool { return p.Owes(0) })
	storetest.Eventually(t, "nothing to be owed", func() bool { return !p.Owes(0) })
	for n := range 2 * redlock.MaxSilent {
		if over := p.Owe(0); n >= redlock.MaxSilent {
			storetest.Receive(t, over)
		}
	}
}

// TestLateVote: a vote was asked for again, since its connection broke. The first request comes
// after the release, or after the undo, and is refused.
func TestLateVote(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		for _, how := range []string{"released", "undone", "refused"} {
			t.Run(fmt.Sprint(how, " shared ", shared), func(t *testing.T) {
				t.Parallel()
				w := sharedWorld(t)
				p := w.ready(t)
				w.age(t)
				req := storetest.Request("k")
				req.Shared = shared
				if how == "refused" {
					for _, i := range []int{2, 3, 4} {
						w.block(t, i, "k")
					}
				}
				late := p.nets[0].set(&trap{texts: []string{req.Owner}})
				g, err := p.Acquire(storetest.Bounded(t), req)
				late.await(t)
				if how == "refused" {
					require.ErrorIs(t, err, lock.ErrHeld)
				} else {
					require.NoError(t, err)
					storetest.Eventually(t, "the second sending", func() bool { return w.has(t, 0, "k", req.Owner) && p.Idle(0) })
					storetest.Inspect(t, p, "other")
				}
				switch how {
				case "released":
					storetest.Release(t, p, g)
				case "undone":
					storetest.Release(t, p, grantOf(req))
				}
				storetest.Eventually(t, "a mark", func() bool {
					return w.plain[0].ZCard(storetest.Bounded(t), p.Keys("k")[4]).Val() > 0
				})
				late.deliver(t)
				require.False(t, w.has(t, 0, "k", req.Owner))
			})
		}
	}
}

// TestLateVotesOfASecondAcquisition: the lock service asks once more for an owner, whose first request it
// has given up. That comes to the nodes when the owner is granted the lock. What gives its votes back
// must not end the grant.
func TestLateVotesOfASecondAcquisition(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprint("shared ", shared), func(t *testing.T) {
			t.Parallel()
			w := sharedWorld(t)
			w.patient = true
			a, b := w.ready(t), w.ready(t, redlock.WithTimeout(time.Minute))
			req := storetest.Request("k")
			req.Shared = shared
			var late []*trap
			for _, n := range b.nets {
				late = append(late, n.set(&trap{texts: []string{req.Owner}, slow: true}))
			}
			ctx, cancel := context.WithCancel(storetest.Bounded(t))
			done := make(chan error, 1)
			go func() { _, err := b.Acquire(ctx, req); done <- err }()
			for _, trap := range late {
				trap.await(t)
			}
			g := storetest.Acquire(t, a, req)
			for i := range w.servers {
				storetest.Eventually(t, "its vote", func() bool { return w.has(t, i, "k", req.Owner) })
			}
			cancel()
			require.ErrorIs(t, <-done, context.Canceled)
			for i, trap := range late {
				trap.deliver(t)
				storetest.Eventually(t, "the answer", func() bool { return b.Idle(i) })
			}
			for range 20 {
				storetest.Inspect(t, b, "other") // time enough for what is not waited for
			}
			storetest.Refused(t, b, storetest.Request("k"))
			storetest.Release(t, a, storetest.Renew(t, a, g))
		})
	}
}

// TestTwoLateVotes: a waiter has asked a node twice, without an answer. The release ends what came of the
// first, and refuses the second, which comes after it.
func TestTwoLateVotes(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	others := []int{2, 3, 4}
	for _, i := range others {
		w.block(t, i, "k")
	}
	req := storetest.Request("k")
	first := p.nets[0].set(&trap{texts: []string{req.Owner}, slow: true})
	waiting := storetest.Waits(t, p, req)
	first.await(t)
	second := p.nets[0].set(&trap{texts: []string{req.Owner}, slow: true})
	second.await(t) // when the first has timed out
	first.deliver(t)
	for _, i := range others {
		w.counter(t, i, "k", 1)
	}
	storetest.Release(t, p, waiting.Granted(t))
	storetest.Eventually(t, "the release", func() bool { return !w.has(t, 0, "k", req.Owner) })
	second.deliver(t)
	storetest.Inspect(t, p, "k")
	require.False(t, w.has(t, 0, "k", req.Owner))
}

// TestLateRejoin: a node gets a grant back after the release that followed: because it was slow,
// or lost and sent again.
func TestLateRejoin(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"slow", "lost"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			w := sharedWorld(t)
			p := w.ready(t)
			ctx := storetest.Bounded(t)
			g := storetest.Acquire(t, p, storetest.Request("k"))
			storetest.Eventually(t, "its vote", func() bool { return w.has(t, 4, "k", g.Owner) })
			w.counter(t, 4, "k", 1)
			late := p.nets[4].set(&trap{texts: []string{p.Scripts()["rejoin"].SHA, g.Owner}, slow: how == "slow"})
			storetest.Renew(t, p, g)
			late.await(t)
			if how == "lost" {
				storetest.Eventually(t, "the second sending", func() bool { return w.has(t, 4, "k", g.Owner) && p.Idle(4) })
				storetest.Inspect(t, p, "other")
			}
			storetest.Release(t, p, g)
			marks := p.Keys("k")[4]
			storetest.Eventually(t, "the release", func() bool { return w.plain[4].ZCard(ctx, marks).Val() == 1 })
			late.deliver(t)
			for range 20 {
				storetest.Inspect(t, p, "other")
				require.False(t, w.has(t, 4, "k", g.Owner))
			}
		})
	}
}

// TestLateActivation: all nodes are new, and a process lets them vote, but is slow with one.
// Meanwhile another has done it there, a lock is granted, and the node forgets it.
func TestLateActivation(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	ctx := storetest.Bounded(t)
	slow := w.open(t, redlock.WithTimeout(200*time.Millisecond), long)
	late := slow.nets[2].set(&trap{texts: []string{"Lets a new node vote at once"}, slow: true})
	_, _ = slow.Acquire(ctx, storetest.Request("other"))
	late.await(t)
	node := slow.Keys("")[0]
	votes := strings.Replace(w.plain[2].Get(ctx, node).Val(), ":n:", ":a:", 1)
	require.NoError(t, w.plain[2].Set(ctx, node, "0000000000000"+votes[13:], 0).Err())
	storetest.Acquire(t, w.reaching(t, []int{0, 1, 2}, long), storetest.Request("k"))

	for _, name := range w.plain[2].Keys(ctx, w.prefix+"*").Val() {
		require.NoError(t, w.plain[2].Del(ctx, name).Err())
	}
	rivals := w.reaching(t, []int{2, 3, 4}, long)
	_, err := rivals.Acquire(ctx, storetest.Request("k"))
	require.ErrorIs(t, err, redlock.ErrNoQuorum)
	late.deliver(t)
	for range 20 {
		_, err = rivals.Acquire(ctx, storetest.Request("k"))
		require.Error(t, err) // no quorum, or held by an earlier try for a moment more
	}
}

// TestActivationByOldAnswers: a process finds all nodes new, and the last of them when the others have
// voted, and it has lost its data. Only together would that mean that nothing was forgotten.
func TestActivationByOldAnswers(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	slow := w.open(t, long)
	req := storetest.Request("other")
	late := slow.nets[2].set(&trap{texts: []string{req.Owner}, slow: true})
	waiting := storetest.Begin(t, slow, req)
	late.await(t)
	for _, i := range []int{0, 1, 3, 4} {
		storetest.Eventually(t, "the others' answers", func() bool { return slow.Idle(i) })
	}
	storetest.Acquire(t, w.open(t, long), storetest.Request("k"))
	storetest.Eventually(t, "all votes", func() bool { return w.held(t, "k") == 5 })

	ctx, node := storetest.Bounded(t), slow.Keys("")[0]
	for _, name := range w.plain[2].Keys(ctx, w.prefix+"*").Val() {
		require.NoError(t, w.plain[2].Del(ctx, name).Err())
	}
	late.deliver(t)
	waiting.End(t)
	require.Contains(t, w.plain[2].Get(ctx, node).Val(), ":n:")
}

// TestLateGrant: the votes come when the TTL is over that they are for.
func TestLateGrant(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	p := w.ready(t)
	w.pause()
	var g lock.Grant
	done := make(chan error)
	go func() {
		var err error
		g, err = p.Acquire(context.Background(), storetest.Lasting(storetest.Request("k"), time.Second))
		done <- err
	}()
	select {
	case err := <-done:
		require.FailNow(t, "the nodes are frozen", "%v", err)
	case <-time.After(1500 * time.Millisecond):
	}
	resumed := time.Now()
	w.resume()
	if err := <-done; err == nil { // on a slow machine, by another try
		require.True(t, g.Start.After(resumed))
	}
}

// TestReleaseBeyondReach: a node that does not hear of a release is told when it can be.
func TestReleaseBeyondReach(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	g := storetest.Acquire(t, p, storetest.Request("k"))
	storetest.Eventually(t, "all votes", func() bool { return w.held(t, "k") == 5 && p.Idle(4) })
	p.nets[4].sever()
	storetest.Release(t, p, g)
	storetest.Eventually(t, "a release to be owed", func() bool { return p.Owes(4) })
	p.nets[4].heal()
	storetest.Eventually(t, "the release", func() bool { return !w.has(t, 4, "k", g.Owner) })
	storetest.Eventually(t, "nothing to be owed", func() bool { return !p.Owes(4) })
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
// first two seconds none is.
func (w world) age(tb testing.TB) {
	tb.Helper()
	for i := range w.servers {
		ctx, node := storetest.Bounded(tb), w.prefix+"node"
		was := w.plain[i].Get(ctx, node).Val()
		require.Greater(tb, len(was), 13)
		require.NoError(tb, w.plain[i].Set(ctx, node, "0000000000001"+was[13:], 0).Err())
	}
}

// tries waits until a waiter's next vote at a node, or what gives it back.
func (w world) tries(tb testing.TB, i int, key string) {
	tb.Helper()
	ctx, name := storetest.Bounded(tb), w.prefix+"s:"+key
	w.plain[i].Expire(ctx, name, time.Hour)
	storetest.Eventually(tb, "a try", func() bool { return w.plain[i].TTL(ctx, name).Val() > time.Hour })
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

// TestDoubtBeforeAWait: a node does not answer a try, whose owner stands in line next, as the lock
// service does. When the node is back it does not refuse the owner, nor does anything outlive the release.
func TestDoubtBeforeAWait(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.ready(t), w.ready(t)
	g := storetest.Acquire(t, a, storetest.Request("k"))
	req := storetest.Request("k")
	vote := b.nets[0].set(&trap{texts: []string{req.Owner}}) // it is sent again
	_, err := b.Acquire(storekit.ReuseOwner(storetest.Bounded(t)), req)
	require.ErrorIs(t, err, lock.ErrHeld)
	vote.await(t)
	waiting := storetest.Waits(t, b, req)
	for range 50 {
		storetest.Inspect(t, b, "other") // time enough for a mark
	}
	storetest.Release(t, a, g)
	storetest.Release(t, b, waiting.Granted(t))
	storetest.Eventually(t, "all nodes to be free", func() bool { return w.held(t, "k") == 0 })
	vote.deliver(t)
	storetest.Inspect(t, b, "k")
	require.False(t, w.has(t, 0, "k", req.Owner))
}

// TestLateVoteBeforeAWait: likewise, but a node casts its vote in the try when the wait has been granted,
// and counts on that node. It must not be given back.
func TestLateVoteBeforeAWait(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.ready(t), w.ready(t)
	g := storetest.Acquire(t, a, storetest.Request("k"))
	req := storetest.Request("k")
	vote := b.nets[0].set(&trap{texts: []string{req.Owner}, slow: true})
	_, err := b.Acquire(storekit.ReuseOwner(storetest.Bounded(t)), req)
	require.ErrorIs(t, err, lock.ErrHeld)
	vote.await(t)
	waiting := storetest.Waits(t, b, req)
	storetest.Release(t, a, g)
	next := waiting.Granted(t)
	storetest.Eventually(t, "a vote of the node", func() bool { return w.has(t, 0, "k", req.Owner) })
	vote.deliver(t)
	storetest.Eventually(t, "the answer to the try", func() bool { return b.Idle(0) })
	require.True(t, w.has(t, 0, "k", req.Owner))
	storetest.Release(t, b, next)
	storetest.Eventually(t, "all nodes to be free", func() bool { return w.held(t, "k") == 0 })
}
