package etcd_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// crowd is many who wait for one key, and what they were granted.
type crowd struct {
	tb   testing.TB
	wg   sync.WaitGroup
	mu   sync.Mutex // guards the rest
	in   int
	last lock.Token
	errs []error
	got  int
}

// crowded lets n wait for key, in several processes.
func crowded(tb testing.TB, ls []*process, key string, n int) *crowd {
	tb.Helper()
	c := &crowd{tb: tb}
	var lined sync.WaitGroup
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	for i := range n {
		req := storetest.Request(key)
		req.Wait = true
		lined.Add(1)
		var once sync.Once
		req.Waiting = func(lock.Record) { once.Do(lined.Done) }
		c.wg.Go(func() {
			c.turn(ctx, ls[i%len(ls)], req)
			once.Do(lined.Done)
		})
	}
	lined.Wait()
	tb.Cleanup(func() { cancel(); c.wg.Wait() })
	return c
}

func (c *crowd) turn(ctx context.Context, l *process, req lock.Request) {
	g, err := l.Acquire(ctx, req)
	if err != nil { // else its place in line is in the others' way
		_ = l.Release(context.Background(), lock.Grant{Key: req.Key, Owner: req.Owner})
	}
	c.note(func() {
		if err != nil {
			c.errs = append(c.errs, err)
			return
		}
		c.in++
		c.got++
		if c.in > 1 || g.Token <= c.last {
			c.errs = append(c.errs, fmt.Errorf("token %d after %d, with %d holders", g.Token, c.last, c.in))
		}
		c.last = g.Token
	})
	if err != nil {
		return
	}
	time.Sleep(time.Millisecond)
	c.note(func() { c.in-- })
	for ctx.Err() == nil { // through an election
		err := l.Release(ctx, g)
		if err == nil || isLost(err) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (c *crowd) note(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

func (c *crowd) served() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.got
}

// done waits until all have had their turn.
func (c *crowd) done(n int) {
	c.tb.Helper()
	c.wg.Wait()
	require.Empty(c.tb, c.errs)
	require.Equal(c.tb, n, c.got)
}

// TestLeaderKilled: a lease is held, and hundreds wait, when the leader is killed. The grant
// stays, the line goes on, no token falls, nobody holds twice; then again in the middle.
func TestLeaderKilled(t *testing.T) {
	t.Parallel()
	const n = 200
	cluster, prefix := testserver.NewEtcdCluster(t), testserver.Prefix()
	var ls []*process
	for range 4 {
		ls = append(ls, openOn(t, prefix, cluster.Addrs()))
	}
	ctx := storetest.Bounded(t)
	c := lock.New(ls[0], lock.WithTTL(20*time.Second))
	lease, err := c.Lock(ctx, "k")
	require.NoError(t, err)
	line := crowded(t, ls, "k", n)
	line.note(func() { line.last = lease.Token() })

	first := cluster.Leader()
	first.Kill()
	cluster.Leader()
	require.NoError(t, lease.Renew(ctx))
	require.Zero(t, line.served())
	first.Start()

	require.NoError(t, lease.Release(ctx))
	storetest.Eventually(t, "the line to go on", func() bool { return line.served() > n/4 })
	cluster.Leader().Kill()
	line.done(n)
	require.NoError(t, c.Close(ctx))
}

// TestFollowerFrozen: a Locker whose requests go to several members does without one that
// does not answer.
func TestFollowerFrozen(t *testing.T) {
	t.Parallel()
	cluster := testserver.NewEtcdCluster(t)
	l := openOn(t, testserver.Prefix(), cluster.Addrs())
	c := lock.New(l, lock.WithTTL(12*time.Second))
	ctx := storetest.Bounded(t)
	lease, err := c.Lock(ctx, "k")
	require.NoError(t, err)
	cluster.Followers()[0].Pause()
	time.Sleep(15 * time.Second) // more than a TTL
	require.NoError(t, lease.Err())
	require.NoError(t, c.Close(ctx))
}

// TestCompactionWhileWaiting: a watch that fell behind is told that its revision is gone.
func TestCompactionWhileWaiting(t *testing.T) {
	t.Parallel()
	server, prefix := testserver.Etcd(t), testserver.Prefix()
	l, other, cli := open(t, server, prefix), open(t, server, prefix), plain(t, server.Addr())
	g := storetest.Acquire(t, other, storetest.Request("k"))
	w := storetest.Waits(t, l, storetest.Request("k"))
	heal := l.proxy.Cut()
	storetest.Release(t, other, g)
	ctx := storetest.Bounded(t)
	resp, err := cli.Put(ctx, l.prefix+"-else", "")
	require.NoError(t, err)
	_, err = cli.Compact(ctx, resp.Header.Revision, clientv3.WithCompactPhysical())
	require.NoError(t, err)
	heal()
	storetest.Release(t, l, w.Granted(t))

	// And while it is held: the loss is told all the same, whether it came before the look at
	// the present or is the first thing after it.
	for _, early := range []bool{true, false} {
		lost := make(chan lock.LostReason, 1)
		req := storetest.Request(fmt.Sprint("held ", early))
		req.Lost = func(r lock.LostReason) { lost <- r }
		g = storetest.Acquire(t, l, req)
		time.Sleep(3 * etcd.WatchDelay)
		heal = l.proxy.Cut()
		end := func() { require.NoError(t, other.ForceRelease(ctx, g.Key, g.Owner)) }
		if early {
			end()
		}
		for range 2 { // the watch is to go on at the first of these
			resp, err = cli.Put(ctx, l.prefix+"-else", "")
			require.NoError(t, err)
		}
		_, err = cli.Compact(ctx, resp.Header.Revision, clientv3.WithCompactPhysical())
		require.NoError(t, err)
		looks := 0
		looked := l.kv.once(fate{}, func(txn) bool { looks++; return looks > 1 }) // at the revision, and at the key
		heal()
		if !early {
			reached(t, looked)
			end()
		}
		require.Equal(t, lock.ReasonForced, told(t, lost))
	}
}

// TestExpiredWaiter: the etcd lease of one who waits ends, which a watch brings or not. It must not
// be granted the lock by what it knew, nor wait for ever: it lines up again. What its process holds,
// under another etcd lease, has nothing to do with that.
func TestExpiredWaiter(t *testing.T) {
	t.Parallel()
	for _, deaf := range []bool{false, true} {
		l, other, cli := pair(t)
		l.deaf.set(deaf)
		held := storetest.Acquire(t, l, storetest.Request("held"))
		g := storetest.Acquire(t, other, storetest.Request("k"))
		w := storetest.Waits(t, l, storetest.Request("k"))
		behind := storetest.Waits(t, other, storetest.Request("k"))
		revoke(t, cli, l.prefix, w.Owner)
		storetest.Eventually(t, "it to line up again", func() bool {
			ws := storetest.Inspect(t, other, "k").Waiters
			return len(ws) == 2 && ws[1].Owner == w.Owner
		})
		held = storetest.Renew(t, l, held)
		storetest.Release(t, other, g)
		first := behind.Granted(t)
		storetest.Release(t, other, first)
		second := w.Granted(t)
		require.Greater(t, second.Token, first.Token)
		storetest.Holds(t, other, second)
		storetest.Holds(t, other, held)
	}
}

// TestNoLeaseForTheGrant: a waiter is woken, and the etcd lease that its grant needs is refused. It
// waits on, and is granted the lock when there are leases again.
func TestNoLeaseForTheGrant(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	g := storetest.Acquire(t, other, storetest.Request("k"))
	w := storetest.Waits(t, l, storetest.Request("k"))
	l.grantBy(nowhere(t))
	l.ForgetLeases()
	storetest.Release(t, other, g)
	select {
	case <-w.Done:
		require.FailNow(t, "it does not wait", "%v, %v", w.Grant, w.Err)
	case <-time.After(500 * time.Millisecond): // of many looks
	}
	l.grantBy(nil)
	storetest.Release(t, l, w.Granted(t))
}

// TestWaitWithoutKeepAlives: none is answered, and transactions are. Who waits lines up again when
// its etcd lease has ended, and is granted the lock.
func TestWaitWithoutKeepAlives(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	l.CutKeepAlives(errCut)
	g := storetest.Acquire(t, other, storetest.Request("k"))
	w := storetest.Waits(t, l, storetest.Lasting(storetest.Request("k"), 9*time.Second)) // the place lives for 5 s
	place := revisionOf(t, cli, l.prefix, w.Owner)
	storetest.Eventually(t, "another place in line", func() bool {
		resp, err := cli.Get(storetest.Bounded(t), l.prefix, clientv3.WithPrefix(), clientv3.WithMinCreateRev(place+1))
		require.NoError(t, err)
		return slices.ContainsFunc(resp.Kvs, func(kv *mvccpb.KeyValue) bool { return strings.Contains(string(kv.Value), w.Owner) })
	})
	storetest.Release(t, other, g)
	storetest.Release(t, l, w.Granted(t))
}

// TestWaitThroughAPlannedElection: a leader that hands its office over drops proposals, for which etcd
// has no code. A wait goes on.
func TestWaitThroughAPlannedElection(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	g := storetest.Acquire(t, other, storetest.Request("k"))
	w := storetest.Waits(t, l, storetest.Request("k"))
	dropped := l.kv.once(fate{err: status.Error(codes.Unknown, "raft proposal dropped")}, puts)
	storetest.Release(t, other, g)
	reached(t, dropped)
	storetest.Release(t, l, w.Granted(t))
}

// TestTwoWaitersInOneProcess: unlike two mutexes of one session, they take turns.
func TestTwoWaitersInOneProcess(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	g := storetest.Acquire(t, other, storetest.Request("k"))
	one, two := storetest.Waits(t, l, storetest.Request("k")), storetest.Waits(t, l, storetest.Request("k"))
	storetest.Release(t, other, g)
	first := one.Granted(t)
	storetest.Holds(t, other, first)
	require.Len(t, storetest.Inspect(t, other, "k").Waiters, 1)
	storetest.Release(t, l, first) // a handover
	second := two.Granted(t)
	require.Greater(t, second.Token, first.Token)
	storetest.Holds(t, other, second)
	storetest.Lost(t, l.Release(storetest.Bounded(t), first))
	storetest.Holds(t, other, second)
	storetest.Release(t, l, second)
}

// TestHandoverIsFull: what a handover grants lives for the whole TTL, though its waiter stood
// under a lease of 5 s and that of its grant was last confirmed a while ago, and so does what a
// watch brought.
func TestHandoverIsFull(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	for _, holder := range []*process{l, other} {
		g := storetest.Acquire(t, holder, storetest.Request("k"))
		w := storetest.Waits(t, l, storetest.Request("k"))
		l.Suspend(20 * time.Second)
		storetest.Release(t, holder, g)
		g = w.Granted(t)
		require.Greater(t, g.TTL, 45*time.Second)
		resp, err := cli.TimeToLive(storetest.Bounded(t), leaseOf(t, cli, l.prefix, g.Owner))
		require.NoError(t, err)
		require.Greater(t, resp.TTL, int64(40))
		storetest.Release(t, l, g)
	}
}

// TestClaimWithoutEntry: one whose own entry goes together with the one in front is not granted
// the lock by a claim, which would create an entry with an old token, beside the next in line.
func TestClaimWithoutEntry(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	g := storetest.Acquire(t, other, storetest.Request("k"))
	w := storetest.Waits(t, l, storetest.Request("k"))
	behind := storetest.Waits(t, other, storetest.Request("k"))
	_, err := cli.Txn(storetest.Bounded(t)).Then(
		clientv3.OpDelete(string(keyOf(t, cli, l.prefix, g.Owner).Key)),
		clientv3.OpDelete(string(keyOf(t, cli, l.prefix, w.Owner).Key))).Commit()
	require.NoError(t, err)
	next := behind.Granted(t)
	storetest.Eventually(t, "the other to line up again", func() bool {
		return len(storetest.Inspect(t, other, "k").Waiters) == 1
	})
	storetest.Holds(t, other, next)
	storetest.Release(t, other, next)
	last := w.Granted(t)
	require.Greater(t, last.Token, next.Token)
	storetest.Holds(t, other, last)
	storetest.Release(t, l, last)
}

// TestLastInLineDeletedByHand: the tail names the last in line, whose key an operator deletes, and
// nothing else. It lines up again, and must not wait for itself.
func TestLastInLineDeletedByHand(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	g := storetest.Acquire(t, other, storetest.Request("k"))
	w := storetest.Waits(t, l, storetest.Request("k"))
	place := keyOf(t, cli, l.prefix, w.Owner)
	_, err := cli.Delete(storetest.Bounded(t), string(place.Key))
	require.NoError(t, err)
	storetest.Eventually(t, "it to line up again", func() bool {
		return len(storetest.Inspect(t, other, "k").Waiters) == 1
	})
	storetest.Release(t, other, g)
	storetest.Release(t, l, w.Granted(t))
}

// TestPlaceIsKept: who waits for longer than the heartbeat does not lose its place.
func TestPlaceIsKept(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	g := storetest.Acquire(t, other, storetest.Request("k"))
	w := storetest.Waits(t, l, storetest.Request("k"))
	before := revisionOf(t, cli, l.prefix, w.Owner)
	time.Sleep(9 * time.Second)
	require.Equal(t, before, revisionOf(t, cli, l.prefix, w.Owner))
	storetest.Release(t, other, g)
	storetest.Release(t, l, w.Granted(t))
}

// TestPlaceUnderAnOldLease: the etcd lease that a process waits under was last confirmed a while ago, and
// ends before the first recheck. So who lines up under it has it confirmed at once, and so has one
// who is woken in vain, as a writer behind readers, since that puts the recheck off.
func TestPlaceUnderAnOldLease(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	wait := func() *storetest.Waiting { return storetest.Waits(t, l, storetest.Request("k")) }
	leave := func(w *storetest.Waiting) {
		w.Cancel()
		w.End(t)
		storetest.Release(t, l, lock.Grant{Key: "k", Owner: w.Owner})
	}
	storetest.Acquire(t, other, storetest.Shared(storetest.Request("k")))
	for _, woken := range []bool{false, true} {
		storetest.Fastest(t, "a keepalive", 1500*time.Millisecond, func() time.Duration { // no recheck is as soon
			last := storetest.Acquire(t, other, storetest.Shared(storetest.Request("k")))
			begun, w := time.Now(), wait()
			under := leaseOf(t, cli, l.prefix, w.Owner)
			if woken {
				gate := make(chan struct{})
				claims := l.kv.once(fate{gate: gate}, puts)
				l.Suspend(3 * time.Second)
				storetest.Release(t, other, last)
				reached(t, claims)
				_, err := cli.Put(storetest.Bounded(t), l.prefix+"-else", "") // the claim is later than what woke it
				require.NoError(t, err)
				close(gate)
			} else {
				leave(w)
				storetest.Release(t, other, last)
				l.Suspend(3 * time.Second)
				begun, w = time.Now(), wait()
			}
			defer leave(w)
			storetest.Eventually(t, "a keepalive", func() bool { return l.LivesFor(5*time.Second) > 4*time.Second })
			if took := time.Since(begun); leaseOf(t, cli, l.prefix, w.Owner) == under {
				return took
			}
			return storetest.Patience // a busy machine has let it grow too old, and there is another
		})
	}
}

// TestNameOfAnotherInOneProcess: when the reply to a line-up arrives, the one in front has gone, the
// watch has told that already, and its name is in use again by one whose own request is still on
// its way. That one stands behind: nobody may take it for the one in front.
func TestNameOfAnotherInOneProcess(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	var ends []lock.Grant
	var waits []*storetest.Waiting
	for _, key := range []string{"a", "z"} { // so that the watch sees all between them
		ends = append(ends, storetest.Acquire(t, other, storetest.Request(key)))
		waits = append(waits, storetest.Waits(t, l, storetest.Request(key)))
	}
	g := storetest.Acquire(t, l, storetest.Request("k"))
	name := string(keyOf(t, cli, l.prefix, g.Owner).Key)

	back, gate := make(chan struct{}), make(chan struct{})
	sent := l.kv.once(fate{back: back}, puts)
	first := storetest.Begin(t, l, storetest.Request("k"))
	reached(t, sent)
	storetest.Eventually(t, "the first in line", func() bool { return len(storetest.Inspect(t, other, "k").Waiters) == 1 })
	storetest.Release(t, l, g)
	storetest.Release(t, other, ends[1])
	last := waits[1].Granted(t) // the watch is past the end of g
	sent = l.kv.once(fate{gate: gate}, puts)
	second := storetest.Begin(t, l, storetest.Request("k"))
	reached(t, sent)
	close(back)
	time.Sleep(100 * time.Millisecond) // for the first to learn where it stands
	close(gate)

	storetest.Release(t, l, first.Granted(t))
	next := second.Granted(t)
	require.Equal(t, name, string(keyOf(t, cli, l.prefix, next.Owner).Key))
	storetest.Release(t, l, next)
	storetest.Release(t, l, last)
	storetest.Release(t, other, ends[0])
	storetest.Release(t, l, waits[0].Granted(t))
}

// TestNameOfAnother: the wake-up gets lost, and the name of the entry in front is in use again
// by one behind. A look must not take that one for the one in front.
func TestNameOfAnother(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	g := storetest.Acquire(t, other, storetest.Request("k"))
	w := storetest.Waits(t, l, storetest.Request("k"))
	l.deaf.set(true)
	storetest.Release(t, other, g)
	behind := storetest.Waits(t, other, storetest.Request("k"))
	storetest.Release(t, l, w.Granted(t))
	storetest.Release(t, other, behind.Granted(t))
}

// TestNameOfAKeyThatCameBack: a backup was restored, say, and in it there is a key of an owner long
// gone, of whose name the Locker believes that it is free. Nobody takes that key for its own.
func TestNameOfAKeyThatCameBack(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	for _, wait := range []bool{false, true} {
		g := storetest.Acquire(t, l, storetest.Request("k"))
		old := keyOf(t, cli, l.prefix, g.Owner)
		storetest.Release(t, l, g)
		_, err := cli.Put(storetest.Bounded(t), string(old.Key), string(old.Value))
		require.NoError(t, err)
		if wait {
			w := storetest.Waits(t, l, storetest.Request("k"))
			require.NoError(t, other.ForceRelease(storetest.Bounded(t), "k", g.Owner))
			storetest.Release(t, l, w.Granted(t))
			continue
		}
		require.Equal(t, g.Owner, storetest.Refused(t, l, storetest.Request("k")).Holders[0].Owner)
		require.NoError(t, other.ForceRelease(storetest.Bounded(t), "k", g.Owner))
	}
}

// TestWaitBehindWhatAnotherRenews: a grant has ended in the books of its Locker, since another renews
// it. Who waits for it in the first waits like everybody, without a request after another.
func TestWaitBehindWhatAnotherRenews(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	lost := make(chan lock.LostReason, 1)
	req := storetest.Lasting(storetest.Request("k"), 6*time.Second)
	req.Lost = func(r lock.LostReason) { lost <- r }
	g := storetest.Acquire(t, l, req)
	g.TTL = time.Minute
	g = storetest.Renew(t, other, g)
	told(t, lost)
	storetest.Eventually(t, "the grant to be forgotten", func() bool { return l.Unpruned() == 0 })
	w := storetest.Waits(t, l, storetest.Request("k"))
	storetest.Release(t, other, g)
	storetest.Release(t, l, w.Granted(t))
}

// TestUndoOfTheHandedOver: a waiter is undone while a handover to it is answered. Its Acquire returns.
func TestUndoOfTheHandedOver(t *testing.T) {
	t.Parallel()
	storetest.Eventually(t, "a handover", func() bool { // a busy machine may be too slow to make one
		l, other, cli := pair(t)
		g := storetest.Acquire(t, l, storetest.Request("k"))
		w := storetest.Waits(t, l, storetest.Request("k"))
		held, back := string(keyOf(t, cli, l.prefix, g.Owner).Key), make(chan struct{})
		handed := l.kv.every(fate{back: back}, func(t txn) bool { return puts(t) && slices.Contains(t.deletes, held) })
		released, ctx := make(chan error, 1), storetest.Bounded(t)
		go func() { released <- l.Release(ctx, g) }()
		storetest.Eventually(t, "the release", func() bool {
			holders := storetest.Inspect(t, other, "k").Holders
			return len(holders) == 0 || holders[0].Owner == w.Owner
		})
		storetest.Release(t, l, lock.Grant{Key: "k", Owner: w.Owner})
		close(back)
		require.NoError(t, storetest.Receive(t, released))
		w.End(t)
		select {
		case <-handed:
			require.ErrorIs(t, w.Err, lock.ErrReleased)
			return true
		default:
			return false
		}
	})
}

// TestHandoverOfWhatIsGone: a waiter hears of a handover when it has found that entry gone, and before it has
// another. That is no grant: it lines up anew.
func TestHandoverOfWhatIsGone(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	gate := make(chan struct{})
	defer close(gate)
	enters := l.kv.once(fate{gate: gate}, puts)
	w := storetest.Begin(t, l, storetest.Request("k"))
	reached(t, enters)
	l.HandOver("k", w.Owner, 1)
	g := w.Granted(t)
	require.NotZero(t, g.Token)
	storetest.Holds(t, other, g)
	storetest.Release(t, l, g)
}

// TestBehindALostGrant: when the reply to a line-up arrives, the watch has told already that the grant in
// front is gone, and its Locker has yet to prune it. That brings no other wake-up, and none is missed.
func TestBehindALostGrant(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	lost := make(chan lock.LostReason, 1)
	req := storetest.Request("k")
	req.Lost = func(r lock.LostReason) { lost <- r }
	g := storetest.Acquire(t, l, req)
	time.Sleep(3 * etcd.WatchDelay)
	held := string(keyOf(t, cli, l.prefix, g.Owner).Key)
	back, gate, prunes := make(chan struct{}), make(chan struct{}), make(chan struct{})
	defer close(gate)
	pruning := sync.OnceFunc(func() { close(prunes) })
	l.kv.set(func(t txn) fate { // under a mutex
		switch {
		case slices.Contains(t.puts, l.prefix+"k/l"):
			return fate{back: back}
		case slices.Contains(t.deletes, held):
			pruning()
			return fate{gate: gate}
		}
		return fate{}
	})
	w := storetest.Begin(t, l, storetest.Request("k"))
	storetest.Eventually(t, "a place in line", func() bool { return len(storetest.Inspect(t, other, "k").Waiters) == 1 })
	require.NoError(t, other.ForceRelease(storetest.Bounded(t), "k", g.Owner))
	require.Equal(t, lock.ReasonForced, told(t, lost))
	reached(t, prunes)
	close(back)
	w.Granted(t)
	require.False(t, l.Deaf())
}

// TestWatchThatCatchesUp: a watch that begins in the past has told a part of what has happened since, when
// it must begin anew. It goes on from there.
func TestWatchThatCatchesUp(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	g := storetest.Acquire(t, other, storetest.Request("k"))
	held := storetest.Acquire(t, other, storetest.Request("a"))
	back := make(chan struct{})
	l.kv.every(fate{back: back}, func(t txn) bool { return slices.Contains(t.puts, l.prefix+"k/l") })
	w := storetest.Begin(t, l, storetest.Request("k"))
	storetest.Eventually(t, "a place in line", func() bool { return len(storetest.Inspect(t, other, "k").Waiters) == 1 })
	ctx := storetest.Bounded(t)
	_, err := cli.Put(ctx, l.prefix+"k/z", "")
	require.NoError(t, err)
	_, err = cli.Delete(ctx, l.prefix+"k/z")
	require.NoError(t, err)
	storetest.Release(t, other, g)
	half := l.deaf.catchUp()
	close(back)
	reached(t, half)
	storetest.Waits(t, l, storetest.Request("a")) // the watch must cover that, too
	storetest.Release(t, l, w.Granted(t))
	storetest.Eventually(t, "the rest", func() bool { return !l.Deaf() }) // a busy machine looks before it hears
	storetest.Release(t, other, held)
}
