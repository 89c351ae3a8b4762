package etcd_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/internal/storekit"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

// TestReleaseLooksAtTheToken: and so does Renew, although the owner is the same. Nor is the lock
// handed over to who waits for it in this process.
func TestReleaseLooksAtTheToken(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	g := storetest.Acquire(t, l, storetest.Request("k"))
	w := storetest.Waits(t, l, storetest.Request("k"))
	wrong := g
	wrong.Token--
	for _, p := range []*process{l, other} {
		storetest.Lost(t, p.Release(storetest.Bounded(t), wrong))
		_, err := p.Renew(storetest.Bounded(t), wrong)
		storetest.Lost(t, err)
		storetest.Holds(t, other, g)
	}
	storetest.Release(t, l, storetest.Renew(t, l, g))
	storetest.Release(t, l, w.Granted(t))
}

// TestReleaseBesideAnotherTry: an owner that holds the lock stands in line for it in another mode as well.
// Its release is of the grant that has the token, though the try is newer.
func TestReleaseBesideAnotherTry(t *testing.T) {
	t.Parallel()
	l, _, _ := pair(t)
	g := storetest.Acquire(t, l, storetest.Shared(storetest.Request("k")))
	req := storetest.Request("k")
	req.Owner = g.Owner
	w := storetest.Waits(t, l, req)
	storetest.Release(t, l, g)
	storetest.Release(t, l, w.Granted(t))
}

// TestReleaseOfAnEarlierGrant: likewise if that try has failed, or is under way. The release is no loss, of
// which a watch would tell.
func TestReleaseOfAnEarlierGrant(t *testing.T) {
	t.Parallel()
	for _, waits := range []bool{false, true} {
		l, other, _ := pair(t)
		lost, after := make(chan lock.LostReason, 1), make(chan lock.LostReason, 1)
		req, beside := storetest.Shared(storetest.Request("k")), storetest.Request("k2")
		req.Lost = func(r lock.LostReason) { lost <- r }
		beside.Lost = func(r lock.LostReason) { after <- r }
		g, next := storetest.Acquire(t, l, req), storetest.Acquire(t, l, beside)
		time.Sleep(3 * etcd.WatchDelay)
		again := lock.Request{Key: "k", Owner: g.Owner, TTL: time.Minute}
		if waits {
			w := storetest.Waits(t, l, again)
			defer func() { storetest.Release(t, l, w.Granted(t)) }()
		} else {
			storetest.Refused(t, l, again)
		}
		storetest.Release(t, l, g)
		require.NoError(t, other.ForceRelease(storetest.Bounded(t), next.Key, next.Owner))
		require.Equal(t, lock.ReasonForced, told(t, after)) // the same watch, in order
		require.Empty(t, lost)
	}
}

// TestReleaseOfForced: who releases before the news of a forced release has come is told of it,
// also if the release would have handed the lock over.
func TestReleaseOfForced(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	l.deaf.set(true)
	g := storetest.Acquire(t, l, storetest.Request("alone"))
	require.NoError(t, other.ForceRelease(storetest.Bounded(t), g.Key, g.Owner))
	storetest.Lost(t, l.Release(storetest.Bounded(t), g))

	g = storetest.Acquire(t, l, storetest.Request("k"))
	w := storetest.Waits(t, l, storetest.Request("k"))
	require.NoError(t, other.ForceRelease(storetest.Bounded(t), g.Key, g.Owner))
	storetest.Lost(t, l.Release(storetest.Bounded(t), g))
	storetest.Release(t, l, w.Granted(t))
}

// TestReleaseIsSentAgain: the reply to a release gets lost. The next finds nothing to release,
// and that is no loss, also not of what another Locker has acquired.
func TestReleaseIsSentAgain(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	for _, by := range []*process{l, other} {
		for _, renewed := range []bool{false, true} {
			g := storetest.Acquire(t, by, storetest.Request("k"))
			if renewed {
				g = storetest.Renew(t, l, g)
			}
			hit := l.kv.once(fate{mute: true}, deletes)
			storetest.Release(t, l, g)
			reached(t, hit)
			storetest.Release(t, other, storetest.Acquire(t, other, storetest.Request("k")))
		}
	}
}

// TestNoLossAfterRelease: a release fails, and the grant ends by itself. Its holder is not told.
func TestNoLossAfterRelease(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	lost := make(chan lock.LostReason, 1)
	req := storetest.Lasting(storetest.Request("k"), 6*time.Second)
	req.Lost = func(r lock.LostReason) { lost <- r }
	g := storetest.Acquire(t, l, req)
	l.kv.set(func(t txn) fate { return fate{late: deletes(t)} })
	require.ErrorIs(t, l.Release(storetest.Bounded(t), g), errCut)
	l.kv.set(nil)
	storetest.Eventually(t, "the grant to end", func() bool {
		return len(storetest.Inspect(t, other, "k").Holders) == 0
	})
	require.Empty(t, lost)
}

