package etcd_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// pair is two processes on the shared server, and a client beside them.
func pair(t *testing.T, opts ...etcd.Option) (l, other *process, cli *clientv3.Client) {
	t.Helper()
	server, prefix := testserver.SharedEtcd(t), testserver.Prefix()
	return open(t, server, prefix, opts...), open(t, server, prefix, opts...), plain(t, server.Addr())
}

func isLost(err error) bool { return errors.Is(err, lock.ErrLost) }

// told waits for a loss to be told.
func told(t *testing.T, lost <-chan lock.LostReason) lock.LostReason {
	t.Helper()
	select {
	case r := <-lost:
		return r
	case <-time.After(storetest.Patience):
		require.FailNow(t, "the loss is not told")
		return 0
	}
}

// keyOf is owner's key.
func keyOf(t *testing.T, cli *clientv3.Client, prefix, owner string) *mvccpb.KeyValue {
	t.Helper()
	resp, err := cli.Get(storetest.Bounded(t), prefix, clientv3.WithPrefix())
	require.NoError(t, err)
	for _, kv := range resp.Kvs {
		if strings.Contains(string(kv.Value), owner) {
			return kv
		}
	}
	require.FailNow(t, "no key of "+owner)
	return nil
}

// leaseOf is the etcd lease of owner's key.
func leaseOf(t *testing.T, cli *clientv3.Client, prefix, owner string) clientv3.LeaseID {
	t.Helper()
	return clientv3.LeaseID(keyOf(t, cli, prefix, owner).Lease)
}

// revisionOf is the create revision of owner's key.
func revisionOf(t *testing.T, cli *clientv3.Client, prefix, owner string) int64 {
	t.Helper()
	return keyOf(t, cli, prefix, owner).CreateRevision
}

// revoke ends the etcd lease of owner's key, as its expiry would: on a busy machine a waiter may be
// about to line up again since it did.
func revoke(t *testing.T, cli *clientv3.Client, prefix, owner string) {
	t.Helper()
	storetest.Eventually(t, "the etcd lease of "+owner, func() bool {
		resp, err := cli.Get(storetest.Bounded(t), prefix, clientv3.WithPrefix())
		require.NoError(t, err)
		i := slices.IndexFunc(resp.Kvs, func(kv *mvccpb.KeyValue) bool { return strings.Contains(string(kv.Value), owner) })
		if i < 0 {
			return false
		}
		_, err = cli.Revoke(storetest.Bounded(t), clientv3.LeaseID(resp.Kvs[i].Lease))
		return err == nil
	})
}

// TestFrozenServer: see storetest.
func TestFrozenServer(t *testing.T) {
	t.Parallel()
	server, prefix := testserver.Etcd(t), testserver.Prefix()
	storetest.FrozenServer(t, open(t, server, prefix), open(t, server, prefix), 3*time.Second, server.Pause, server.Resume)
}

// TestUnrenewedEnds: a grant ends at its TTL though another under the same etcd lease is
// renewed all the time, also if that is the same owner's.
func TestUnrenewedEnds(t *testing.T) {
	t.Parallel()
	for name, same := range map[string]bool{"another owner's is renewed": false, "the same owner's is renewed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, other, cli := pair(t)
			const ttl = 8 * time.Second // it must not be over before the first look
			lost := make(chan lock.LostReason, 1)
			req := storetest.Lasting(storetest.Request("unrenewed"), ttl)
			req.Lost = func(r lock.LostReason) { lost <- r }
			asked := time.Now()
			g := storetest.Acquire(t, l, req)
			beside := storetest.Lasting(storetest.Request("renewed"), ttl)
			if same {
				beside.Owner = req.Owner
			}
			renewed := storetest.Acquire(t, l, beside)
			require.Equal(t, leaseUnder(t, cli, l.prefix+"unrenewed/"), leaseUnder(t, cli, l.prefix+"renewed/"))
			storetest.Eventually(t, "the grant to end", func() bool {
				renewed = storetest.Renew(t, l, renewed)
				return len(storetest.Inspect(t, other, "unrenewed").Holders) == 0
			})
			require.GreaterOrEqual(t, time.Since(asked), g.TTL)
			require.Equal(t, lock.ReasonExpired, told(t, lost))
			storetest.Holds(t, other, renewed)
			_, err := l.Renew(storetest.Bounded(t), g)
			storetest.Lost(t, err)
		})
	}
}

