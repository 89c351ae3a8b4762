package etcd_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/internal/storekit"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// reached waits until the test has come to where it wants to be.
func reached(t *testing.T, hit <-chan struct{}) {
	t.Helper()
	select {
	case <-hit:
	case <-time.After(storetest.Patience):
		require.FailNow(t, "no such transaction is sent")
	}
}

// TestNewsOfAnEarlierEntry: a watch that is behind brings the deletion of an entry whose name is
// in use again. The new grant is not lost by that.
func TestNewsOfAnEarlierEntry(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	lost := make(chan lock.LostReason, 2)
	req := func() lock.Request {
		req := storetest.Request("k")
		req.Lost = func(r lock.LostReason) { lost <- r }
		return req
	}
	watched := func() { time.Sleep(5 * etcd.WatchDelay) }
	g := storetest.Acquire(t, l, req())
	name := keyOf(t, cli, l.prefix, g.Owner).Key
	watched()
	heal := l.deaf.delay()
	storetest.Release(t, l, g)
	g = storetest.Acquire(t, l, req())
	require.Equal(t, name, keyOf(t, cli, l.prefix, g.Owner).Key)
	watched()
	heal()
	watched()
	require.Empty(t, lost)
	storetest.Holds(t, other, storetest.Renew(t, l, g))

	require.NoError(t, other.ForceRelease(storetest.Bounded(t), "k", g.Owner)) // that news it must get
	require.Equal(t, lock.ReasonForced, told(t, lost))
}

// TestPlaceUnderAnotherLease: the reply to one who lined up gets lost, and meanwhile there is a
// new etcd lease. The grant is to be under that one, which is kept alive.
func TestPlaceUnderAnotherLease(t *testing.T) {
	t.Parallel()
	for _, ttl := range []time.Duration{5 * time.Second, time.Minute} { // waits under the same lease, or not
		l, other, cli := pair(t)
		g := storetest.Acquire(t, other, storetest.Request("k"))
		storetest.Release(t, l, storetest.Acquire(t, l, storetest.Lasting(storetest.Request("warm"), ttl)))
		sent := 0
		l.kv.set(func(t txn) fate { // under a mutex
			l.ForgetLeases()
			if puts(t) {
				sent++
			}
			return fate{mute: puts(t) && sent <= etcd.Breaks}
		})
		w := storetest.Waits(t, l, storetest.Lasting(storetest.Request("k"), ttl))
		l.kv.set(nil)
		require.Greater(t, sent, etcd.Breaks)
		storetest.Release(t, other, g)
		g = w.Granted(t)
		require.Equal(t, revisionOf(t, cli, l.prefix, g.Owner), int64(g.Token))
		again := storetest.Acquire(t, l, storetest.Lasting(storetest.Request("beside"), ttl))
		require.Equal(t, leaseOf(t, cli, l.prefix, again.Owner), leaseOf(t, cli, l.prefix, g.Owner))
	}
}

// TestGrantUnderAnotherLease: the same for one who need not wait, and finds that it holds the
// lock.
func TestGrantUnderAnotherLease(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		l, _, cli := pair(t)
		if shared {
			for range 20 { // more than a refused try is told of
				storetest.Acquire(t, l, storetest.Shared(storetest.Request("k")))
			}
		}
		sent := l.kv.once(fate{mute: true, silent: true}, puts)
		req := storetest.Request("k")
		req.Shared = shared
		g := make(chan lock.Grant, 1)
		go func() { g <- storetest.Acquire(t, l, req) }()
		reached(t, sent)
		l.ForgetLeases()
		again := storetest.Acquire(t, l, storetest.Request("beside"))
		granted := <-g
		require.Equal(t, revisionOf(t, cli, l.prefix, req.Owner), int64(granted.Token))
		require.Equal(t, leaseOf(t, cli, l.prefix, again.Owner), leaseOf(t, cli, l.prefix, req.Owner))
	}
}

