package zookeeper_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/zookeeper"
)

// expire ends the session of p: it is cut off until the server has expired it, and taken a
// node of it away.
func (p *process) expire(tb testing.TB) {
	tb.Helper()
	old, sign, witness := p.conn.SessionID(), p.world.root+"-lives", dial(tb, long, p.world.server.Addr())
	_, err := p.conn.Create(sign, nil, zk.FlagEphemeral, zk.WorldACL(zk.PermAll))
	require.NoError(tb, err)
	heal := p.proxy.Cut()
	storetest.Eventually(tb, "the end of the session", func() bool {
		exists, _, err := witness.Exists(sign)
		return err == nil && !exists
	})
	heal()
	storetest.Eventually(tb, "another session", func() bool {
		return p.conn.State() == zk.StateHasSession && p.conn.SessionID() != old
	})
}

// TestSessionExpires: every lease on it is lost, and told so at once; who waits stands in
// line anew; and the Locker goes on with the next session. The Locker takes the session for a
// longer one, else its own account of the TTL would end the grants before.
func TestSessionExpires(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.open(t, zookeeper.WithSessionTimeout(long)), w.lasting().open(t)
	lost := make(chan lock.LostReason, 3)
	var grants []lock.Grant
	for _, key := range []string{"k1", "k2"} {
		req := storetest.Request(key)
		req.Lost = func(r lock.LostReason) { lost <- r }
		grants = append(grants, storetest.Acquire(t, a, req))
	}
	blocker := storetest.Acquire(t, b, storetest.Request("k3"))
	stop := keep(t, b, blocker)
	waiting := storetest.Waits(t, a, storetest.Request("k3"))
	a.expire(t)
	for range grants {
		select {
		case r := <-lost:
			require.Equal(t, lock.ReasonExpired, r)
		case <-time.After(storetest.Patience):
			require.FailNow(t, "the loss was not told")
		}
	}
	for _, g := range grants {
		_, err := a.Renew(storetest.Bounded(t), g)
		storetest.Lost(t, err)
		storetest.Lost(t, a.Release(storetest.Bounded(t), g))
		next := storetest.Await(t, a, storetest.Request(g.Key))
		require.Greater(t, next.Token, g.Token)
		storetest.Holds(t, b, next)
		storetest.Release(t, a, next)
	}
	storetest.Eventually(t, "the waiter's new place", func() bool {
		return len(storetest.Inspect(t, b, "k3").Waiters) == 1
	})
	stop()
	storetest.Release(t, b, blocker)
	storetest.Release(t, a, waiting.Granted(t))
	require.Empty(t, lost)
	require.Zero(t, a.Claims())
}

// TestLossIsOfOneSession: while a loss is told, others who waited in the same session line up in the next
// and are granted. The end of the old session is not theirs.
func TestLossIsOfOneSession(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.open(t, zookeeper.WithSessionTimeout(long)), w.lasting().open(t)
	const keys = 8 // the order in which claims are told is random: some waiters come after the first holder
	var waiting []*storetest.Waiting
	var first sync.Once
	told, wrong := make(chan lock.LostReason, keys), make(chan lock.LostReason, keys)
	lined := make(chan struct{})
	for i := range keys {
		req := storetest.Request(fmt.Sprint("k", i))
		req.Lost = func(r lock.LostReason) {
			first.Do(func() {
				<-lined
				for _, w := range waiting {
					select {
					case <-w.Done:
					case <-time.After(storetest.Patience):
					}
				}
			})
			told <- r
		}
		storetest.Acquire(t, a, req)
		next := storetest.Request(req.Key)
		next.Lost = func(r lock.LostReason) { wrong <- r }
		waiting = append(waiting, storetest.Waits(t, a, next))
	}
	close(lined)
	a.expire(t)
	for range keys {
		require.Equal(t, lock.ReasonExpired, storetest.Receive(t, told))
	}
	for _, next := range waiting {
		g := storetest.Renew(t, a, next.Granted(t))
		storetest.Release(t, a, g)
		storetest.Release(t, b, storetest.Await(t, b, storetest.Request(g.Key)))
	}
	require.Empty(t, wrong)
	require.Zero(t, a.Claims())
}