// leaseUnder is the etcd lease of the one key whose name begins with prefix.
func leaseUnder(t *testing.T, cli *clientv3.Client, prefix string) clientv3.LeaseID {
	t.Helper()
	return leaseOf(t, cli, prefix, "")
}

// TestAcquireAgain: who has a grant and asks for it again gets that, and one release ends it.
func TestAcquireAgain(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		l, other, cli := pair(t)
		lost := make(chan lock.LostReason, 1)
		req := storetest.Request("k")
		req.Shared = shared
		g := storetest.Acquire(t, l, req)
		entry := keyOf(t, cli, l.prefix, g.Owner)
		req.Lost = func(r lock.LostReason) { lost <- r }
		for _, req.Wait = range []bool{false, true} {
			again := storetest.Acquire(t, l, req)
			require.Equal(t, g.Token, again.Token)
			require.True(t, again.Start.After(g.Start))
			require.Equal(t, entry, keyOf(t, cli, l.prefix, g.Owner))
		}
		require.NoError(t, other.ForceRelease(storetest.Bounded(t), "k", g.Owner))
		require.Equal(t, lock.ReasonForced, told(t, lost))

		g = storetest.Acquire(t, l, storetest.Request("k"))
		require.Equal(t, g.Token, storetest.Acquire(t, l, lock.Request{Key: "k", Owner: g.Owner, TTL: time.Minute}).Token)
		storetest.Release(t, l, g)
		storetest.Release(t, other, storetest.Acquire(t, other, storetest.Request("k")))
	}
}

// TestRenewalForLonger: a grant whose TTL was short is renewed for a longer one, as a service does with
// that of a waiter, and ended by neither etcd lease.
func TestRenewalForLonger(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t, etcd.WithMaxTTL(40*time.Second))
	g := storetest.Acquire(t, l, storetest.Lasting(storetest.Request("k"), 15*time.Second))
	short := leaseOf(t, cli, l.prefix, g.Owner)
	g.TTL = time.Minute
	g = storetest.Renew(t, l, g)
	require.Equal(t, 40*time.Second, g.TTL)
	_, err := cli.Revoke(storetest.Bounded(t), short)
	require.NoError(t, err)
	g = storetest.Renew(t, l, g)
	require.Equal(t, 40*time.Second, g.TTL)
	storetest.Holds(t, other, g)
	storetest.Release(t, l, g)
	storetest.Release(t, other, storetest.Acquire(t, other, storetest.Request("k")))
}

// TestLossIsToldAtOnce: a key that is deleted by hand, a forced release, a lease that ends.
func TestLossIsToldAtOnce(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(t *testing.T, other *process, cli *clientv3.Client, g lock.Grant){
		"force release": func(t *testing.T, other *process, _ *clientv3.Client, g lock.Grant) {
			require.NoError(t, other.ForceRelease(storetest.Bounded(t), g.Key, g.Owner))
		},
		"lease": func(t *testing.T, other *process, cli *clientv3.Client, g lock.Grant) {
			revoke(t, cli, other.prefix, g.Owner)
		},
		"by hand": func(t *testing.T, other *process, cli *clientv3.Client, _ lock.Grant) {
			_, err := cli.Delete(storetest.Bounded(t), other.prefix, clientv3.WithPrefix())
			require.NoError(t, err)
		},
	} {
		for when, delay := range map[string]time.Duration{"young": 0, "old": 3 * etcd.WatchDelay} {
			t.Run(name+"/"+when, func(t *testing.T) {
				t.Parallel()
				l, other, cli := pair(t)
				lost := make(chan lock.LostReason, 2)
				req := storetest.Request("k")
				req.Lost = func(r lock.LostReason) { lost <- r }
				g := storetest.Acquire(t, l, req)
				time.Sleep(delay)
				end(t, other, cli, g)
				require.Equal(t, lock.ReasonForced, told(t, lost))
				_, err := l.Renew(storetest.Bounded(t), g)
				storetest.Lost(t, err)
				storetest.Lost(t, l.Release(storetest.Bounded(t), g))
				require.Empty(t, lost)
			})
		}
	}
}

