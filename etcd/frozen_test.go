package etcd_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// TestMemberFrozen: a member stops (SIGSTOP) and keeps its connections. Every call succeeds all
// the same, also by a client that has not been told to look after its connections: what is sent
// to the member is sent again. A renewal, a wait, and a line in one process go on.
func TestMemberFrozen(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		keepAlive time.Duration // 0: the client does not look after its connections
		leader    bool
	}{
		"follower":                   {10 * time.Second, false},
		"leader":                     {10 * time.Second, true},
		"follower without keepalive": {0, false},
		"leader without keepalive":   {0, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster := testserver.NewEtcdCluster(t)
			cli, err := clientv3.New(clientv3.Config{
				Endpoints: cluster.Addrs(), Logger: quiet,
				DialKeepAliveTime: c.keepAlive, DialKeepAliveTimeout: time.Second,
			})
			require.NoError(t, err)
			t.Cleanup(func() { _ = cli.Close() })
			l := etcd.New(cli)
			t.Cleanup(func() { require.NoError(t, l.Close()) })
			member := cluster.Followers()[0]
			if c.leader {
				member = cluster.Leader()
			}
			frozen(t, l, member)
		})
	}
}

func frozen(t *testing.T, l *etcd.Locker, member *testserver.Server) {
	t.Helper()
	const n = 6
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c := lock.New(l, lock.WithTTL(10*time.Second))
	lease, err := c.Lock(ctx, "held")
	require.NoError(t, err)
	first, err := c.Lock(ctx, "line")
	require.NoError(t, err)
	nothing := func(context.Context, *lock.Lease) error { return nil }
	line := make(chan error, n)
	for range n {
		go func() { line <- c.Do(ctx, "line", nothing) }()
	}
	storetest.Eventually(t, "the line", func() bool { return len(storetest.Inspect(t, l, "line").Waiters) == n })

	member.Pause()
	var longest time.Duration
	for range n {
		begun := time.Now()
		require.NoError(t, c.Do(ctx, "k", nothing))
		longest = max(longest, time.Since(begun))
	}
	t.Logf("the longest of %d took %v", n, longest)
	for range n / 2 {
		begun := time.Now()
		storetest.Inspect(t, l, "held")
		require.Less(t, time.Since(begun), lock.Patience/2)
	}
	require.NoError(t, lease.Renew(ctx))
	require.NoError(t, first.Release(ctx))
	for range n {
		require.NoError(t, <-line)
	}
	require.NoError(t, lease.Err())
	require.NoError(t, c.Close(ctx))
	member.Resume()
	req := storetest.Request("k")
	req.Wait = true // what the member is late with may have to be swept
	storetest.Release(t, l, storetest.Acquire(t, l, req))
}

// TestRenewalIsSentAgain: what a renewal asks is not answered, or the connection breaks. A copy
// is, while the first is still waited for: the grant lasts from before that.
func TestRenewalIsSentAgain(t *testing.T) {
	t.Parallel()
	for _, f := range []fate{{gate: make(chan struct{})}, {late: true}} {
		l, other, _ := pair(t)
		g := storetest.Acquire(t, l, storetest.Lasting(storetest.Request("k"), time.Minute))
		var first time.Time
		hit := l.kv.once(f, func(t txn) bool {
			first = time.Now()
			return reads(t)
		})
		g = storetest.Renew(t, l, g)
		reached(t, hit)
		require.True(t, g.Start.Before(first), "it was begun anew")
		storetest.Holds(t, other, g)
	}
}

// silentLease is a client's Lease that answers the first question for an etcd lease's TTL, or all, only
// when ctx has ended.
type silentLease struct {
	clientv3.Lease
	asked  chan struct{} // closed at the first
	all    bool
	before atomic.Int64
}

// TimeToLive answers the other questions.
func (s *silentLease) TimeToLive(ctx context.Context, id clientv3.LeaseID, opts ...clientv3.LeaseOption) (*clientv3.LeaseTimeToLiveResponse, error) {
	if first := s.before.Add(1) == 1; first {
		close(s.asked)
	} else if !s.all {
		return s.Lease.TimeToLive(ctx, id, opts...)
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestInspectAsksAgain: the member does not answer that Inspect asks how long a holder has yet. A copy
// is answered. Without any answer that is not known; if ctx ends meanwhile, Inspect says so.
func TestInspectAsksAgain(t *testing.T) {
	t.Parallel()
	inspect := func(ctx context.Context, all bool) (<-chan struct{}, func() (lock.Record, error)) {
		l, _, _ := pair(t)
		storetest.Acquire(t, l, storetest.Request("k"))
		silent := &silentLease{Lease: l.cli.Lease, asked: make(chan struct{}), all: all}
		l.cli.Lease = silent
		return silent.asked, func() (lock.Record, error) { return l.Inspect(ctx, "k") }
	}
	for _, all := range []bool{false, true} {
		_, look := inspect(storetest.Bounded(t), all)
		begun := time.Now()
		rec, err := look()
		require.NoError(t, err)
		require.Less(t, time.Since(begun), lock.Patience/2)
		require.Equal(t, all, rec.Holders[0].ExpiresIn < 0)
	}
	ctx, cancel := context.WithCancel(storetest.Bounded(t))
	asked, look := inspect(ctx, true)
	go func() { <-asked; cancel() }()
	_, err := look()
	require.ErrorIs(t, err, context.Canceled)
}

// TestRenewedByAnother: a grant that another Locker has renewed is not told to be renewed by what
// keeps another etcd lease alive.
func TestRenewedByAnother(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	g := storetest.Acquire(t, l, storetest.Request("k"))
	own := leaseOf(t, cli, l.prefix, g.Owner)
	g = storetest.Renew(t, other, g)
	require.NotEqual(t, own, leaseOf(t, cli, l.prefix, g.Owner))
	g = storetest.Renew(t, l, g)
	require.Equal(t, own, leaseOf(t, cli, l.prefix, g.Owner))
	storetest.Release(t, l, g)
}
