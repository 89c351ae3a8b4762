package redlock_test

import (
	"context"
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

// TestReleaseWakes: a release lets the next in line of the same process try at once, and so does
// a waiter that gives up. Without it they would look in a quarter of a minute, or later.
func TestReleaseWakes(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t, redlock.WithPoll(time.Minute, time.Minute))
	g := storetest.Acquire(t, p, storetest.Request("k"))
	quitter := storetest.Waits(t, p, storetest.Request("k"))
	first, second := storetest.Waits(t, p, storetest.Request("k")), storetest.Waits(t, p, storetest.Request("k"))
	quitter.Cancel()
	quitter.End(t)
	for _, next := range []*storetest.Waiting{first, second} {
		storetest.Release(t, p, g)
		h := next.Granted(t)
		require.Greater(t, h.Token, g.Token)
		g = h
	}
	storetest.Release(t, p, g)
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

// TestCrowdOnFrozenNodes: who comes while the first in line has no answer yet is not told that
// the lock is held, and waits no longer than that one.
func TestCrowdOnFrozenNodes(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	p := w.ready(t, redlock.WithTimeout(500*time.Millisecond))
	w.pause()
	defer w.resume()
	ctx, cancel := context.WithTimeout(t.Context(), lock.Patience/2)
	defer cancel()
	done := make(chan error)
	const crowd = 20
	for range crowd {
		go func() {
			req := storetest.Request("k")
			req.Wait = true
			_, err := p.Acquire(ctx, req)
			done <- err
		}()
	}
	for range crowd {
		err := <-done
		require.ErrorIs(t, err, redlock.ErrNoQuorum)
		require.NotErrorIs(t, err, lock.ErrHeld)
	}
	require.NoError(t, ctx.Err())
}
