package etcd_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/internal/storekit"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// keepBusy has a request of l under way, so that those which come soon gather, until done.
func keepBusy(t *testing.T, l *process) (done func()) {
	t.Helper()
	gate, over := make(chan struct{}), make(chan struct{})
	hit := l.kv.once(fate{gate: gate}, puts)
	go func() {
		defer close(over)
		storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("busy")))
	}()
	reached(t, hit)
	l.kv.set(nil)
	return func() { close(gate); <-over }
}

// TestEntriesApart: who lines up at the same moment does not get the same revision, which is
// the token.
func TestEntriesApart(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	g := storetest.Acquire(t, other, storetest.Request("k"))
	done := keepBusy(t, l)
	var ws []*storetest.Waiting
	var wg sync.WaitGroup
	var mu sync.Mutex // guards ws
	for range 8 {
		wg.Go(func() {
			w := storetest.Waits(t, l, storetest.Request("k"))
			mu.Lock()
			defer mu.Unlock()
			ws = append(ws, w)
		})
	}
	wg.Wait()
	done()
	revs := make(map[int64]bool)
	for _, w := range ws {
		revs[revisionOf(t, cli, l.prefix, w.Owner)] = true
	}
	require.Len(t, revs, len(ws))
	storetest.Holds(t, l, g)
}

// TestOneOfManyIsRefused: the server refuses a transaction for the sake of one part. The others
// have nothing to do with that.
func TestOneOfManyIsRefused(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t, etcd.Gathering)
	const ttl = 20 * time.Second
	g := storetest.Acquire(t, l, storetest.Request("k"))
	ended := storetest.Acquire(t, l, storetest.Lasting(storetest.Request("ended"), ttl))
	revoke(t, cli, l.prefix, ended.Owner)
	done := keepBusy(t, l)
	fresh := make(chan lock.Grant, 1)
	go func() { fresh <- storetest.Acquire(t, l, storetest.Lasting(storetest.Request("fresh"), ttl)) }()
	storetest.Eventually(t, "both to share a transaction", func() bool { return l.Gathered() == 1 })
	storetest.Release(t, l, g)
	storetest.Holds(t, other, <-fresh)
	done()
}

// TestLateTogetherWithARefused: likewise, but the first copy of the transaction is on its way yet when
// the server refuses the second. What the release leaves of an innocent part refuses the first.
func TestLateTogetherWithARefused(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t, etcd.Gathering)
	const ttl = 20 * time.Second
	ended := storetest.Acquire(t, l, storetest.Lasting(storetest.Request("ended"), ttl))
	done := keepBusy(t, l)
	revoke(t, cli, l.prefix, ended.Owner)
	granted := make(chan lock.Grant, 2)
	for i, req := range []lock.Request{storetest.Request("k"), storetest.Lasting(storetest.Request("refused"), ttl)} {
		go func() { granted <- storetest.Acquire(t, l, req) }()
		storetest.Eventually(t, "both to share a transaction", func() bool { return l.Gathered() == i+1 })
	}
	hit := l.kv.once(fate{late: true, silent: true}, entersLine(l, "k"))
	done()
	reached(t, hit)
	for range 2 {
		if g := storetest.Receive(t, granted); g.Key == "k" { // the other stays, so that its part does no harm any more
			storetest.Release(t, l, g)
		}
	}
	l.kv.deliver(t)
	require.Empty(t, storetest.Inspect(t, other, "k").Holders, "a ghost")
}

// TestLateTogether: a request that is sent with others' is given up, and takes effect after its
// undo. It is refused.
func TestLateTogether(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("warm")))
	done := keepBusy(t, l)
	sent := l.kv.once(fate{late: true, silent: true}, puts)
	ctx, cancel := context.WithCancel(context.Background())
	req, failed := storetest.Request("k"), make(chan error, 1)
	go func() { _, err := l.Acquire(ctx, req); failed <- err }()
	reached(t, sent)
	cancel()
	require.ErrorIs(t, <-failed, context.Canceled)
	storetest.Release(t, l, lock.Grant{Key: "k", Owner: req.Owner})
	l.kv.deliver(t)
	require.Empty(t, storetest.Inspect(t, other, "k").Holders, "a ghost")
	done()
}

