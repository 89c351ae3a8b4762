package zookeeper

import (
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

// standing is a claim on a Locker of its own with a node that is there.
func standing(tb testing.TB) (l *Locker, c *claim, lost chan lock.LostReason) {
	tb.Helper()
	conn, root := laneRoot(tb)
	l = New(conn, WithRoot(root), WithSessionTimeout(10*time.Minute))
	tb.Cleanup(func() { require.NoError(tb, l.Close()) })
	c, lost = waiter(l, 0, false), make(chan lock.LostReason, 1)
	c.session, c.lost = conn.SessionID(), func(r lock.LostReason) { lost <- r }
	_, err := conn.Create(l.parent(c.key), nil, 0, zk.WorldACL(zk.PermAll))
	require.NoError(tb, err)
	_, err = conn.Create(l.path(c.key, c.node.name), nil, zk.FlagEphemeral, zk.WorldACL(zk.PermAll))
	require.NoError(tb, err)
	return l, c, lost
}

// TestWatchOfAnother: a container that was removed and created anew numbers its nodes from the
// start. The end of one that had a grant's place before is not that grant's.
func TestWatchOfAnother(t *testing.T) {
	t.Parallel()
	l, c, lost := standing(t)
	c.phase = held
	over := func(path string) {
		l.watch(c.place(), path)
		storetest.Eventually(t, "the end of the watch", func() bool { return l.Watches() == 0 })
	}
	over(l.path(c.key, "xbefore.0000000000"))
	require.Empty(t, lost)
	require.Equal(t, held, c.phase)
	require.NoError(t, l.conn.Delete(l.path(c.key, c.node.name), -1))
	over(l.path(c.key, c.node.name))
	require.Equal(t, lock.ReasonForced, <-lost)
	require.Equal(t, ended, c.phase)
}

// TestDeaf: a Locker that got no event looks often until one comes. That a node was gone before it was
// watched is no event.
func TestDeaf(t *testing.T) {
	t.Parallel()
	l, c, _ := standing(t)
	l.deaf.Store(true)
	l.arm(&vigil{at: c.place(), path: l.path(c.key, "xgone.0000000000")})
	require.True(t, l.deaf.Load())
	l.arm(&vigil{at: c.place(), path: l.path(c.key, c.node.name)})
	require.NoError(t, l.conn.Delete(l.path(c.key, c.node.name), -1))
	storetest.Eventually(t, "the event", func() bool { return !l.deaf.Load() })
}

// TestWatchEnds: a watcher ends with its Locker, whose connection and nodes may stay.
func TestWatchEnds(t *testing.T) {
	t.Parallel()
	l, c, lost := standing(t)
	c.phase = held
	w, done := &watcher{l: l, added: make(chan *vigil)}, make(chan struct{})
	l.watcher = w
	go func() { defer close(done); w.run() }()
	l.arm(&vigil{at: c.place(), path: l.path(c.key, c.node.name)})
	select {
	case <-done:
		require.FailNow(t, "the node is there")
	case <-time.After(100 * time.Millisecond):
	}
	require.NoError(t, l.Close())
	storetest.Receive(t, done)
	require.Empty(t, lost)
}

// TestUnwatched: a watch that cannot be set ends the waits for its node, and a busy server is not asked
// again at once.
func TestUnwatched(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err   error
		ends  bool
		pause time.Duration
	}{
		{zk.ErrNoNode, false, 0},
		{zk.ErrNoAuth, true, 0},
		{zk.ErrConnectionClosed, false, 0},
		{zk.ErrNoServer, false, 0},
		{errors.New("zk: " + throttled), false, rearm},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := New(nil)
			front, w := place{"k", 7}, waiter(l, 8, false)
			l.follow(w, front)
			began := time.Now()
			l.unwatched(&vigil{at: front, path: "/lock/k/xfront.0000000007"}, c.err)
			require.Equal(t, c.pause, time.Since(began), c.err)
			require.Equal(t, c.ends, w.refused != nil, c.err)
			l.follow(w, place{"k", 6})
			require.NoError(t, w.refused, "it waits for another now")
		})
	}
}

