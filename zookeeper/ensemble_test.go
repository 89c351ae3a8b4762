package zookeeper_test

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/zookeeper"
)

// ensembleWorld is on an ensemble of the test's own.
func ensembleWorld(t *testing.T) (world, *testserver.ZooKeeperEnsemble) {
	t.Helper()
	takeTurns(t)
	e := testserver.NewZooKeeperEnsemble(t, "syncLimit=150") // a follower's patience with its leader: 30 s
	w := newWorld(t, e.Leader())
	w.timeout = holderTimeout // less than that, also where all is slow
	return w, e
}

// TestFollowerCutOff: the holder's server is cut off from its leader and does not know it.
// It goes on answering pings and reads, while the leader ends the session. The lease must
// be over before another has the lock, since only a quorum can renew it.
func TestFollowerCutOff(t *testing.T) {
	t.Parallel()
	w, e := ensembleWorld(t)
	follower := e.Followers()[0]
	holder, rival := w.openAt(t, follower.Addr()), w.open(t)
	bystander := dial(t, long, follower.Addr())
	for _, when := range []time.Duration{0, holderTimeout / 6} { // since a renewal: before or after the next ping
		ctx := storetest.Bounded(t)
		c := lock.New(holder, lock.WithTTL(time.Minute))
		lease, err := c.Lock(ctx, "k")
		require.NoError(t, err)
		time.Sleep(holderTimeout) // the session lives by pings that the leader is told of
		require.NoError(t, lease.Renew(ctx))
		ended := make(chan time.Time, 1)
		context.AfterFunc(lease.Context(), func() { ended <- time.Now() })
		time.Sleep(when)

		heal := e.CutOff(follower)
		session := bystander.SessionID()
		next := storetest.Await(t, rival, storetest.Request("k"))
		taken := time.Now()
		stop := keep(t, rival, next)
		require.Equal(t, zk.StateHasSession, bystander.State(), "it gets no answers to its pings")
		require.Equal(t, session, bystander.SessionID())
		require.Len(t, names(t, bystander, w.root+"/k"), 1, "the line of the past")
		select {
		case at := <-ended:
			require.True(t, at.Before(taken))
		default:
			require.FailNow(t, "another has the lock, and the lease goes on", "%v left", time.Until(lease.Deadline()))
		}
		require.Equal(t, lock.ReasonUnreachable, storetest.Lost(t, lease.Err()))
		require.Greater(t, next.Token, lease.Token())

		heal()
		e.AwaitQuorum()
		storetest.Eventually(t, "the holder to be back", func() bool {
			_, err := holder.Inspect(ctx, "k")
			return err == nil
		})
		stop()
		storetest.Release(t, rival, next)
		require.NoError(t, c.Close(ctx))
	}
}

// TestFollowerTellsLate: a write by way of a follower does not tell the leader that the
// session lives; only what the follower says twice a tick does. If it is cut off right after
// a renewal, the session's time runs since the last of the client's pings before that. The
// grant must be over by then, at whatever point between two pings it was renewed.
func TestFollowerTellsLate(t *testing.T) {
	t.Parallel()
	w, e := ensembleWorld(t)
	follower := e.Followers()[0]
	holder, rival := w.openAt(t, follower.Addr()), w.open(t)
	const pings = holderTimeout / 3
	for i := range 3 {
		g := storetest.Await(t, holder, storetest.Request("k"))
		time.Sleep(time.Duration(1+i) * pings / 4) // no other request since
		g = storetest.Renew(t, holder, g)
		heal := e.CutOff(follower)
		next := storetest.Await(t, rival, storetest.Request("k"))
		left := time.Until(g.Start.Add(g.TTL))
		stop := keep(t, rival, next)
		require.LessOrEqual(t, left, time.Duration(0), "another has the lock while the grant goes on")
		heal()
		e.AwaitQuorum()
		stop()
		storetest.Release(t, rival, next)
	}
}

