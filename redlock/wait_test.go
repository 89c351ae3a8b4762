package redlock_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/redlock"
)

// TestOnePolls: of those who wait in one process, one asks.
func TestOnePolls(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	p := w.ready(t, redlock.WithPoll(100*time.Millisecond, 100*time.Millisecond))
	g := storetest.Acquire(t, p, storetest.Request("k"))
	var all []*storetest.Waiting
	for range 50 {
		all = append(all, storetest.Waits(t, p, storetest.Request("k")))
	}
	before, since := evals(t, w), time.Now()
	time.Sleep(time.Second)
	polls := (evals(t, w) - before) / len(w.servers)
	require.LessOrEqual(t, polls, 2+int(time.Since(since)/(50*time.Millisecond)))

	storetest.Release(t, p, g)
	tokens := []lock.Token{g.Token}
	for _, waiting := range all { // in order, since they are of one process
		g := waiting.Granted(t)
		tokens = append(tokens, g.Token)
		storetest.Release(t, p, g)
	}
	require.IsIncreasing(t, tokens)
}

// TestHandOver: within a process a release and the next grant are one round trip.
func TestHandOver(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	p, other := w.ready(t, redlock.WithPoll(10*time.Second, 10*time.Second)), w.open(t)
	for round, cost := 0, 0; cost != len(w.servers); round++ {
		require.Less(t, round, 1000, "none of them was fast")
		key := fmt.Sprint("k", round)
		g := storetest.Acquire(t, p, storetest.Request(key))
		// Before the next one asks, who could be there before a straggler.
		storetest.Eventually(t, "the stragglers", func() bool { return w.held(t, key) == 5 })
		next := storetest.Waits(t, p, storetest.Request(key))
		before := evals(t, w)
		storetest.Release(t, p, g)
		h := next.Granted(t)
		storetest.Eventually(t, "the stragglers", func() bool { return evals(t, w)-before >= len(w.servers) })
		cost = evals(t, w) - before
		require.Greater(t, h.Token, g.Token)
		storetest.Holds(t, other, h)
		storetest.Lost(t, p.Release(storetest.Bounded(t), g))
		_, err := p.Renew(storetest.Bounded(t), g)
		storetest.Lost(t, err)
		h = storetest.Renew(t, p, h)
		storetest.Refused(t, other, storetest.Request(key))
		storetest.Release(t, p, h)
	}
}

// TestHandOverOfLost: a grant that is over is not handed over, and the waiter gets one of
// its own when it can.
func TestHandOverOfLost(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p, other := w.ready(t), w.open(t)
	ctx := storetest.Bounded(t)
	g := storetest.Acquire(t, p, storetest.Request("k"))
	next := storetest.Waits(t, p, storetest.Request("k"))
	require.NoError(t, other.ForceRelease(ctx, "k", g.Owner))
	h := next.Granted(t)
	behind := storetest.Waits(t, p, storetest.Request("k"))
	storetest.Lost(t, p.Release(ctx, g))
	storetest.Holds(t, other, h)
	storetest.Release(t, p, h)
	storetest.Release(t, p, behind.Granted(t))
}

// TestHandOverToWhoHasLeft: it is undone like any other grant.
func TestHandOverToWhoHasLeft(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p, other := w.ready(t), w.open(t)
	for round := range 30 {
		key := fmt.Sprint("k", round)
		g := storetest.Acquire(t, p, storetest.Request(key))
		next := storetest.Waits(t, p, storetest.Request(key))
		go next.Cancel()
		storetest.Release(t, p, g)
		next.End(t)
		if next.Err == nil {
			storetest.Release(t, p, next.Grant)
		} else {
			storetest.Release(t, p, lock.Grant{Key: key, Owner: next.Owner})
		}
		storetest.Eventually(t, "the key", func() bool {
			_, err := other.Acquire(storetest.Bounded(t), storetest.Request(key))
			return err == nil
		})
	}
}

// TestLinesOfTwoProcesses: one that always has a next in line leaves gaps for the other.
func TestLinesOfTwoProcesses(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	busy, other := w.ready(t), w.ready(t)
	ctx := storetest.Bounded(t)
	stop := make(chan struct{})
	done := make(chan error, 8)
	for range cap(done) {
		go func() {
			for {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				req := storetest.Request("k")
				req.Wait = true
				g, err := busy.Acquire(ctx, req)
				if err == nil {
					err = busy.Release(ctx, g)
				}
				if err != nil {
					done <- err
					return
				}
			}
		}()
	}
	for range 3 {
		storetest.Release(t, other, storetest.Await(t, other, storetest.Request("k")))
	}
	close(stop)
	for range cap(done) {
		require.NoError(t, <-done)
	}
}