// TestEntryThatEndsBeforeItsClaim: what one holds by a request whose reply was lost expires before
// a copy's reply is back. The lock is free then, and not held by oneself.
func TestEntryThatEndsBeforeItsClaim(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("warm")))
	sent, claimed, gate := false, make(chan struct{}), make(chan struct{})
	claims := sync.OnceFunc(func() { close(claimed) })
	l.kv.set(func(t txn) fate { // under a mutex
		switch {
		case deletes(t):
			claims()
			return fate{gate: gate}
		case sent || !puts(t):
			return fate{}
		}
		sent = true
		return fate{mute: true, silent: true}
	})
	req := storetest.Request("k")
	granted := make(chan lock.Grant, 1)
	go func() { granted <- storetest.Acquire(t, l, req) }()
	reached(t, claimed)
	revoke(t, cli, l.prefix, req.Owner)
	close(gate)
	storetest.Holds(t, other, storetest.Receive(t, granted))
}

// TestLateClaim: a claim that was given up takes effect after the next, which was granted the
// lock under a newer lease. It must not take the entry back to the older, which ends.
func TestLateClaim(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	g := storetest.Acquire(t, other, storetest.Request("k"))
	w := storetest.Waits(t, l, storetest.Request("k"))
	sent := l.kv.once(fate{late: true}, puts)
	storetest.Release(t, other, g)
	reached(t, sent)
	l.ForgetLeases()
	g = w.Granted(t)
	before := keyOf(t, cli, l.prefix, g.Owner)
	l.kv.deliver(t)
	require.Equal(t, before, keyOf(t, cli, l.prefix, g.Owner))
}

// TestLateAdoption: likewise for a renewal by another process than that which acquired.
func TestLateAdoption(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	g := storetest.Acquire(t, other, storetest.Request("k"))
	sent := l.kv.once(fate{late: true, silent: true}, puts)
	ctx, cancel := context.WithCancel(storetest.Bounded(t))
	failed := make(chan error, 1)
	go func() { _, err := l.Renew(ctx, g); failed <- err }()
	reached(t, sent)
	cancel()
	require.ErrorIs(t, storetest.Receive(t, failed), context.Canceled)
	l.ForgetLeases()
	g = storetest.Renew(t, l, g)
	before := keyOf(t, cli, l.prefix, g.Owner)
	l.kv.deliver(t)
	require.Equal(t, before, keyOf(t, cli, l.prefix, g.Owner))
}

// TestLateUndo: an undo, or a release, arrives when the name of its entry is another's.
func TestLateUndo(t *testing.T) {
	t.Parallel()
	undos := []bool{true, false}
	for len(undos) > 0 {
		undo := undos[0]
		l, other, cli := pair(t)
		g := storetest.Acquire(t, l, storetest.Request("k"))
		entry := keyOf(t, cli, l.prefix, g.Owner).Key
		gate := make(chan struct{})
		slow := l.kv.once(fate{gate: gate}, deletes)
		ended := make(chan error, 1)
		if undo {
			g = lock.Grant{Key: "k", Owner: g.Owner}
		}
		go func(g lock.Grant) { ended <- l.Release(storetest.Bounded(t), g) }(g)
		reached(t, slow)
		storetest.Release(t, l, g)
		g = storetest.Acquire(t, l, storetest.Request("k"))
		met := bytes.Equal(entry, keyOf(t, cli, l.prefix, g.Owner).Key) // not if a busy machine sent an acquire twice
		close(gate)
		if err := <-ended; undo || err != nil && !isLost(err) {
			require.NoError(t, err)
		}
		storetest.Holds(t, other, g)
		if met {
			undos = undos[1:]
		}
	}
}

// TestLateUndoInDoubt: an undo of what may yet come deletes whatever has the name. A copy of it
// arrives late, and must meet no other's entry.
func TestLateUndoInDoubt(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("warm")))
	req := storetest.Request("k")
	giveUp(t, l, req, fate{mute: true, silent: true})
	hit := l.kv.once(fate{late: true}, deletes)
	storetest.Release(t, l, lock.Grant{Key: "k", Owner: req.Owner})
	reached(t, hit)
	g := storetest.Acquire(t, l, storetest.Request("k"))
	l.kv.deliver(t)
	storetest.Holds(t, other, g)
}

// giveUp cancels the Acquire of req when its request has met f.
func giveUp(t *testing.T, l *process, req lock.Request, f fate) {
	t.Helper()
	sent := l.kv.once(f, entersLine(l, req.Key))
	ctx, cancel := context.WithCancel(storetest.Bounded(t))
	failed := make(chan error, 1)
	go func() { _, err := l.Acquire(ctx, req); failed <- err }()
	reached(t, sent)
	cancel()
	require.ErrorIs(t, storetest.Receive(t, failed), context.Canceled)
}