// TestLossBeforeTheWatch: a young grant is not watched yet when it is lost, and the watch that its
// lock has by then was begun later, for one who waits. The loss is told.
func TestLossBeforeTheWatch(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	warm := storetest.Acquire(t, l, storetest.Lasting(storetest.Request("warm"), 5*time.Second)) // what waits are under
	storetest.Release(t, l, lock.Grant{Key: "warm", Owner: warm.Owner})
	storetest.Acquire(t, other, storetest.Shared(storetest.Request("k")))
	for range 10 {
		lost := make(chan lock.LostReason, 1)
		req := storetest.Shared(storetest.Request("k"))
		req.Lost = func(r lock.LostReason) { lost <- r }
		g := storetest.Acquire(t, l, req)
		_, err := cli.Delete(storetest.Bounded(t), string(keyOf(t, cli, l.prefix, g.Owner).Key))
		require.NoError(t, err)
		w := storetest.Waits(t, l, storetest.Request("k"))
		require.Equal(t, lock.ReasonForced, told(t, lost))
		w.Cancel()
		w.End(t)
		storetest.Release(t, l, lock.Grant{Key: "k", Owner: w.Owner})
		time.Sleep(1100 * time.Millisecond) // the watch ends
	}
}

// TestLossBeforeTheReply: a watch that is there brings the end of a grant before the reply that it was
// granted. The loss is told.
func TestLossBeforeTheReply(t *testing.T) {
	t.Parallel()
	storetest.Eventually(t, "a grant of one request", func() bool { // a busy machine may send a copy
		l, other, _ := pair(t)
		watched, lost := make(chan lock.LostReason, 1), make(chan lock.LostReason, 1)
		req := storetest.Shared(storetest.Request("k"))
		req.Lost = func(r lock.LostReason) { watched <- r }
		first := storetest.Acquire(t, l, req)
		time.Sleep(3 * etcd.WatchDelay)
		back, sent := make(chan struct{}), 0
		l.kv.every(fate{back: back}, func(t txn) bool {
			if puts(t) {
				sent++
			}
			return puts(t)
		})
		req = storetest.Shared(storetest.Request("k"))
		req.Lost = func(r lock.LostReason) { lost <- r }
		granted := make(chan lock.Grant, 1)
		go func() { granted <- storetest.Acquire(t, l, req) }()
		storetest.Eventually(t, "the grant", func() bool { return len(storetest.Inspect(t, other, "k").Holders) == 2 })
		for _, owner := range []string{req.Owner, first.Owner} {
			require.NoError(t, other.ForceRelease(storetest.Bounded(t), "k", owner))
		}
		require.Equal(t, lock.ReasonForced, told(t, watched)) // the same watch, in order
		close(back)
		storetest.Receive(t, granted)
		l.kv.set(nil)
		if sent > 1 {
			return false
		}
		require.Equal(t, lock.ReasonForced, told(t, lost))
		return true
	})
}

// TestLeaseGone: the etcd lease ended while the process slept, say. The next acquire takes a
// new one, and a renewal under the old one is a loss.
func TestLeaseGone(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	g := storetest.Acquire(t, l, storetest.Request("old"))
	revoke(t, cli, l.prefix, g.Owner)
	next := storetest.Acquire(t, l, storetest.Request("new"))
	storetest.Holds(t, other, next)
	_, err := l.Renew(storetest.Bounded(t), g)
	storetest.Lost(t, err)
	next = storetest.Renew(t, l, next)
	waiting := storetest.Waits(t, l, storetest.Request("new"))
	storetest.Release(t, l, next)
	storetest.Release(t, l, waiting.Granted(t))
}

