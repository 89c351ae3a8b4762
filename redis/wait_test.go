package redis_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

// TestWakeupSubscriberKilled: the subscriber's connection is cut. It comes back, and its waiters
// look again at once, so a wake-up that fell into the gap costs nothing.
func TestWakeupSubscriberKilled(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	a, b := w.open(t), w.open(t)
	ctx := bounded(t)
	look := func() time.Duration {
		g := acquire(t, a, request("k"))
		waiting := waits(t, b, request("k"))
		eventually(t, "the subscriber", func() bool { return subscribers(t, w) == 1 })
		heal := b.net.set(&b.net.deaf)
		release(t, a, g)
		require.NoError(t, w.rdb.Do(ctx, "CLIENT", "KILL", "TYPE", "pubsub").Err())
		heal()
		released := time.Now()
		h := waiting.granted()
		release(t, b, h)
		return waiting.at.Sub(released)
	}
	for range 3 {
		storetest.Fastest(t, "a look at once, not by its own timer", 5*time.Second/3, look)
	}
}

// TestWakeupConnections: one subscriber connection for each Locker that needs it, however
// many wait.
func TestWakeupConnections(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	a, b, idle := w.open(t), w.open(t), w.open(t)
	g := acquire(t, a, request("k"))
	require.Zero(t, subscribers(t, w), "nobody waits, nobody wants to be told")
	acquire(t, idle, request("another"))
	for i := range 20 {
		waits(t, []*process{a, b}[i%2], request("k"))
		req := request(fmt.Sprint(i))
		req.Lost = func(lock.LostReason) {}
		acquire(t, a, req)
	}
	eventually(t, "the subscribers", func() bool { return subscribers(t, w) == 2 })
	require.NoError(t, a.ForceRelease(bounded(t), "k", g.Owner))
	require.Equal(t, 2, subscribers(t, w))
	require.NoError(t, a.Close())
	eventually(t, "a's end", func() bool { return subscribers(t, w) == 1 })
}

// TestEarlyLossFromTheStart: the first grant of a Locker may be forced as soon as it is
// there, so it is not asked for before the Locker can hear of that.
func TestEarlyLossFromTheStart(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	other := w.open(t)
	for _, wait := range []bool{false, true} {
		l := w.open(t)
		l.net.gate = make(chan struct{})
		req, lost := request(fmt.Sprint("k", wait)), make(chan lock.LostReason, 1)
		req.Wait, req.Lost = wait, func(r lock.LostReason) { lost <- r }
		granted := make(chan error, 1)
		go func() { _, err := l.Acquire(bounded(t), req); granted <- err }()
		select {
		case err := <-granted:
			require.FailNow(t, "it was granted while nobody listened", "%v", err)
		case <-time.After(200 * time.Millisecond):
		}
		require.Empty(t, inspect(t, other, req.Key).Holders)
		close(l.net.gate)
		require.NoError(t, <-granted)
		require.NoError(t, other.ForceRelease(bounded(t), req.Key, req.Owner))
		select {
		case r := <-lost:
			require.Equal(t, lock.ReasonForced, r)
		case <-time.After(patience):
			require.FailNow(t, "the loss was not told")
		}
	}
}

// TestWakeupForbidden: a user without rights on channels. Releasing works, waiting works
// by rechecks, and early notice of a loss does not come.
func TestWakeupForbidden(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	require.NoError(t, w.rdb.Do(bounded(t), "ACL", "SETUSER", "mute", "on", ">p", "+@all", "~*", "resetchannels").Err())
	login := &goredis.Options{Addr: w.server.Addr(), Username: "mute", Password: "p"}
	a, b := dial(t, login), dial(t, login)
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		g := acquire(t, a, request("k"))
		waiting := waits(t, b, mode(request("k")))
		release(t, a, g)
		h := waiting.granted()
		require.Greater(t, h.Token, g.Token)
		require.NoError(t, a.ForceRelease(bounded(t), "k", h.Owner))
	})
}

// TestHandOverWithinProcess: the release itself brings the grant to the next waiter of the
// same process; nothing is published, and nobody claims.
func TestHandOverWithinProcess(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	l := w.open(t)
	g := acquire(t, l, request("k"))
	next := waits(t, l, request("k"))
	heard := w.spy(t)
	before := time.Now()
	release(t, l, g)
	h := next.granted()
	require.Empty(t, heard())
	require.Greater(t, h.Token, g.Token)
	require.False(t, h.Start.Before(before), "Start is not from before the release")
	holds(t, l, h)
	renew(t, l, h)
	release(t, l, h)
}

// TestLateHandOver: the reply of a release in the same process comes after the TTL of what it has handed
// over, when the waiter has lined up anew. The release of that grant takes the place back, too.
func TestLateHandOver(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	g := acquire(t, other, request("k"))
	next := waits(t, l, request("k"))
	l.HandOver(next.req.Owner, g.Token-1, time.Now().Add(-time.Hour))
	require.ErrorIs(t, l.Release(bounded(t), next.granted()), lock.ErrLost)
	require.Empty(t, inspect(t, other, "k").Waiters)
}