// TestNoLossBesideRelease: the watch brings the deletion before the release has its reply. Its
// holder is not told.
func TestNoLossBesideRelease(t *testing.T) {
	t.Parallel()
	lost := make(chan lock.LostReason, 1)
	_, _, reply, released := releaseUnheard(t, func(r lock.LostReason) { lost <- r })
	close(reply)
	require.NoError(t, storetest.Receive(t, released))
	require.Empty(t, lost)
}

// releaseUnheard releases a grant, and returns when the release has taken effect and the watch has brought
// the deletion, but the release has no reply yet.
func releaseUnheard(t *testing.T, lost func(lock.LostReason)) (l *process, g lock.Grant, reply chan<- struct{}, released <-chan error) {
	t.Helper()
	l, other, _ := pair(t)
	after := make(chan lock.LostReason, 1)
	req, beside := storetest.Request("k"), storetest.Request("k2")
	req.Lost = lost
	beside.Lost = func(r lock.LostReason) { after <- r }
	g, next := storetest.Acquire(t, l, req), storetest.Acquire(t, l, beside)
	time.Sleep(3 * etcd.WatchDelay)
	back, done := make(chan struct{}), make(chan error, 1)
	l.kv.every(fate{back: back}, deletes)
	ctx := storetest.Bounded(t)
	go func() { done <- l.Release(ctx, g) }()
	storetest.Eventually(t, "the release to take effect", func() bool {
		return len(storetest.Inspect(t, other, "k").Holders) == 0
	})
	require.NoError(t, other.ForceRelease(storetest.Bounded(t), next.Key, next.Owner))
	require.Equal(t, lock.ReasonForced, told(t, after)) // the same watch, in order
	return l, g, back, done
}

// TestReleaseIsNoForce: likewise, and the release is asked for again meanwhile, as by a client of the lock service
// whose first request was not answered. That the grant is gone does not mean that it was forced.
func TestReleaseIsNoForce(t *testing.T) {
	t.Parallel()
	l, g, reply, released := releaseUnheard(t, func(lock.LostReason) {})
	l.kv.set(nil)
	if err := l.Release(storetest.Bounded(t), g); err != nil { // else a busy machine has sent it twice
		require.Zero(t, storetest.Lost(t, err))
	}
	close(reply)
	require.NoError(t, storetest.Receive(t, released))
}

// TestReleaseInDoubt: a copy of the request that was granted is yet to arrive. The release leaves
// what refuses it, although somebody in this process waits to have the lock handed over.
func TestReleaseInDoubt(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	hit := l.kv.once(fate{late: true}, entersLine(l, "k"))
	g := storetest.Acquire(t, l, storetest.Request("k"))
	reached(t, hit)
	w := storetest.Waits(t, l, storetest.Request("k"))
	storetest.Release(t, l, g)
	gate := make(chan struct{})
	defer close(gate)
	l.kv.every(fate{gate: gate}, func(t txn) bool { // not later
		return slices.ContainsFunc(t.puts, func(name string) bool {
			own := l.prefix + "k/d" + w.Owner // a busy machine may have sent its request twice, too
			return strings.HasPrefix(name, l.prefix+"k/d") && name != own
		})
	})
	storetest.Release(t, l, w.Granted(t))
	l.kv.deliver(t)
	require.Empty(t, storetest.Inspect(t, other, "k").Holders, "a ghost")
}

// TestHandoverInDoubt: likewise for who lined up in doubt, and was handed the lock.
func TestHandoverInDoubt(t *testing.T) {
	t.Parallel()
	storetest.Eventually(t, "a handover", func() bool { // a busy machine may be too slow to make one
		l, other, cli := pair(t)
		g := storetest.Acquire(t, l, storetest.Request("k"))
		hit := l.kv.once(fate{late: true}, entersLine(l, "k"))
		w := storetest.Waits(t, l, storetest.Request("k"))
		reached(t, hit)
		held := string(keyOf(t, cli, l.prefix, g.Owner).Key)
		handed := l.kv.every(fate{}, func(t txn) bool { return puts(t) && slices.Contains(t.deletes, held) })
		storetest.Release(t, l, g)
		storetest.Release(t, l, w.Granted(t))
		l.kv.deliver(t)
		require.Empty(t, storetest.Inspect(t, other, "k").Holders, "a ghost")
		select {
		case <-handed:
			return true
		default:
			return false
		}
	})
}