// entersLine is like a transaction that would make an exclusive entry of key.
func entersLine(l *process, key string) func(txn) bool {
	return func(t txn) bool {
		return slices.ContainsFunc(t.puts, func(name string) bool { return strings.HasPrefix(name, l.prefix+key+"/x") })
	}
}

// TestLatePlace: a request to line up is given up, and takes effect after its undo. It is refused.
func TestLatePlace(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	g := storetest.Acquire(t, other, storetest.Request("k"))
	storetest.Acquire(t, other, storetest.Request("beside"))
	storetest.Waits(t, l, storetest.Request("beside")) // now there is an etcd lease to wait under
	req := storetest.Request("k")
	req.Wait = true
	giveUp(t, l, req, fate{late: true, silent: true})
	storetest.Release(t, l, lock.Grant{Key: "k", Owner: req.Owner})
	l.kv.deliver(t)
	require.Empty(t, storetest.Inspect(t, other, "k").Waiters, "a ghost")
	storetest.Holds(t, other, g)
}

// TestPlaceGivenUpUnanswered: a request to line up takes effect, and is given up before that is known.
// Its undo takes the tail away as well: a try is refused while there is one.
func TestPlaceGivenUpUnanswered(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	g := storetest.Acquire(t, other, storetest.Request("k"))
	storetest.Acquire(t, other, storetest.Request("beside"))
	storetest.Waits(t, l, storetest.Request("beside")) // it keeps the etcd lease alive that all its waits are under
	l.kv.once(fate{mute: true, silent: true}, entersLine(l, "k"))
	w := storetest.Begin(t, l, storetest.Request("k"))
	storetest.Eventually(t, "a place in line", func() bool { return len(storetest.Inspect(t, other, "k").Waiters) == 1 })
	w.Cancel()
	w.End(t)
	storetest.Release(t, l, lock.Grant{Key: "k", Owner: w.Owner})
	storetest.Release(t, other, g)
	storetest.Release(t, other, storetest.Acquire(t, other, storetest.Request("k")))
}

// TestTryInDoubtBeforeAWait: a try is refused, of which an earlier copy is on its way yet, and its owner goes
// on as the lock service does, which stands in line for it. What refuses the copy does not refuse the wait.
func TestTryInDoubtBeforeAWait(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		l, other, _ := pair(t)
		g := storetest.Acquire(t, other, storetest.Request("k"))
		req := storetest.Request("k")
		req.Shared = shared
		hit := l.kv.once(fate{late: true}, puts)
		_, err := l.Acquire(storekit.ReuseOwner(storetest.Bounded(t)), req)
		require.ErrorIs(t, err, lock.ErrHeld)
		reached(t, hit)
		storetest.Eventually(t, "the prune", func() bool { return l.Unpruned() == 0 })
		w := storetest.Waits(t, l, req)
		storetest.Release(t, other, g)
		storetest.Release(t, l, w.Granted(t))
		l.kv.deliver(t)
		require.Empty(t, storetest.Inspect(t, other, "k").Holders, "a ghost")
	}
}

// TestTailOfADeletedPlace: an operator deletes the key of the last in line and leaves the tail, and then
// that one gives up, before it knows or while it cannot line up again. It takes the tail away.
func TestTailOfADeletedPlace(t *testing.T) {
	t.Parallel()
	for _, knows := range []bool{false, true} {
		l, other, cli := pair(t)
		l.deaf.set(true)
		g := storetest.Acquire(t, other, storetest.Request("k"))
		storetest.Acquire(t, other, storetest.Request("beside"))
		storetest.Waits(t, l, storetest.Request("beside")) // it keeps the etcd lease alive that all its waits are under
		w := storetest.Waits(t, l, storetest.Request("k"))
		l.grantBy(nowhere(t))
		l.ForgetLeases()
		_, err := cli.Delete(storetest.Bounded(t), string(keyOf(t, cli, l.prefix, w.Owner).Key))
		require.NoError(t, err)
		if knows {
			time.Sleep(2 * time.Second) // a recheck finds it
		}
		w.Cancel()
		w.End(t)
		storetest.Release(t, l, lock.Grant{Key: "k", Owner: w.Owner})
		storetest.Release(t, other, g)
		storetest.Release(t, other, storetest.Acquire(t, other, storetest.Request("k")))
	}
}