// TestCrowdOfReadersGivesUp: readers that give up wake no readers.
func TestCrowdOfReadersGivesUp(t *testing.T) {
	t.Parallel()
	const n = 200
	w := ownWorld(t)
	a, b := w.open(t), w.open(t)
	request := func() lock.Request {
		req := request("k")
		req.TTL = time.Hour
		return req
	}
	acquire(t, a, storetest.Shared(request()))
	line := []*waiter{waits(t, b, request())}
	for range n {
		line = append(line, waits(t, b, storetest.Shared(request())))
	}
	for _, x := range line { // before the first undo: nobody claims any more
		x.cancel()
		x.end()
	}
	before := calls(t, w.rdb, "publish")
	for _, x := range line {
		release(t, b, lock.Grant{Key: "k", Owner: x.req.Owner})
	}
	require.Less(t, calls(t, w.rdb, "publish")-before, 3*n)
}

// TestHandOverReplyLost: the grant has been made, and nobody was told. The waiter finds it
// when it looks again: one grant, one token.
func TestHandOverReplyLost(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	preload(t, w.server)
	g := acquire(t, l, request("k"))
	waits(t, l, request("k")).undo() // the subscriber is there, and has waiters look again no more
	next := waits(t, l, request("k"))
	heal := l.net.set(&l.net.mute)
	released := make(chan error, 1)
	go func() { released <- l.Release(bounded(t), g) }()
	var made lock.Holder
	eventually(t, "the hand-over", func() bool {
		rec := inspect(t, other, "k")
		if len(rec.Holders) == 1 && rec.Holders[0].Owner == next.req.Owner {
			made = rec.Holders[0]
		}
		return made.Owner != ""
	})
	heal()
	h := next.granted()
	require.Equal(t, made.Token, h.Token)
	if err := <-released; err != nil { // on a starved machine all its tries were before
		require.NotErrorIs(t, err, lock.ErrLost)
	}
	holds(t, other, h)
	release(t, l, h)
}

// TestHandOverToWhoGivesUp: the waiter leaves as the hand-over comes. After its undo nobody
// has the lock.
func TestHandOverToWhoGivesUp(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	for i := range 60 {
		key := fmt.Sprint("k", i)
		g := acquire(t, l, request(key))
		next := waits(t, l, request(key))
		var both sync.WaitGroup
		both.Go(func() { release(t, l, g) })
		both.Go(next.cancel)
		both.Wait()
		next.end()
		if next.err == nil {
			holds(t, other, next.grant)
			release(t, l, next.grant)
		} else {
			require.ErrorIs(t, next.err, context.Canceled)
			release(t, l, lock.Grant{Key: key, Owner: next.req.Owner})
		}
		rec := inspect(t, other, key)
		require.Empty(t, rec.Holders)
		require.Empty(t, rec.Waiters)
		require.Greater(t, acquire(t, other, request(key)).Token, g.Token)
	}
}

// TestDeadWaiterAtTheHead: it holds up the line for its heartbeat, and no longer.
func TestDeadWaiterAtTheHead(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, dead, b := w.open(t), w.open(t), w.open(t)
	g := acquire(t, a, request("k"))
	lost := waits(t, dead, lasting(request("k"), time.Second))
	next := waits(t, b, request("k"))
	dead.net.sever()
	lost.cancel()
	release(t, a, g)
	h := next.granted()
	rec := inspect(t, a, "k")
	require.Len(t, rec.Holders, 1)
	require.Equal(t, h.Token, rec.Holders[0].Token)
	require.Empty(t, rec.Waiters, "the dead one is gone")
}

// TestReservation: a woken waiter that has not claimed yet is not overtaken, neither by a
// try nor by a waiter behind it. When its heartbeat ends it is.
func TestReservation(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, slow, b := w.open(t), w.open(t), w.open(t)
	g := acquire(t, a, request("k"))
	first := waits(t, slow, request("k"))
	slow.net.sever()
	deadline := reservedUntil(t, w, first)
	second := waits(t, b, request("k"))
	release(t, a, g)
	for tries := 0; ; tries++ {
		for _, mode := range []func(lock.Request) lock.Request{shared, func(r lock.Request) lock.Request { return r }} {
			g, err := a.Acquire(bounded(t), mode(request("k")))
			if err == nil { // behind the second's, maybe, but never before the deadline
				require.Greater(t, g.Token, deadline, "a try overtook it")
				release(t, a, g)
				continue
			}
			require.ErrorIs(t, err, lock.ErrHeld)
		}
		select {
		case <-second.done:
		case <-time.After(50 * time.Millisecond):
			continue
		}
		require.Greater(t, second.granted().Token, deadline, "the next in line overtook it")
		first.cancel()
		if tries == 0 {
			t.Skip("too slow a machine: the heartbeat had ended before the first try")
		}
		return
	}
}