// keep renews g until stop.
func keep(tb testing.TB, l lock.Locker, g lock.Grant) (stop func()) {
	tb.Helper()
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			case <-time.After(g.TTL / 4):
				if _, err := l.Renew(context.Background(), g); err != nil {
					tb.Error(err)
					return
				}
			}
		}
	}()
	stop = sync.OnceFunc(func() { close(quit); <-done })
	tb.Cleanup(stop)
	return stop
}

// TestSessionOfTheDead: a node of the same owner that belongs to another session is not
// held by that, be it seen in line, or when a node is looked for whose creation had an unknown
// outcome. It is the owner's own, so it goes.
func TestSessionOfTheDead(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a := w.open(t)
	old := dial(t, long, w.server.Addr())
	for _, unknown := range []bool{false, true} {
		storetest.Release(t, a, storetest.Acquire(t, a, storetest.Request("k")))
		req := storetest.Request("k")
		path, err := old.Create(w.root+"/k/x"+req.Owner+".", nil, zk.FlagEphemeralSequential, zk.WorldACL(zk.PermAll))
		require.NoError(t, err)
		heal := func() {}
		if unknown {
			heal = a.proxy.HoldReplies()
		}
		result := make(chan lock.Grant, 1)
		go func() {
			req.Wait = true
			g, err := a.Acquire(storetest.Bounded(t), req)
			if err != nil {
				t.Error(err)
			}
			result <- g
		}()
		if unknown {
			storetest.Eventually(t, "the node", func() bool { return len(names(t, old, w.root+"/k")) == 2 })
			a.proxy.Break()
		}
		heal()
		g := <-result
		storetest.Eventually(t, "the end of the other", func() bool { return !slices.Contains(names(t, old, w.root+"/k"), path[len(w.root+"/k/"):]) })
		storetest.Holds(t, a, g)
		_, stat, err := old.Get(w.root + "/k/" + names(t, old, w.root+"/k")[0])
		require.NoError(t, err)
		require.Equal(t, a.conn.SessionID(), stat.EphemeralOwner)
		storetest.Release(t, a, g)
	}
}

// TestReplyLost: the connection breaks after the node was created. It is found again, by
// its owner: one grant, and nothing left after it.
func TestReplyLost(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, b := w.open(t), w.open(t)
	for _, wait := range []bool{false, true} {
		storetest.Release(t, a, storetest.Acquire(t, a, storetest.Request("k")))
		heal := a.proxy.HoldReplies()
		req := storetest.Request("k")
		req.Wait = wait
		result := make(chan lock.Grant, 1)
		go func() {
			g, err := a.Acquire(storetest.Bounded(t), req)
			if err != nil {
				t.Error(err)
			}
			result <- g
		}()
		storetest.Eventually(t, "the node", func() bool { return len(names(t, b.conn, w.root+"/k")) == 1 })
		a.proxy.Break()
		heal()
		g := <-result
		require.Equal(t, req.Owner, g.Owner)
		storetest.Holds(t, b, g)
		require.Len(t, names(t, b.conn, w.root+"/k"), 1)
		storetest.Release(t, a, g)
		require.Empty(t, names(t, b.conn, w.root+"/k"))
	}
}

// TestReleaseReplyLost: the release is repeated, and takes it for its own that the node is
// gone.
func TestReleaseReplyLost(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, b := w.open(t), w.open(t)
	g := storetest.Acquire(t, a, storetest.Request("k"))
	heal := a.proxy.HoldReplies()
	result := make(chan error, 1)
	go func() { result <- a.Release(storetest.Bounded(t), g) }()
	storetest.Eventually(t, "the release", func() bool { return len(names(t, b.conn, w.root+"/k")) == 0 })
	a.proxy.Break()
	heal()
	require.NoError(t, <-result)
	storetest.Lost(t, a.Release(storetest.Bounded(t), g))
}