// TestHandoverToNobody: the entry of the next in line is gone, and it does not know. A handover
// must not make a new one: there is somebody in front of that.
func TestHandoverToNobody(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	g := storetest.Acquire(t, l, storetest.Request("k"))
	w := storetest.Waits(t, l, storetest.Request("k"))
	behind := storetest.Waits(t, other, storetest.Request("k"))
	l.deaf.set(true)
	_, err := cli.Delete(storetest.Bounded(t), string(keyOf(t, cli, l.prefix, w.Owner).Key))
	require.NoError(t, err)
	storetest.Release(t, l, g)
	next := behind.Granted(t)
	storetest.Holds(t, l, next)
	storetest.Release(t, other, next)
	require.Greater(t, w.Granted(t).Token, next.Token)
}

// TestRenewalAtTheEnd: the answer to a renewal comes when the grant would be over without it.
// What the answer promises is still there.
func TestRenewalAtTheEnd(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	const ttl = 9 * time.Second // a renewal is tried for a sixth
	for tried := 0; ; tried++ {
		g := storetest.Acquire(t, l, storetest.Lasting(storetest.Request("k"), ttl))
		undo := lock.Grant{Key: "k", Owner: g.Owner}
		end := g.Start.Add(g.TTL)
		time.Sleep(time.Until(end) - 1200*time.Millisecond)
		back := make(chan struct{})
		l.kv.every(fate{back: back}, reads)
		time.AfterFunc(time.Until(end)+500*time.Millisecond, func() { close(back) }) // two ticks later
		begun := time.Now()
		g, err := l.Renew(storetest.Bounded(t), g)
		l.kv.set(nil)
		if tried < 5 && (err != nil || begun.After(end.Add(-time.Second))) {
			storetest.Release(t, l, undo)
			continue // a busy machine has slept for too long
		}
		require.NoError(t, err)
		require.True(t, g.Start.Before(end))
		storetest.Holds(t, other, g)
		storetest.Release(t, l, g)
		return
	}
}

// TestLeaseLivesFromItsRequest: a grant under an etcd lease whose grant, or whose keepalive,
// was answered late does not promise what the server does not know of.
func TestLeaseLivesFromItsRequest(t *testing.T) {
	t.Parallel()
	server := testserver.Etcd(t)
	l, cli := open(t, server, testserver.Prefix()), plain(t, server.Addr())
	const ttl = 41 * time.Second
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("warm")))
	count := func() int {
		resp, err := cli.Leases(storetest.Bounded(t))
		require.NoError(t, err)
		n := 0
		for _, le := range resp.Leases {
			if left, err := cli.TimeToLive(storetest.Bounded(t), le.ID); err == nil && left.GrantedTTL == int64(ttl.Seconds()) {
				n++
			}
		}
		return n
	}
	acquire := func(key string) lock.Grant {
		return storetest.Acquire(t, l, storetest.Lasting(storetest.Request(key), ttl))
	}

	heal := l.proxy.HoldReplies()
	first := make(chan lock.Grant, 1)
	go func() { first <- acquire("a") }()
	storetest.Eventually(t, "the etcd lease", func() bool { return count() > 0 })
	granted := time.Now()
	time.Sleep(300 * time.Millisecond)
	heal()
	g := <-first
	require.False(t, g.Start.Add(g.TTL).After(granted.Add(ttl)))

	id := leaseOf(t, cli, l.prefix, g.Owner)
	left := func() int64 {
		resp, err := cli.TimeToLive(storetest.Bounded(t), id)
		require.NoError(t, err)
		return resp.TTL
	}
	storetest.Eventually(t, "the lease to grow older", func() bool { return left() < int64(ttl.Seconds())-2 })
	heal = l.proxy.HoldReplies()
	older := left()
	renewed := make(chan lock.Grant, 1)
	go func() { renewed <- storetest.Renew(t, l, g) }()
	storetest.Eventually(t, "the keepalive", func() bool { return left() > older })
	confirmed := time.Now()
	time.Sleep(300 * time.Millisecond)
	heal()
	<-renewed
	g = acquire("b")
	require.False(t, g.Start.Add(g.TTL).After(confirmed.Add(ttl)))
}

// TestQueue: a request that waits while others are sent and answered is no sign of trouble. Nor is
// one that was sent too late to be answered within Patience.
func TestQueue(t *testing.T) {
	t.Parallel()
	for ago, moves := range map[time.Duration]bool{0: true, lock.Patience / 4: true, lock.Patience: false} {
		err := etcd.Unsent(ago)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, moves, errors.Is(err, storekit.ErrQueued), ago)
	}
	for ago, young := range map[time.Duration]bool{0: true, lock.Patience / 4: true, lock.Patience / 2: false} {
		err := etcd.Sent(ago, 0)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, young, errors.Is(err, storekit.ErrQueued), ago)
		require.NotErrorIs(t, etcd.Sent(ago, lock.Patience), storekit.ErrQueued)
	}
}