// reservedUntil is the end of the heartbeat of w, as the server knows it, as a token of that time.
func reservedUntil(tb testing.TB, w world, waits *waiter) lock.Token {
	tb.Helper()
	entry, err := w.rdb.HGet(bounded(tb), keysOf(w.prefix, waits.req.Key)["waiters"], waits.req.Owner).Result()
	require.NoError(tb, err)
	deadline, err := lock.ParseToken(entry[:13] + "000")
	require.NoError(tb, err)
	return deadline
}

// TestReservationAfterClaim: a grant that was waited for, with a line behind it. Processes
// that have never heard of the key neither overtake that line nor forget to wake it.
func TestReservationAfterClaim(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	a, b, c := w.open(t), w.open(t), w.open(t)
	g := acquire(t, a, request("k"))
	first, second, third := waits(t, b, request("k")), waits(t, c, request("k")), waits(t, b, request("k"))
	release(t, a, g)
	h := first.granted()
	heard := w.spy(t)
	heal := c.net.set(&c.net.deaf)
	release(t, w.open(t), h)
	require.Equal(t, []string{"wake " + second.req.Owner}, heard(), "the next in line is woken")
	for range 3 {
		refused(t, w.open(t), request("k"))
	}
	heal()
	next := second.granted()
	require.Greater(t, next.Token, h.Token)
	release(t, w.open(t), next)
	require.Greater(t, third.granted().Token, next.Token)
}

// TestReservationAfterExpiry: the holder's record is gone, and the first in line has not heard of it.
// A process that has never heard of the key does not overtake it.
func TestReservationAfterExpiry(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, slow, newcomer := w.open(t), w.open(t), w.open(t)
	acquire(t, a, request("k"))
	first := waits(t, slow, request("k"))
	slow.net.sever()
	deadline := reservedUntil(t, w, first)
	require.NoError(t, w.rdb.Del(bounded(t), keysOf(w.prefix, "k")["record"]).Err())
	g, err := newcomer.Acquire(bounded(t), request("k"))
	first.cancel()
	if err == nil {
		require.Greater(t, g.Token, deadline, "it was overtaken")
		t.Skip("too slow a machine: the heartbeat had ended before the try")
	}
	require.ErrorIs(t, err, lock.ErrHeld)
}

// TestReservationForTry: the same without anybody behind: a try takes over.
func TestReservationForTry(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, dead := w.open(t), w.open(t)
	g := acquire(t, a, request("k"))
	first := waits(t, dead, lasting(request("k"), time.Second))
	dead.net.sever()
	first.cancel()
	release(t, a, g)
	eventually(t, "the end of the reservation", func() bool {
		h, err := a.Acquire(bounded(t), request("k"))
		return err == nil && h.Token > g.Token
	})
}

// TestReadersGoneLineStays: the moment at which the last reader's time is over and its
// record is still there. Whoever is not next in line is refused, by an answer, not an error.
func TestReadersGoneLineStays(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.open(t), w.open(t)
	acquire(t, a, shared(request("k")))
	first := waits(t, b, lasting(request("k"), time.Minute))
	require.NoError(t, w.rdb.Del(bounded(t), keysOf(w.prefix, "k")["readers"], keysOf(w.prefix, "k")["info"]).Err())
	refused(t, a, request("k"))
	first.granted()
}

// TestExpiryWithWaiters: the holder dies, and the line moves on by itself, in order.
func TestExpiryWithWaiters(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		a, b, c := w.open(t), w.open(t), w.open(t)
		key := strings.ReplaceAll(t.Name(), "/", " ")
		g := acquire(t, a, mode(request(key)))
		first, second := waits(t, b, request(key)), waits(t, c, request(key))
		g.TTL = time.Second
		g = renew(t, a, g)
		a.net.sever()
		h := first.granted()
		require.False(t, first.at.Before(g.Start.Add(g.TTL)), "two holders")
		require.Greater(t, h.Token, g.Token)
		second.still()
		release(t, b, h)
		require.Greater(t, second.granted().Token, h.Token)
	})
}

// TestLongLine: hundreds of waiters over three processes are served in the order of their
// arrival, with rising tokens.
func TestLongLine(t *testing.T) {
	t.Parallel()
	const n = 300
	w := ownWorld(t)
	ls := []*process{w.open(t), w.open(t), w.open(t)}
	g := acquire(t, ls[0], lasting(request("k"), time.Hour))
	var line []*waiter
	for i := range n {
		line = append(line, waits(t, ls[i*i%3], request("k")))
	}
	release(t, ls[0], g)
	last := g.Token
	for i, grant := range inOrderOfGrant(t, line) {
		require.Equal(t, line[i].req.Owner, grant.Owner, "place %d", i)
		require.Greater(t, grant.Token, last)
		last = grant.Token
	}
	rec := inspect(t, ls[0], "k")
	require.Empty(t, rec.Holders)
	require.Empty(t, rec.Waiters)
}

// TestCrowd: thousands of one process wait for one key.
func TestCrowd(t *testing.T) {
	storetest.Crowd(t, ownWorld(t).open(t), 3000)
}
