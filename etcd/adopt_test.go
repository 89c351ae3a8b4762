package etcd_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

// TestReaderIsRenewedAsWriter: whoever renews a reader's grant need not say that it is shared, as by the
// JSON of the lock service. Its release hands the lock over to no writer: others read still.
func TestReaderIsRenewedAsWriter(t *testing.T) {
	t.Parallel()
	for _, own := range []bool{true, false} {
		l, other, cli := pair(t)
		first := storetest.Acquire(t, other, storetest.Shared(storetest.Request("k")))
		by := other
		if own {
			by = l
		}
		g := storetest.Acquire(t, by, storetest.Lasting(storetest.Shared(storetest.Request("k")), 15*time.Second))
		w := storetest.Waits(t, l, storetest.Request("k"))
		g.TTL, g.Shared = time.Minute, false
		g = storetest.Renew(t, l, g)
		released := string(keyOf(t, cli, l.prefix, g.Owner).Key)
		looked := l.kv.once(fate{}, func(t txn) bool { // and not a handover
			return puts(t) && !slices.Contains(t.deletes, released)
		})
		storetest.Release(t, l, g)
		select {
		case <-looked:
		case <-w.Done:
			require.FailNow(t, "two hold it", "%v, %v", w.Grant, w.Err)
		case <-time.After(storetest.Patience):
			require.FailNow(t, "it does not look")
		}
		storetest.Holds(t, other, first)
		storetest.Release(t, other, first)
		storetest.Holds(t, other, w.Granted(t))
	}
}

// unanswered gives up a renewal of g that takes it over, when f has befallen what does that and then is done.
func unanswered(t *testing.T, l *process, g lock.Grant, f fate, then func()) {
	t.Helper()
	var looked atomic.Bool
	hit := make(chan struct{})
	tell := sync.OnceFunc(func() { close(hit) })
	l.kv.set(func(t txn) fate { // but not the first, or a copy of it, which finds the revision
		switch {
		case !puts(t):
			return fate{}
		case !looked.Load():
			return fate{heard: func() { looked.Store(true) }}
		}
		tell()
		return f
	})
	ctx, cancel := context.WithCancel(storetest.Bounded(t))
	failed := make(chan error, 1)
	go func() { _, err := l.Renew(ctx, g); failed <- err }()
	reached(t, hit)
	then()
	cancel()
	require.ErrorIs(t, storetest.Receive(t, failed), context.Canceled)
	l.kv.set(nil)
}

// TestPruneOfWhatAnotherRenews: an Acquire is given up that has taken effect, and its owner asks again by way of
// another Locker. It finds its grant, and renews it there. The first Locker, which prunes what the Acquire may have left, leaves that.
func TestPruneOfWhatAnotherRenews(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("warm")))
	req, enters, gate := storetest.Request("k"), entersLine(l, "k"), make(chan struct{})
	l.kv.set(func(t txn) fate { // under a mutex
		switch {
		case enters(t):
			return fate{mute: true, silent: true}
		case deletes(t):
			return fate{gate: gate}
		}
		return fate{}
	})
	ctx, cancel := context.WithCancel(storetest.Bounded(t))
	failed := make(chan error, 1)
	go func() { _, err := l.Acquire(ctx, req); failed <- err }()
	storetest.Eventually(t, "the grant", func() bool { return len(storetest.Inspect(t, other, "k").Holders) == 1 })
	cancel()
	require.ErrorIs(t, storetest.Receive(t, failed), context.Canceled)
	found := storetest.Refused(t, other, req).Holders[0]
	require.Equal(t, req.Owner, found.Owner)
	g := storetest.Renew(t, other, lock.Grant{Key: "k", Owner: req.Owner, Token: found.Token, TTL: req.TTL})
	close(gate)
	storetest.Eventually(t, "the prune", func() bool { return l.Unpruned() == 0 })
	storetest.Holds(t, other, g)
	storetest.Release(t, other, g)
}