// TestLeaseGoneIsTold: that an etcd lease has ended is learned by the renewal of one grant, and
// told to the holders of all others, though no watch brings it.
func TestLeaseGoneIsTold(t *testing.T) {
	t.Parallel()
	l, _, cli := pair(t)
	l.deaf.set(true)
	lost := make(chan lock.LostReason, 1)
	req := storetest.Request("beside")
	req.Lost = func(r lock.LostReason) { lost <- r }
	beside := storetest.Acquire(t, l, req)
	g := storetest.Acquire(t, l, storetest.Request("k"))
	require.Equal(t, leaseOf(t, cli, l.prefix, beside.Owner), leaseOf(t, cli, l.prefix, g.Owner))
	revoke(t, cli, l.prefix, beside.Owner)
	_, err := l.Renew(storetest.Bounded(t), g)
	storetest.Lost(t, err)
	require.Equal(t, lock.ReasonForced, told(t, lost))
}

// TestRenewalNeedsTheLease: the key is there, and no keepalive is answered. That is no renewal.
func TestRenewalNeedsTheLease(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	l.CutKeepAlives(errCut)
	g := storetest.Acquire(t, l, storetest.Request("k"))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err := l.Renew(ctx, g)
	require.Error(t, err)
	require.False(t, isLost(err), "%v", err)
	storetest.Holds(t, other, g)
}

// TestRestart: grants and tokens outlive it, and Lockers find their way back.
func TestRestart(t *testing.T) {
	t.Parallel()
	server, prefix := testserver.Etcd(t), testserver.Prefix()
	l, other := open(t, server, prefix), open(t, server, prefix)
	g := storetest.Acquire(t, l, storetest.Request("k"))
	w := storetest.Waits(t, other, storetest.Request("k"))
	server.Kill()
	server.Start()
	storetest.Eventually(t, "a renewal", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := l.Renew(ctx, g)
		require.False(t, isLost(err), "%v", err)
		return err == nil
	})
	storetest.Release(t, l, g)
	next := w.Granted(t)
	require.Greater(t, next.Token, g.Token)
	storetest.Release(t, other, next)
}

// TestAnotherRenews: a grant that is passed on to another process lives by its renewals.
func TestAnotherRenews(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	g := storetest.Acquire(t, l, storetest.Lasting(storetest.Request("k"), 8*time.Second))
	for end := time.Now().Add(2 * g.TTL); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if renewed, err := other.Renew(storetest.Bounded(t), g); err == nil {
			g = renewed
		} else { // on a busy machine the server may not answer in time
			require.False(t, isLost(err), "%v", err)
		}
	}
	storetest.Holds(t, l, g)
	storetest.Refused(t, l, storetest.Request("k"))
	storetest.Release(t, other, g)
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("k")))
}

// TestNamesAreUsedAgain: the number of names does not grow with that of acquisitions, which
// would make each slower than the last.
func TestNamesAreUsedAgain(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	names := make(map[string]bool)
	for i := range 20 {
		g := storetest.Acquire(t, l, storetest.Request("k"))
		storetest.Refused(t, l, storetest.Request("k"))
		names[string(keyOf(t, cli, l.prefix, g.Owner).Key)] = true
		switch i % 4 {
		case 0:
			storetest.Release(t, l, g)
		case 1:
			storetest.Release(t, l, lock.Grant{Key: "k", Owner: g.Owner})
		case 2:
			require.NoError(t, other.ForceRelease(storetest.Bounded(t), "k", g.Owner))
			_, err := l.Renew(storetest.Bounded(t), g)
			storetest.Lost(t, err)
		case 3:
			w := storetest.Waits(t, l, storetest.Request("k"))
			storetest.Release(t, l, g)
			storetest.Release(t, l, w.Granted(t))
		}
	}
	require.Less(t, len(names), 10)
}

