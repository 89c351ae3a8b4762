package memory_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

func TestUndoOfAPlaceInLine(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		held := acquire(t, l, request("k", shared))
		req := request("k")
		c := start(t.Context(), l, req)
		behind := start(t.Context(), l, request("k", shared))
		require.NoError(t, l.Release(t.Context(), lock.Grant{Key: "k", Owner: req.Owner}))
		o := <-c
		require.ErrorIs(t, o.err, lock.ErrReleased)
		require.Zero(t, o.grant)
		release(t, l, granted(t, behind))
		release(t, l, held)
	})
}

// asleep makes req wait and keeps its goroutine from running until wake is called:
// Waiting comes between joining the line and the wait.
func asleep(ctx context.Context, l lock.Locker, req lock.Request) (c <-chan outcome, wake func()) {
	run := make(chan struct{})
	req.Waiting = func(lock.Record) { <-run }
	return start(ctx, l, req), func() { close(run) }
}

// The undo meets a waiter that was handed the key and has not run yet.
func TestUndoOfAHandOver(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		held := acquire(t, l, request("k"))
		got, lost := losses(l)
		req := request("k", lost)
		c, wake := asleep(t.Context(), l, req)
		behind := start(t.Context(), l, request("k"))
		release(t, l, held)
		require.NoError(t, l.Release(t.Context(), lock.Grant{Key: "k", Owner: req.Owner}))
		g := granted(t, behind)
		wake()
		require.ErrorIs(t, (<-c).err, lock.ErrReleased)
		require.Empty(t, got())
		release(t, l, g)
	})
}

// The cancel meets a waiter that was handed the key and has not run yet: the grant is
// passed on at once, not at the end of its TTL.
func TestCancelOfAHandOver(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		held := acquire(t, l, request("k"))
		got, lost := losses(l)
		ctx, cancel := context.WithCancel(t.Context())
		c, wake := asleep(ctx, l, request("k", lost))
		behind := start(t.Context(), l, request("k"))
		release(t, l, held)
		pending(t, behind)
		cancel()
		wake()
		o := <-c
		require.ErrorIs(t, o.err, context.Canceled)
		require.Zero(t, o.grant)
		g := granted(t, behind)
		require.Empty(t, got())
		release(t, l, g)
	})
}

func TestOwnerJoinsItsPlace(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		held := acquire(t, l, request("k"))
		req := request("k")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		a := start(ctx, l, req)
		b := start(t.Context(), l, req)
		c := start(t.Context(), l, req)
		behind := start(t.Context(), l, request("k"))
		_, _, waiters := memory.Size(l)
		require.Equal(t, 2, waiters)
		other := req
		shared(&other)
		require.ErrorIs(t, (<-start(t.Context(), l, other)).err, lock.ErrInvalid)

		cancel()
		require.ErrorIs(t, (<-a).err, context.Canceled)
		pending(t, b)
		release(t, l, held)
		require.Equal(t, granted(t, b), granted(t, c))
		pending(t, behind)
		require.NoError(t, l.Release(t.Context(), lock.Grant{Key: "k", Owner: req.Owner}))
		release(t, l, granted(t, behind))
	})
}

// When the last of an owner's callers gives up, its place goes, and no sooner.
func TestLastCallerTakesThePlaceAlong(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		held := acquire(t, l, request("k"))
		req := request("k")
		ctx, cancel := context.WithCancel(t.Context())
		a, b := start(ctx, l, req), start(ctx, l, req)
		cancel()
		require.ErrorIs(t, (<-a).err, context.Canceled)
		require.ErrorIs(t, (<-b).err, context.Canceled)
		_, _, waiters := memory.Size(l)
		require.Zero(t, waiters)
		release(t, l, held)
	})
}

// A waiter that was handed the key while it slept for longer than its TTL must not
// return a grant that is over.
func TestSleeperLinesUpAgain(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		held := acquire(t, l, request("k"))
		got, lost := losses(l)
		req := request("k", withTTL(time.Second), lost)
		c, wake := asleep(t.Context(), l, req)
		behind := start(t.Context(), l, request("k"))
		release(t, l, held)
		g := grantedAfter(t, time.Second, behind)
		wake()
		pending(t, c)
		rec := refused(t, l, request("k"))
		require.Equal(t, req.Owner, rec.Waiters[0].Owner)
		release(t, l, g)
		again := granted(t, c)
		require.Equal(t, time.Now(), again.Start)
		require.Empty(t, got(), "it had nothing yet")
		release(t, l, again)
	})
}

// As above, but nobody has taken the key meanwhile.
func TestSleeperFindsTheKeyFree(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		held := acquire(t, l, request("k"))
		c, wake := asleep(t.Context(), l, request("k", withTTL(time.Second)))
		release(t, l, held)
		time.Sleep(time.Second)
		wake()
		g := granted(t, c)
		require.Equal(t, time.Now(), g.Start)
		release(t, l, g)
	})
}

// As above, but its owner has asked again and holds the key.
func TestSleeperFindsItsOwner(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		held := acquire(t, l, request("k"))
		req := request("k", withTTL(time.Second))
		c, wake := asleep(t.Context(), l, req)
		release(t, l, held)
		time.Sleep(time.Second)
		again := acquire(t, l, req)
		wake()
		g := granted(t, c)
		require.Equal(t, again.Token, g.Token)
		release(t, l, g)
	})
}