// TestAcquireOfWhatAnotherRenews: likewise, and the Acquire is not given up: a copy of its request finds what the
// other Locker has put. It says that the owner holds the lock, and leaves that.
func TestAcquireOfWhatAnotherRenews(t *testing.T) {
	t.Parallel()
	l, other, cli := pair(t)
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("warm")))
	req, enters, gate, sent := storetest.Request("k"), entersLine(l, "k"), make(chan struct{}), false
	l.kv.set(func(t txn) fate { // under a mutex
		switch {
		case !enters(t):
			return fate{}
		case sent:
			return fate{gate: gate}
		}
		sent = true
		return fate{mute: true, silent: true}
	})
	failed, ctx := make(chan error, 1), storetest.Bounded(t)
	go func() { _, err := l.Acquire(ctx, req); failed <- err }()
	storetest.Eventually(t, "the grant", func() bool { return len(storetest.Inspect(t, other, "k").Holders) == 1 })
	token := storetest.Inspect(t, other, "k").Holders[0].Token
	g := storetest.Renew(t, other, lock.Grant{Key: "k", Owner: req.Owner, Token: token, TTL: req.TTL})
	before := keyOf(t, cli, l.prefix, g.Owner)
	close(gate)
	err := storetest.Receive(t, failed)
	var held *lock.HeldError
	require.ErrorAs(t, err, &held)
	require.Equal(t, req.Owner, held.Record.Holders[0].Owner)
	storetest.Eventually(t, "the prune", func() bool { return l.Unpruned() == 0 })
	require.Equal(t, before, keyOf(t, cli, l.prefix, g.Owner))
	storetest.Release(t, other, g)
}

// TestAdoptionWithoutReply: a renewal takes a grant over, its reply is lost, and no other follows. The
// grant ends, though others keep the etcd lease alive that it is under.
func TestAdoptionWithoutReply(t *testing.T) {
	t.Parallel()
	for name, own := range map[string]bool{"of its own, for longer": true, "of another's": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, other, cli := pair(t)
			beside := storetest.Acquire(t, l, storetest.Lasting(storetest.Request("beside"), 20*time.Second))
			by := other
			if own {
				by = l
			}
			g := storetest.Acquire(t, by, storetest.Lasting(storetest.Request("k"), 12*time.Second))
			g.TTL = beside.TTL
			unanswered(t, l, g, fate{mute: true, silent: true}, func() {
				storetest.Eventually(t, "the adoption", func() bool {
					return leaseOf(t, cli, l.prefix, g.Owner) == leaseOf(t, cli, l.prefix, beside.Owner)
				})
			})
			storetest.Eventually(t, "the grant to end", func() bool {
				beside = storetest.Renew(t, l, beside)
				return len(storetest.Inspect(t, other, "k").Holders) == 0
			})
			storetest.Holds(t, other, beside)
		})
	}
}

// TestAdoptionComesLate: a renewal that takes another Locker's grant over is given up, and takes effect when that
// one has renewed it several times. The grant lives for as long as the last of them has promised, and ends then,
// though others keep the etcd lease alive that it is under; also if nobody else does.
func TestAdoptionComesLate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ ended, alone bool }{
		"before its end": {}, "after its end": {ended: true}, "under a lease of its own": {alone: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, other, cli := pair(t)
			const ttl = 8 * time.Second
			beside := storetest.Acquire(t, l, storetest.Lasting(storetest.Request("beside"), ttl))
			g := storetest.Acquire(t, other, storetest.Lasting(storetest.Request("k"), ttl))
			unanswered(t, l, g, fate{late: true, silent: true}, func() {})
			pruned, half := make(chan struct{}), time.After(ttl/2)
			l.kv.once(fate{heard: func() { close(pruned) }}, deletes)
			keep := func() {
				if !c.alone {
					beside = storetest.Renew(t, l, beside)
				}
			}
			for over := false; !over; time.Sleep(100 * time.Millisecond) {
				g = storetest.Renew(t, other, g)
				keep()
				select {
				case <-pruned:
					over = true
				case <-half:
					over = !c.ended
				default:
				}
			}
			g = storetest.Renew(t, other, g)
			l.kv.deliver(t)
			require.Equal(t, leaseOf(t, cli, l.prefix, beside.Owner), leaseOf(t, cli, l.prefix, g.Owner))
			for end := g.Start.Add(g.TTL); ; time.Sleep(50 * time.Millisecond) {
				keep()
				holders := storetest.Inspect(t, other, "k").Holders
				if !time.Now().Before(end) {
					break
				}
				require.Len(t, holders, 1, "%v before the end", time.Until(end))
			}
			storetest.Eventually(t, "the grant to end", func() bool {
				keep()
				return len(storetest.Inspect(t, other, "k").Holders) == 0
			})
		})
	}
}