// TestLateRequest: what arrives after its undo is refused, and before it is undone.
func TestLateRequest(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("warm")))
	heal := l.proxy.Freeze()
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	req := storetest.Request("k")
	_, err := l.Acquire(ctx, req)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	late := l.Late(t, req)
	undone := make(chan error, 1)
	heal()
	late()
	go func() { undone <- l.Release(storetest.Bounded(t), lock.Grant{Key: "k", Owner: req.Owner}) }()
	require.NoError(t, <-undone)
	require.False(t, late(), "a ghost")
	require.Empty(t, storetest.Inspect(t, other, "k").Holders)
	g := storetest.Acquire(t, l, storetest.Request("k"))
	require.False(t, late())
	storetest.Holds(t, other, g)
}

// TestGrantIsNoLongerThanItsLease: a grant under an etcd lease that was last confirmed a while
// ago does not promise a whole TTL.
func TestGrantIsNoLongerThanItsLease(t *testing.T) {
	t.Parallel()
	l, _, _ := pair(t, longest)
	const ttl = 10 * time.Minute
	first := storetest.Acquire(t, l, storetest.Lasting(storetest.Request("a"), ttl))
	time.Sleep(200 * time.Millisecond)
	second := storetest.Acquire(t, l, storetest.Lasting(storetest.Request("b"), ttl))
	require.Less(t, second.Start.Sub(first.Start), ttl/4)
	require.LessOrEqual(t, second.Start.Add(second.TTL), first.Start.Add(ttl))
}

// TestRenewalsOvertake: of two renewals at once the earlier is answered last. The grant lives for
// as long as the later has promised.
func TestRenewalsOvertake(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	g := storetest.Acquire(t, l, storetest.Lasting(storetest.Request("k"), 6*time.Second))
	back := make(chan struct{})
	hit := l.kv.every(fate{back: back}, reads)
	early := make(chan error, 1)
	go func() { _, err := l.Renew(storetest.Bounded(t), g); early <- err }()
	reached(t, hit)
	time.Sleep(500 * time.Millisecond)
	l.kv.set(nil)
	g = storetest.Renew(t, l, g)
	close(back)
	require.NoError(t, <-early)
	for end := g.Start.Add(g.TTL); ; time.Sleep(20 * time.Millisecond) {
		holders := storetest.Inspect(t, other, "k").Holders
		if !time.Now().Before(end) {
			return
		}
		require.Len(t, holders, 1, "%v before the end", time.Until(end))
	}
}

// TestEndIsFinal: once the end of a grant has been told it can be neither renewed nor
// released, although its key is there until it is pruned: others keep its etcd lease alive.
func TestEndIsFinal(t *testing.T) {
	t.Parallel()
	l, _, cli := pair(t)
	type answers struct{ renew, release error }
	told := make(chan answers, 1)
	var g lock.Grant
	granted := make(chan struct{})
	req := storetest.Lasting(storetest.Request("k"), 6*time.Second)
	gate := make(chan struct{})
	l.kv.every(fate{gate: gate}, deletes) // it is not pruned yet
	req.Lost = func(lock.LostReason) {
		<-granted
		_, err := l.Renew(context.Background(), g)
		close(gate)
		told <- answers{err, l.Release(context.Background(), g)}
	}
	g = storetest.Acquire(t, l, req)
	alive, err := cli.KeepAlive(storetest.Bounded(t), leaseOf(t, cli, l.prefix, g.Owner))
	require.NoError(t, err)
	require.NotNil(t, storetest.Receive(t, alive))
	close(granted)
	a := storetest.Receive(t, told)
	require.Equal(t, lock.ReasonExpired, storetest.Lost(t, a.renew))
	require.Equal(t, lock.ReasonExpired, storetest.Lost(t, a.release))
	storetest.Release(t, l, lock.Grant{Key: "k", Owner: g.Owner})
}
