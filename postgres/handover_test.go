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