// TestUndoUnderWay: an undo overtakes its Acquire, which has not returned. What that has sent is
// refused.
func TestUndoUnderWay(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("warm")))
	gate := make(chan struct{})
	sent := l.kv.every(fate{gate: gate}, entersLine(l, "k"))
	req, failed, ctx := storetest.Request("k"), make(chan error, 1), storetest.Bounded(t)
	go func() { _, err := l.Acquire(ctx, req); failed <- err }()
	reached(t, sent)
	storetest.Release(t, l, lock.Grant{Key: "k", Owner: req.Owner})
	close(gate)
	require.Error(t, storetest.Receive(t, failed))
	require.Empty(t, storetest.Inspect(t, other, "k").Holders, "a ghost")
}

// TestUndoBeforeTheReply: an undo takes away what a request has brought about that is not answered yet. Its
// Acquire says so, and returns no grant that is gone.
func TestUndoBeforeTheReply(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("warm")))
	back := make(chan struct{})
	l.kv.every(fate{back: back}, entersLine(l, "k"))
	req, failed, ctx := storetest.Request("k"), make(chan error, 1), storetest.Bounded(t)
	go func() { _, err := l.Acquire(ctx, req); failed <- err }()
	storetest.Eventually(t, "the grant", func() bool { return len(storetest.Inspect(t, other, "k").Holders) == 1 })
	storetest.Release(t, l, lock.Grant{Key: "k", Owner: req.Owner})
	close(back)
	require.ErrorIs(t, storetest.Receive(t, failed), lock.ErrReleased)
	require.Empty(t, storetest.Inspect(t, other, "k").Holders)
}

// TestUndoneLinesUpNoMore: a waiter is undone, and finds that its place is gone before the undo has arrived.
// It does not line up again.
func TestUndoneLinesUpNoMore(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	g := storetest.Acquire(t, other, storetest.Request("k"))
	w := storetest.Waits(t, l, storetest.Request("k"))
	place, gate := string(keyOf(t, cli, l.prefix, w.Owner).Key), make(chan struct{})
	undoes := l.kv.every(fate{gate: gate}, func(t txn) bool { return slices.Contains(t.deletes, place) })
	undone, ctx := make(chan error, 1), storetest.Bounded(t)
	go func() { undone <- l.Release(ctx, lock.Grant{Key: "k", Owner: w.Owner}) }()
	reached(t, undoes)
	_, err := cli.Delete(storetest.Bounded(t), place)
	require.NoError(t, err)
	w.End(t)
	require.ErrorIs(t, w.Err, lock.ErrReleased)
	close(gate)
	require.NoError(t, storetest.Receive(t, undone))
	require.Empty(t, storetest.Inspect(t, other, "k").Waiters)
	storetest.Holds(t, other, g)
}

// TestUndoFails: who gave up, and whose undo did not arrive or was never sent, is not in the way for
// as long as others in the process keep their etcd lease alive.
func TestUndoFails(t *testing.T) {
	t.Parallel()
	for _, sent := range []bool{true, false} {
		l, other, _ := pair(t)
		g := storetest.Acquire(t, other, storetest.Request("k"))
		storetest.Acquire(t, other, storetest.Request("beside"))
		storetest.Waits(t, l, storetest.Request("beside"))
		w := storetest.Waits(t, l, storetest.Request("k"))
		w.Cancel()
		w.End(t)
		if sent {
			l.kv.set(func(t txn) fate { return fate{late: deletes(t)} })
			require.ErrorIs(t, l.Release(storetest.Bounded(t), lock.Grant{Key: "k", Owner: w.Owner}), errCut)
			l.kv.set(nil)
		}
		storetest.Eventually(t, "the place in line to be left", func() bool {
			return len(storetest.Inspect(t, other, "k").Waiters) == 0
		})
		storetest.Holds(t, other, g)
	}
}