// TestPruneOwner: what an owner's request has left goes. The node of its next request stays, unless that was
// undone. A node of another session may be another process's: only an undo deletes it.
func TestPruneOwner(t *testing.T) {
	t.Parallel()
	l, c, _ := standing(t)
	own := c.node
	_, err := l.conn.Create(l.path(c.key, "X"+c.owner+".0000000001"), nil, zk.FlagEphemeral, zk.WorldACL(zk.PermAll))
	require.NoError(t, err)
	prune := func(all bool) []node {
		err = l.pruneOwnerOnce(storetest.Bounded(t), c.key, c.owner, all)
		line, lineErr := l.line(storetest.Bounded(t), c.key)
		require.NoError(t, lineErr)
		return line
	}
	c.phase, c.node = creating, node{} // either may be its own
	require.Len(t, prune(true), 2)
	require.Equal(t, storekit.Busy, classify(err), "it is tried again")
	c.phase, c.node = waiting, own
	left := prune(true)
	require.NoError(t, err)
	require.Len(t, left, 1)
	require.Equal(t, own.name, left[0].name)
	other, _ := laneRoot(t)
	_, err = other.Create(l.path(c.key, "x"+c.owner+".0000000002"), nil, zk.FlagEphemeral, zk.WorldACL(zk.PermAll))
	require.NoError(t, err)
	c.undone = true
	left = prune(false)
	require.NoError(t, err)
	require.Len(t, left, 1)
	require.NotEqual(t, own.name, left[0].name)
	require.Empty(t, prune(true))
	require.NoError(t, err)
}

// TestIdleHolds: a lock that is held and idle costs no goroutine of its own. The end of any of
// their nodes is told all the same. It is not parallel, since it counts goroutines.
func TestIdleHolds(t *testing.T) {
	conn, root := laneRoot(t)
	l := New(conn, WithRoot(root), WithSessionTimeout(10*time.Minute))
	defer func() { require.NoError(t, l.Close()) }()
	const n = 3*maxVigils + 5
	lost := make(chan string, n)
	hold := func(key string) lock.Grant {
		req := storetest.Lasting(storetest.Request(key), 5*time.Minute)
		req.Lost = func(lock.LostReason) { lost <- key }
		return storetest.Acquire(t, l, req)
	}
	first := hold("first")
	storetest.Eventually(t, "its watch", func() bool { return l.Watches() == 1 })
	before := runtime.NumGoroutine()
	var grants []lock.Grant
	for i := range n {
		grants = append(grants, hold(fmt.Sprint("k", i)))
	}
	storetest.Eventually(t, "the watches, by few", func() bool {
		return l.Watches() == n+1 && runtime.NumGoroutine() <= before+n/maxVigils+5
	})
	for _, g := range grants {
		require.NoError(t, l.ForceRelease(storetest.Bounded(t), g.Key, g.Owner))
	}
	told := make(map[string]bool)
	for range n {
		told[storetest.Receive(t, lost)] = true
	}
	require.Len(t, told, n)
	storetest.Eventually(t, "their watches to end", func() bool { return l.Watches() == 1 })
	storetest.Release(t, l, first)
}

// TestIdleCost: nor does it cost more than two kilobytes, with what the client keeps for its watch.
func TestIdleCost(t *testing.T) {
	conn, root := laneRoot(t)
	l := New(conn, WithRoot(root), WithSessionTimeout(10*time.Minute))
	defer func() { require.NoError(t, l.Close()) }()
	storetest.IdleCost(t, l, 2500, func(held int) {
		storetest.Eventually(t, "their watches", func() bool { return l.Watches() == held })
	})
}

// TestVerify: a node is verified if it is there, and of the session that has verified it. What
// was undone is not granted.
func TestVerify(t *testing.T) {
	t.Parallel()
	l, c, _ := standing(t)
	a := &acquisition{l: l, c: c}
	before := time.Now()
	start, err := a.verify(t.Context())
	require.NoError(t, err)
	require.False(t, start.Before(before))
	c.session++
	_, err = a.verify(t.Context())
	require.ErrorIs(t, err, errGone)
	c.session--
	require.NoError(t, l.conn.Delete(l.path(c.key, c.node.name), -1))
	_, err = a.verify(t.Context())
	require.ErrorIs(t, err, errGone)
	c.undone = true
	l.end(c)
	_, err = l.hold(c, start)
	require.ErrorIs(t, err, lock.ErrReleased)
}