// TestEndThatAnotherPutOff: a grant has ended in the books of its Locker, since another renews it, and is
// not pruned there yet. It lives all the same: this Locker renews and releases it like any, also if it has
// tried to renew it before, and does not know what has come of that.
func TestEndThatAnotherPutOff(t *testing.T) {
	t.Parallel()
	for _, tried := range []bool{false, true} {
		for _, renew := range []bool{true, false} {
			t.Run(fmt.Sprintf("tried %t, renew %t", tried, renew), func(t *testing.T) {
				t.Parallel()
				endThatAnotherPutOff(t, tried, renew)
			})
		}
	}
}

// TestEndInDoubtThatAnotherPutOff: likewise of a grant whose request was sent twice, with a copy on its way yet.
// Its release leaves what refuses that.
func TestEndInDoubtThatAnotherPutOff(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	const ttl = 6 * time.Second
	beside := storetest.Acquire(t, l, storetest.Lasting(storetest.Request("beside"), ttl)) // keeps the etcd lease alive
	lost := make(chan lock.LostReason, 1)
	req := storetest.Lasting(storetest.Request("k"), ttl)
	req.Lost = func(r lock.LostReason) { lost <- r }
	hit := l.kv.once(fate{late: true}, entersLine(l, "k"))
	g := storetest.Acquire(t, l, req)
	reached(t, hit)
	g.TTL = time.Minute
	g = storetest.Renew(t, other, g)
	l.kv.every(fate{err: errCut}, deletes) // else a prune would leave it
	storetest.Eventually(t, "the end", func() bool {
		beside = storetest.Renew(t, l, beside)
		return len(lost) > 0
	})
	require.Equal(t, lock.ReasonExpired, <-lost)
	g = storetest.Renew(t, l, g)
	l.kv.set(nil)
	storetest.Release(t, l, g)
	l.kv.deliver(t)
	require.Empty(t, storetest.Inspect(t, other, "k").Holders, "a ghost")
}

func endThatAnotherPutOff(t *testing.T, tried, renew bool) {
	t.Helper()
	l, other, _ := pair(t)
	lost := make(chan lock.LostReason, 1)
	req := storetest.Lasting(storetest.Request("k"), 6*time.Second)
	req.Lost = func(r lock.LostReason) { lost <- r }
	g := storetest.Acquire(t, l, req)
	g.TTL = time.Minute
	if tried {
		unanswered(t, l, g, fate{late: true, silent: true}, func() {})
	}
	g = storetest.Renew(t, other, g)
	gate := make(chan struct{})
	prunes := l.kv.once(fate{gate: gate}, deletes)
	require.Equal(t, lock.ReasonExpired, told(t, lost))
	reached(t, prunes)
	if renew {
		g = storetest.Renew(t, l, g)
	} else {
		storetest.Release(t, l, g)
		g = storetest.Acquire(t, other, storetest.Request("k"))
	}
	close(gate)
	storetest.Eventually(t, "the prune", func() bool { return l.Unpruned() == 0 })
	storetest.Holds(t, other, g)
	storetest.Release(t, other, g)
}
