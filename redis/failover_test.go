package redis_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest"
	"github.com/seed-215fdefa/lock/redis"
)

// openSentinel starts a process that finds its master through the sentinel.
func openSentinel(tb testing.TB, s *testserver.Sentinel, opts ...redis.Option) *process {
	tb.Helper()
	n := &network{conns: make(map[*wire]struct{})}
	rdb := goredis.NewFailoverClient(&goredis.FailoverOptions{
		MasterName: s.MasterName, SentinelAddrs: s.Addrs(), Dialer: n.dial,
	})
	p := &process{Locker: redis.New(rdb, opts...), rdb: rdb, net: n}
	tb.Cleanup(func() {
		_ = p.Close()
		_ = rdb.Close()
	})
	return p
}

// TestSuiteSentinel runs what a failover matters to. All else is the single server's, with
// another way to find its address.
func TestSuiteSentinel(t *testing.T) {
	t.Parallel()
	testserver.NeedServer(t)
	const same = "the same as on a single server, and each case here costs a topology of its own"
	skips := make(map[string]string)
	for _, group := range []string{
		"OneOwnerOneGrant", "RenewNeverCreates", "ReleaseIsYoursAlone", "FailureLeavesNothing",
		"StartIsEarly", "DeadHoldersPass", "DeadWaitersAreSkipped", "CancelIsPrompt",
		"ExpiryIsTheStores", "KeysAreOpaque", "Capabilities", "Inspect", "Admin", "BadInput",
		"WakeupsAreHints", "AReasonIsAFact", "DurationsAreBounded",
		"NobodyPassesAWaitingWriter", "AWaitOutlivesTheStoresTrouble", "PartialLossIsLoss", "RecordsAreBounded",
	} {
		skips[group] = same
	}
	var sentinels sync.Map // by Locker
	locktest.Run(t, locktest.Harness{
		New: func(tb testing.TB) func() lock.Locker {
			s := testserver.RedisSentinel(tb)
			return func() lock.Locker {
				p := openSentinel(tb, s)
				sentinels.Store(p, s)
				return p
			}
		},
		Around: func(t *testing.T, f func(*testing.T)) {
			t.Parallel()
			f(t)
		},
		Faults: map[locktest.Fault]func(testing.TB, lock.Locker) func(){
			locktest.Failover: func(_ testing.TB, l lock.Locker) func() {
				v, _ := sentinels.Load(l)
				s := v.(*testserver.Sentinel)
				old := s.Master()
				old.Kill()
				s.AwaitFailover(old)
				return nil
			},
		},
		Skips: skips,
	})
}

// TestFailoverDuringHold: the replica has the grant, so it is renewed there; nobody else
// gets it meanwhile, and the next token is greater.
func TestFailoverDuringHold(t *testing.T) {
	t.Parallel()
	s := testserver.RedisSentinel(t)
	a, b := openSentinel(t, s), openSentinel(t, s)
	ctx := bounded(t)
	c := lock.New(a, lock.WithTTL(2*time.Minute)) // it is renewed by hand alone
	defer func() { _ = c.Close(ctx) }()
	lease, err := c.Lock(ctx, "k")
	require.NoError(t, err)
	waiting := waits(t, b, request("k"))
	eventually(t, "the replica to have it", func() bool {
		n, err := client(t, s.Replica()).Exists(ctx, "lock:{k}").Result()
		return err == nil && n == 1
	})
	s.Failover()
	eventually(t, "a renewal on the new master", func() bool { return lease.Renew(ctx) == nil || lease.Err() != nil })
	require.NoError(t, lease.Err())
	waiting.still()
	require.NoError(t, lease.Release(ctx))
	require.Greater(t, waiting.granted().Token, lease.Token())
}

// TestFailoverLosesGrant: the replica has missed the grant. Somebody else gets the lock,
// with a greater token, and the first holder is told at its next renewal.
func TestFailoverLosesGrant(t *testing.T) {
	t.Parallel()
	s := testserver.RedisSentinel(t)
	a, b := openSentinel(t, s), openSentinel(t, s)
	ctx := bounded(t)
	early := acquire(t, a, request("k"))
	release(t, a, early)
	old, replica := s.Master(), s.Replica()

	replica.Pause()
	first := acquire(t, a, request("k"))
	require.Greater(t, first.Token, early.Token)
	reader := acquire(t, a, shared(request("s")))
	old.Kill() // what it had for the replica is in that one's socket, unless it is cut off
	replica.Resume()
	s.AwaitFailover(old)

	next := map[string]lock.Grant{}
	for _, g := range []lock.Grant{first, reader} {
		eventually(t, "the new master", func() bool {
			g2, err := b.Acquire(ctx, request(g.Key))
			if err == nil {
				next[g.Key] = g2
			}
			return err == nil || errors.Is(err, lock.ErrHeld)
		})
		n, taken := next[g.Key]
		var err error
		eventually(t, "an answer to the first holder", func() bool {
			_, err = a.Renew(ctx, g)
			return err == nil || errors.Is(err, lock.ErrLost)
		})
		if taken { // never two without the loss being told
			require.Greater(t, n.Token, g.Token)
			lostBecause(t, lock.ReasonTaken, err)
			holds(t, b, n)
		} else {
			require.NoError(t, err)
			holds(t, b, g)
		}
	}
}

// TestFailoverToStaleReplica: replication had stopped before the grant, so the loss is
// certain. The lease of a Client ends, and tokens rise all the same.
func TestFailoverToStaleReplica(t *testing.T) {
	t.Parallel()
	s := testserver.RedisSentinel(t)
	a, b := openSentinel(t, s), openSentinel(t, s)
	ctx := bounded(t)
	old, replica := s.Master(), s.Replica()
	// A login that the master refuses keeps the replica from coming back.
	master, cut := client(t, old), client(t, replica)
	require.NoError(t, cut.ConfigSet(ctx, "masteruser", "nobody").Err())
	require.NoError(t, cut.ConfigSet(ctx, "masterauth", "wrong").Err())
	require.NoError(t, master.Do(ctx, "CLIENT", "KILL", "TYPE", "replica").Err())

	c := lock.New(a, lock.WithTTL(2*time.Minute)) // it is renewed by hand alone
	defer func() { _ = c.Close(ctx) }()
	lease, err := c.Lock(ctx, "k")
	require.NoError(t, err)
	require.Zero(t, cut.Exists(ctx, "lock:{k}").Val())
	old.Kill()
	s.AwaitFailover(old)
	var next lock.Grant
	eventually(t, "a grant by the new master", func() bool {
		next, err = b.Acquire(ctx, request("k"))
		return err == nil
	})
	require.Greater(t, next.Token, lease.Token())
	eventually(t, "the loss to be told", func() bool { return lease.Renew(ctx) != nil && lease.Err() != nil })
	lostBecause(t, lock.ReasonTaken, lease.Err())
	lostBecause(t, lock.ReasonTaken, context.Cause(lease.Context()))
	holds(t, b, next)
}