// TestStaleHandover: a handover was for an entry that is gone by the time that its waiter hears
// of it, which is in line again, behind somebody who holds the lock.
func TestStaleHandover(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	g := storetest.Acquire(t, other, storetest.Request("k"))
	w := storetest.Waits(t, l, storetest.Request("k"))
	l.HandOver("k", w.Owner, g.Token-1)
	select {
	case <-w.Done:
		require.FailNow(t, "two hold it", "%v, %v", w.Grant, w.Err)
	case <-time.After(100 * time.Millisecond):
	}
	storetest.Release(t, other, g)
	require.Greater(t, w.Granted(t).Token, g.Token)
}

// TestForceReleaseOfTheTail: one is forced that does not know yet that it is the first in line, and
// nobody stands behind it. The lock is free then.
func TestForceReleaseOfTheTail(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	g := storetest.Acquire(t, other, storetest.Request("k"))
	w := storetest.Waits(t, l, storetest.Request("k"))
	gate := make(chan struct{})
	l.kv.every(fate{gate: gate}, func(txn) bool { return true })
	storetest.Release(t, other, g)
	require.NoError(t, other.ForceRelease(storetest.Bounded(t), "k", w.Owner))
	g = storetest.Acquire(t, other, storetest.Request("k"))
	close(gate)
	storetest.Release(t, other, g)
	w.Granted(t)
}

// TestReleaseBesideEntry: a release shares its transaction with one who lines up behind it.
// That one learns of it, though it looks no more by itself, also from a watch that is there.
func TestReleaseBesideEntry(t *testing.T) {
	t.Parallel()
	l, _, _ := pair(t, etcd.Gathering)
	for i := range 10 {
		key := fmt.Sprint("k", i)
		held := storetest.Request(key)
		if i%2 == 1 {
			held.Lost = func(lock.LostReason) {}
		}
		g := storetest.Acquire(t, l, held)
		if i%2 == 1 {
			time.Sleep(3 * etcd.WatchDelay)
		}
		gate, end := make(chan struct{}), make(chan struct{})
		inLane := l.kv.once(fate{gate: gate}, puts)
		go func() { storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("busy"))); close(end) }()
		reached(t, inLane)
		l.kv.set(nil)
		w := make(chan lock.Grant, 1)
		req := storetest.Request(key)
		req.Wait = true
		go func() { w <- storetest.Acquire(t, l, req) }()
		storetest.Eventually(t, "both to share a transaction", func() bool { return l.Gathered() == 1 })
		l.kv.set(func(t txn) fate {
			if reads(t) {
				return fate{gate: make(chan struct{})}
			}
			return fate{}
		})
		released := make(chan error, 1)
		go func() { released <- l.Release(storetest.Bounded(t), g) }()
		storetest.Eventually(t, "the release as well", func() bool { return l.Gathered() == 2 })
		close(gate)
		require.NoError(t, <-released)
		select {
		case g := <-w:
			l.kv.set(nil)
			storetest.Release(t, l, g)
		case <-time.After(storetest.Patience):
			require.FailNow(t, "it waits for an entry that is gone")
		}
		<-end
	}
}

// TestLeasesEndInTheQueue: in a crowd a request waits for longer than the etcd lease lives that it
// names, and for the next ones too. Who waits in line asks for another.
func TestLeasesEndInTheQueue(t *testing.T) {
	t.Parallel()
	server, prefix := testserver.Etcd(t), testserver.Prefix()
	l, other, admin := open(t, server, prefix), open(t, server, prefix), plain(t, server.Addr())
	g := storetest.Acquire(t, other, storetest.Request("k"))
	leases := func() map[clientv3.LeaseID]bool {
		all, err := admin.Leases(storetest.Bounded(t))
		require.NoError(t, err)
		ids := map[clientv3.LeaseID]bool{}
		for _, le := range all.Leases {
			ids[le.ID] = true
		}
		return ids
	}
	others, ended := leases(), 0
	l.kv.set(func(x txn) fate {
		if ended < 6 && puts(x) {
			ended++
			for id := range leases() {
				if !others[id] {
					_, err := admin.Revoke(storetest.Bounded(t), id)
					require.NoError(t, err)
				}
			}
		}
		return fate{}
	})
	w := storetest.Waits(t, l, storetest.Request("k"))
	require.Equal(t, 6, ended)
	storetest.Release(t, other, g)
	storetest.Release(t, l, w.Granted(t))
}