// TestUnrenewed: a process lives, and its session with it, but it does not renew.
func TestUnrenewed(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, b := w.open(t), w.open(t)
	lost := make(chan lock.LostReason, 1)
	req := storetest.Lasting(storetest.Request("k"), 300*time.Millisecond)
	req.Lost = func(r lock.LostReason) { lost <- r }
	session := a.conn.SessionID()
	g := storetest.Acquire(t, a, req)
	require.Equal(t, 300*time.Millisecond, g.TTL)
	next := storetest.Await(t, b, storetest.Request("k"))
	require.GreaterOrEqual(t, time.Since(g.Start), g.TTL)
	require.Greater(t, next.Token, g.Token)
	require.Equal(t, lock.ReasonExpired, <-lost)
	require.Equal(t, session, a.conn.SessionID())
	_, err := a.Renew(storetest.Bounded(t), g)
	require.Equal(t, lock.ReasonTaken, storetest.Lost(t, err))
	storetest.Release(t, b, next)
}

// TestClose: waits end, their places go, and grants end with their TTL although the
// session lives on.
func TestClose(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, b := w.open(t), w.open(t)
	held := storetest.Acquire(t, a, storetest.Lasting(storetest.Request("held"), 500*time.Millisecond))
	blocker := storetest.Acquire(t, b, storetest.Request("k"))
	waiting := storetest.Waits(t, a, storetest.Request("k"))
	require.NoError(t, a.Close())
	waiting.End(t)
	require.ErrorIs(t, waiting.Err, lock.ErrClosed)
	storetest.Eventually(t, "the place to go", func() bool {
		return len(names(t, b.conn, w.root+"/k")) == 1
	})
	storetest.Release(t, b, blocker)
	storetest.Release(t, b, storetest.Await(t, b, storetest.Request("held")))
	require.GreaterOrEqual(t, time.Since(held.Start), held.TTL)
	for _, err := range []error{
		a.Release(storetest.Bounded(t), held),
		func() error { _, err := a.Acquire(storetest.Bounded(t), storetest.Request("k")); return err }(),
		func() error { _, err := a.Renew(storetest.Bounded(t), held); return err }(),
		func() error { _, err := a.Inspect(storetest.Bounded(t), "k"); return err }(),
		a.ForceRelease(storetest.Bounded(t), "k", "o"),
	} {
		require.ErrorIs(t, err, lock.ErrClosed)
	}
	require.NoError(t, a.Close())
	require.Zero(t, a.Claims())
}

// TestNothingIsKept: neither claims nor watches are kept of what is over, and waits that
// were given up share the one watch of the node in front.
func TestNothingIsKept(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, b := w.open(t), w.open(t)
	blocker := storetest.Acquire(t, b, storetest.Request("k"))
	for range 20 {
		waiting := storetest.Waits(t, a, storetest.Request("k"))
		waiting.Cancel()
		waiting.End(t)
		require.ErrorIs(t, waiting.Err, lock.ErrHeld)
	}
	storetest.Eventually(t, "the places to go", func() bool { return len(names(t, b.conn, w.root+"/k")) == 1 })
	storetest.Eventually(t, "one watch", func() bool { return a.Watches() == 1 })
	storetest.Release(t, b, blocker)
	storetest.Eventually(t, "the watches to go", func() bool { return a.Watches()+b.Watches() == 0 })
	require.Zero(t, a.Claims())
	require.Zero(t, b.Claims())
}

// TestMaxTTL: a longer TTL gets what the session allows.
func TestMaxTTL(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a := w.open(t)
	require.Equal(t, long*2/3-tick, a.MaxTTL())
	g := storetest.Acquire(t, a, storetest.Request("k"))
	require.Equal(t, a.MaxTTL(), g.TTL)
	g.TTL = time.Hour
	require.Equal(t, a.MaxTTL(), storetest.Renew(t, a, g).TTL)
	var _ lock.Locker = zookeeper.New(nil)
}
