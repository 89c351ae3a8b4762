package postgres_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

// TestHandOverWithinProcess: the release itself brings the grant to the next waiter of the
// same process, and Start is from before the release.
func TestHandOverWithinProcess(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	g := storetest.Acquire(t, l, storetest.Request("k"))
	next := storetest.Waits(t, l, storetest.Request("k"))
	heal := l.net.deafen()
	defer heal()
	before := time.Now()
	storetest.Release(t, l, g)
	holders := storetest.Inspect(t, l, "k").Holders
	require.Len(t, holders, 1, "the lock was not free for a moment")
	require.Equal(t, next.Owner, holders[0].Owner)
	h := next.Granted(t)
	require.Greater(t, h.Token, g.Token)
	require.False(t, h.Start.Before(before), "Start is not from before the release")
	storetest.Release(t, l, storetest.Renew(t, l, h))
}

// TestHandOverReplyLost: the grant has been made, and nobody was told. The waiter finds it
// when it looks again: one grant, one token.
func TestHandOverReplyLost(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t, "default_query_exec_mode=exec"), w.open(t)
	l.warm(t)
	g := storetest.Acquire(t, l, storetest.Request("k"))
	next := storetest.Waits(t, l, storetest.Request("k"))
	heal := l.net.holdReplies()
	released := make(chan error, 1)
	go func() { released <- l.Release(storetest.Bounded(t), g) }()
	var made lock.Holder
	storetest.Eventually(t, "the hand-over", func() bool {
		if hs := storetest.Inspect(t, other, "k").Holders; len(hs) == 1 && hs[0].Owner == next.Owner {
			made = hs[0]
		}
		return made.Owner != ""
	})
	l.net.sever() // the reply is gone for good
	heal()
	h := next.Granted(t)
	require.Equal(t, made.Token, h.Token)
	require.NoError(t, <-released)
	storetest.Holds(t, other, h)
	storetest.Release(t, l, h)
}

// TestHandOverToWhoGivesUp: the waiter leaves as the hand-over comes. After its undo nobody
// has the lock.
func TestHandOverToWhoGivesUp(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	for i := range 30 {
		key := fmt.Sprint("k", i)
		g := storetest.Acquire(t, l, storetest.Request(key))
		next := storetest.Waits(t, []*process{l, other}[i%2], storetest.Request(key))
		var both sync.WaitGroup
		both.Go(func() { storetest.Release(t, l, g) })
		both.Go(next.Cancel)
		both.Wait()
		next.End(t)
		if next.Err == nil {
			storetest.Holds(t, other, next.Grant)
			storetest.Release(t, l, next.Grant)
		} else {
			require.ErrorIs(t, next.Err, context.Canceled)
			storetest.Release(t, l, lock.Grant{Key: key, Owner: next.Owner})
		}
		rec := storetest.Inspect(t, other, key)
		require.Empty(t, rec.Holders)
		require.Empty(t, rec.Waiters)
		require.Greater(t, storetest.Acquire(t, other, storetest.Request(key)).Token, g.Token)
	}
}

// TestLateHandOver: the reply of a release in the same process comes after the TTL of what it has handed
// over, when the waiter has lined up anew. The release of that grant takes the place back, too.
func TestLateHandOver(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	g := storetest.Acquire(t, other, storetest.Request("k"))
	waiting := storetest.Waits(t, l, storetest.Request("k"))
	l.HandOver(waiting.Owner, g.Token-1, time.Now().Add(-time.Hour))
	late := waiting.Granted(t)
	require.ErrorIs(t, l.Release(storetest.Bounded(t), late), lock.ErrLost)
	require.Empty(t, storetest.Inspect(t, other, "k").Waiters)
}

// TestHandOverToTheDead: a waiter has given up, no undo has come, and its heartbeat is over, before
// anybody has swept its place away. Nobody has the lock by that place.
func TestHandOverToTheDead(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	g := storetest.Acquire(t, l, storetest.Request("k"))
	dead := storetest.Waits(t, l, storetest.Request("k"))
	dead.Cancel()
	dead.End(t)
	w.exec(t, "UPDATE "+w.table("_waiters")+" SET deadline = now() - interval '1 s'")
	w.exec(t, "UPDATE "+w.table("")+" SET swept = now() + interval '1 h'")
	storetest.Release(t, l, g)
	require.Empty(t, storetest.Inspect(t, other, "k").Holders)
	storetest.Release(t, other, storetest.Acquire(t, other, storetest.Request("k")))
}

// TestHandOverStart: the reply that brings the grant may be late. Start is from before the
// request all the same.
func TestHandOverStart(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t, "default_query_exec_mode=exec"), w.open(t)
	l.warm(t)
	g := storetest.Acquire(t, l, storetest.Request("k"))
	next := storetest.Waits(t, l, storetest.Request("k"))
	heal := l.net.holdReplies()
	ctx, released := storetest.Bounded(t), make(chan error, 1)
	go func() { released <- l.Release(ctx, g) }()
	storetest.Eventually(t, "the hand-over", func() bool {
		hs := storetest.Inspect(t, other, "k").Holders
		return len(hs) == 1 && hs[0].Owner == next.Owner
	})
	seen := time.Now()
	heal()
	require.NoError(t, <-released)
	require.True(t, next.Granted(t).Start.Before(seen))
}

// TestForcedNoticeAfterRelease: the message that a grant was forced comes when its holder has
// released it.
func TestForcedNoticeAfterRelease(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	other.warm(t) // to connect takes time, in which what shows that l's listener lives is held too
	told := make(chan string, 2)
	hold := func(key string) lock.Grant {
		req := storetest.Request(key)
		req.Lost = func(lock.LostReason) { told <- key }
		return storetest.Acquire(t, l, req)
	}
	first, second := hold("first"), hold("second")
	notices := l.proxy().Hold(faultproxy.Replies().Matching(func(m []byte) bool { return m[0] == 'A' }))
	force := func(g lock.Grant) { require.NoError(t, other.ForceRelease(storetest.Bounded(t), g.Key, g.Owner)) }
	force(first)
	storetest.Receive(t, notices.Hit())
	storetest.Lost(t, l.Release(storetest.Bounded(t), first))
	force(second)
	notices.Heal()
	require.Equal(t, "second", storetest.Receive(t, told), "the first was released before it was told")
}
