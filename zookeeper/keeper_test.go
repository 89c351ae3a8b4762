package zookeeper

import (
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

// standing is a claim on a Locker of its own with a node that is there.
func standing(tb testing.TB) (l *Locker, c *claim, lost chan lock.LostReason) {
	tb.Helper()
	conn, root := laneRoot(tb)
	l = New(conn, WithRoot(root), WithSessionTimeout(time.Minute))
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
	l.watching(c.place(), l.path(c.key, "xbefore.0000000000"))
	require.Empty(t, lost)
	require.Equal(t, held, c.phase)
	require.NoError(t, l.conn.Delete(l.path(c.key, c.node.name), -1))
	l.watching(c.place(), l.path(c.key, c.node.name))
	require.Equal(t, lock.ReasonForced, <-lost)
	require.Equal(t, ended, c.phase)
}

// TestWatchEnds: a watch ends with its Locker, whose connection and nodes may stay.
func TestWatchEnds(t *testing.T) {
	t.Parallel()
	l, c, lost := standing(t)
	c.phase = held
	done := make(chan struct{})
	go func() { defer close(done); l.watching(c.place(), l.path(c.key, c.node.name)) }()
	select {
	case <-done:
		require.FailNow(t, "the node is there")
	case <-time.After(100 * time.Millisecond):
	}
	require.NoError(t, l.Close())
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		require.FailNow(t, "it watches on")
	}
	require.Empty(t, lost)
}

// TestVerify: a node is verified if it is there, and of the session that has verified it. What
// has ended is not granted.
func TestVerify(t *testing.T) {
	t.Parallel()
	l, c, _ := standing(t)
	a := &attempt{l: l, c: c}
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
	l.end(c) // by an undo, perhaps
	_, err = a.granted(start)
	require.ErrorIs(t, err, errUndone)
}