// TestFollowerStale: who waits by way of a follower that is cut off sees a line of the past, in
// which it is behind who has left, or in front though its own node has gone. It is not granted a
// lock by that.
func TestFollowerStale(t *testing.T) {
	t.Parallel()
	w, e := ensembleWorld(t)
	follower := e.Followers()[0]
	a, witness := w.open(t), dial(t, long, follower.Addr())
	for _, inFront := range []bool{false, true} {
		b := w.openAt(t, follower.Addr())
		first := storetest.Acquire(t, a, storetest.Request("k"))
		waiting := storetest.Waits(t, b, storetest.Request("k"))
		var heal func()
		if inFront {
			thaw := b.proxy.Freeze()
			storetest.Release(t, a, first)
			storetest.Eventually(t, "the follower to know", func() bool { return len(names(t, witness, w.root+"/k")) == 1 })
			heal = e.CutOff(follower)
			thaw() // and b looks
		} else {
			heal = e.CutOff(follower)
			storetest.Release(t, a, first)
		}
		// b's node goes with its session, although b's server has not heard of it.
		next := storetest.Await(t, a, storetest.Request("k"))
		stop := keep(t, a, next)
		select {
		case <-waiting.Done:
			require.FailNow(t, "granted by a server that is cut off", "%v %v", waiting.Grant, waiting.Err)
		default:
		}
		heal()
		e.AwaitQuorum()
		stop()
		storetest.Release(t, a, next)
		g := waiting.Granted(t)
		require.Greater(t, g.Token, next.Token)
		storetest.Release(t, b, g)
	}
}

// TestLeaderKilled: the leader dies while a lease is held and hundreds wait. The lease
// lives on, the line goes on, no token falls, and nobody holds beside another.
func TestLeaderKilled(t *testing.T) {
	t.Parallel()
	w, e := ensembleWorld(t)
	w.timeout = 2 * long // an election is to take less than a lease
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	var clients []*lock.Client
	for range 4 {
		dialer := zookeeper.NewDialer(w.timeout, new(gate).dial)
		conn := dialBy(t, dialer.Dial, w.timeout, e.Addrs()...)
		l := zookeeper.New(conn, zookeeper.WithRoot(w.root), zookeeper.WithTick(tick), zookeeper.WithDialer(dialer))
		t.Cleanup(func() { require.NoError(t, l.Close()) })
		clients = append(clients, lock.New(l, lock.WithTTL(w.timeout)))
	}
	lease, err := clients[0].Lock(ctx, "k")
	require.NoError(t, err)

	const waiters = 200
	var inside atomic.Int32
	tokens, errs := make(chan lock.Token, waiters), make(chan error, waiters)
	for i := range waiters {
		go func() {
			errs <- clients[i%len(clients)].Do(ctx, "k", func(_ context.Context, l *lock.Lease) error {
				if inside.Add(1) != 1 {
					t.Error("two hold the lock")
				}
				tokens <- l.Token()
				inside.Add(-1)
				return nil
			})
		}()
	}
	storetest.Eventually(t, "the line", func() bool {
		rec, err := clients[1].Inspect(ctx, "k")
		return err == nil && rec.WaiterCount == waiters
	})
	leader := e.Leader()
	leader.Kill()
	storetest.Eventually(t, "a renewal on another server", func() bool { return lease.Renew(ctx) == nil || lease.Err() != nil })
	require.NoError(t, lease.Err())
	require.Empty(t, tokens)
	require.NoError(t, lease.Release(ctx))

	seen := []lock.Token{lease.Token()}
	for range waiters {
		require.NoError(t, <-errs)
		seen = append(seen, <-tokens)
	}
	require.True(t, slices.IsSorted(seen), "%v", seen)
	require.Len(t, slices.Compact(seen), waiters+1)
	for _, c := range clients {
		require.NoError(t, c.Close(ctx))
	}
}