// TestHandoverOfAnEndingGrant: a release that hands over asks again no sooner than others, also if
// little or nothing is left of the TTL that its caller knows of.
func TestHandoverOfAnEndingGrant(t *testing.T) {
	t.Parallel()
	l, _, _ := pair(t)
	g := storetest.Acquire(t, l, storetest.Request("k"))
	w := storetest.Waits(t, l, storetest.Request("k"))
	gate, third, sent := make(chan struct{}), make(chan struct{}), 0
	l.kv.set(func(t txn) fate { // under a mutex
		if !deletes(t) {
			return fate{}
		}
		if sent++; sent == 3 {
			close(third)
		}
		return fate{gate: gate}
	})
	released := make(chan error, 1)
	ctx, begun := storetest.Bounded(t), time.Now()
	g.TTL = 0
	go func() { released <- l.Release(ctx, g) }()
	reached(t, third)
	require.Greater(t, time.Since(begun), 2*time.Second) // of a quarter of 5 s each
	close(gate)
	require.NoError(t, storetest.Receive(t, released))
	storetest.Release(t, l, w.Granted(t))
}

// TestForcedInDoubt: a grant is forced, and a late copy of its request takes the free lock before the
// grant is pruned. The prune takes that away, too.
func TestForcedInDoubt(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	lost := make(chan lock.LostReason, 1)
	req := storetest.Request("k")
	req.Lost = func(r lock.LostReason) { lost <- r }
	hit := l.kv.once(fate{late: true}, entersLine(l, "k"))
	g := storetest.Acquire(t, l, req)
	reached(t, hit)
	name, gate := string(keyOf(t, cli, l.prefix, g.Owner).Key), make(chan struct{})
	prunes := l.kv.every(fate{gate: gate}, func(t txn) bool { return slices.Contains(t.deletes, name) })
	require.NoError(t, other.ForceRelease(storetest.Bounded(t), "k", g.Owner))
	require.Equal(t, lock.ReasonForced, told(t, lost))
	reached(t, prunes)
	l.kv.deliver(t)
	require.Len(t, storetest.Inspect(t, other, "k").Holders, 1)
	close(gate)
	storetest.Eventually(t, "the prune", func() bool { return len(storetest.Inspect(t, other, "k").Holders) == 0 })
}

// TestTombstonesLive: tombstones share an etcd lease, which was granted for the first. Those that come
// later live for as long as a request may be on its way, too.
func TestTombstonesLive(t *testing.T) {
	t.Parallel()
	l, _, cli := pair(t)
	const older = 85 * time.Second
	ages := make(map[int64]time.Duration) // by lease: for the server, no time has passed
	for range 6 {
		hit := l.kv.once(fate{late: true}, entersLine(l, "k"))
		g := storetest.Acquire(t, l, storetest.Request("k"))
		reached(t, hit)
		storetest.Release(t, l, g)
		tomb, err := cli.Get(storetest.Bounded(t), l.prefix+"k/d"+g.Owner)
		require.NoError(t, err)
		id := tomb.Kvs[0].Lease
		left, err := cli.TimeToLive(storetest.Bounded(t), clientv3.LeaseID(id))
		require.NoError(t, err)
		require.Greater(t, time.Duration(left.TTL)*time.Second-ages[id], storekit.UndoLife-10*time.Second)
		ages[id] += 0
		l.Suspend(older)
		for id := range ages {
			ages[id] += older
		}
	}
	require.Len(t, ages, 2, "they share")
}

// TestTombstonesEnd: tombstones are under an etcd lease that no grant is under, whatever its TTL: holders
// would keep it alive.
func TestTombstonesEnd(t *testing.T) {
	t.Parallel()
	l, _, cli := pair(t, longest)
	hit := l.kv.once(fate{late: true}, entersLine(l, "k"))
	g := storetest.Acquire(t, l, storetest.Request("k"))
	reached(t, hit)
	storetest.Release(t, l, g)
	tomb, err := cli.Get(storetest.Bounded(t), l.prefix+"k/d"+g.Owner)
	require.NoError(t, err)
	beside := storetest.Acquire(t, l, storetest.Lasting(storetest.Request("beside"), 4*storekit.UndoLife))
	require.NotEqual(t, clientv3.LeaseID(tomb.Kvs[0].Lease), leaseOf(t, cli, l.prefix, beside.Owner))
}

// TestUndoneOwner: what comes late of an owner that has been undone is told so, and not that another has
// the lock, which is free.
func TestUndoneOwner(t *testing.T) {
	t.Parallel()
	l, _, cli := pair(t)
	req := storetest.Request("k")
	_, err := cli.Put(storetest.Bounded(t), l.prefix+"k/d"+req.Owner, "") // as an undo in doubt leaves it
	require.NoError(t, err)
	for _, req.Wait = range []bool{false, true} {
		_, err := l.Acquire(storetest.Bounded(t), req)
		require.ErrorIs(t, err, lock.ErrReleased)
		require.NotErrorIs(t, err, lock.ErrHeld)
	}
}
