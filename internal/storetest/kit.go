// Package storetest has what the tests of all stores share: short forms of the contract's
// calls that fail the test, a holder in a process of its own, and the tests that every
// store must pass beside the public suite.
package storetest

import (
	"context"
	"crypto/rand"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

// Patience is for what takes milliseconds on an idle machine: it is meant to fail hangs.
const Patience = 45 * time.Second

// Bounded returns a context that ends when something hangs, or with the test.
func Bounded(tb testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 6*Patience)
	tb.Cleanup(cancel)
	return ctx
}

// Request asks for a grant that does not end by itself within a test.
func Request(key string) lock.Request {
	return lock.Request{Key: key, Owner: rand.Text(), TTL: time.Minute}
}

// Shared makes req a shared one.
func Shared(req lock.Request) lock.Request {
	req.Shared = true
	return req
}

// Lasting gives req another TTL.
func Lasting(req lock.Request, ttl time.Duration) lock.Request {
	req.TTL = ttl
	return req
}

// Acquire acquires.
func Acquire(tb testing.TB, l lock.Locker, req lock.Request) lock.Grant {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	g, err := l.Acquire(ctx, req)
	require.NoError(tb, err)
	return g
}

// Release releases.
func Release(tb testing.TB, l lock.Locker, g lock.Grant) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	require.NoError(tb, l.Release(ctx, g))
}

// Renew renews.
func Renew(tb testing.TB, l lock.Locker, g lock.Grant) lock.Grant {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	g, err := l.Renew(ctx, g)
	require.NoError(tb, err)
	return g
}

// Inspect inspects.
func Inspect(tb testing.TB, l lock.Locker, key string) lock.Record {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	rec, err := l.Inspect(ctx, key)
	require.NoError(tb, err)
	return rec
}

// Holds checks that g, and nobody else, has its key.
func Holds(tb testing.TB, l lock.Locker, g lock.Grant) {
	tb.Helper()
	rec := Inspect(tb, l, g.Key)
	require.Len(tb, rec.Holders, 1)
	require.Equal(tb, g.Owner, rec.Holders[0].Owner)
	require.Equal(tb, g.Token, rec.Holders[0].Token)
}

// Refused checks that req is ErrHeld, and returns what that says.
func Refused(tb testing.TB, l lock.Locker, req lock.Request) lock.Record {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	_, err := l.Acquire(ctx, req)
	require.ErrorIs(tb, err, lock.ErrHeld)
	var held *lock.HeldError
	require.ErrorAs(tb, err, &held)
	return held.Record
}

// Lost checks that err is a loss, and returns the reason.
func Lost(tb testing.TB, err error) lock.LostReason {
	tb.Helper()
	var lost *lock.LostError
	require.ErrorAs(tb, err, &lost)
	require.ErrorIs(tb, err, lock.ErrLost)
	return lost.Reason
}

// Fastest runs try until it takes less than limit, once: what a sound store always does in
// less, a starved machine may do in more, several times.
func Fastest(tb testing.TB, what string, limit time.Duration, try func() time.Duration) {
	tb.Helper()
	var took []time.Duration
	for range 10 {
		took = append(took, try())
		if took[len(took)-1] < limit {
			return
		}
	}
	require.FailNow(tb, what, "it took %v, each time longer than %v", took, limit)
}

// Eventually looks again and again until it sees what it wants.
func Eventually(tb testing.TB, what string, look func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(Patience); !look(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.FailNow(tb, "waited in vain for "+what)
		}
	}
}

// Waiting is an Acquire that stands in line.
type Waiting struct {
	Owner  string
	Cancel context.CancelFunc
	Done   chan struct{} // closed when it has returned
	Grant  lock.Grant    // after Done
	Err    error         // after Done
}

// Begin starts an Acquire that waits.
func Begin(tb testing.TB, l lock.Locker, req lock.Request) *Waiting {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &Waiting{Owner: req.Owner, Cancel: cancel, Done: make(chan struct{})}
	req.Wait = true
	go func() {
		defer close(w.Done)
		w.Grant, w.Err = l.Acquire(ctx, req)
	}()
	tb.Cleanup(func() {
		cancel()
		w.End(tb)
	})
	return w
}

// Waits starts an Acquire and returns when it has said that it waits.
func Waits(tb testing.TB, l lock.Locker, req lock.Request) *Waiting {
	tb.Helper()
	queued := make(chan struct{})
	req.Waiting = func(lock.Record) { close(queued) }
	w := Begin(tb, l, req)
	select {
	case <-queued:
	case <-w.Done:
		require.FailNow(tb, "it does not wait", "%v, %v", w.Grant, w.Err)
	case <-time.After(Patience):
		require.FailNow(tb, "it neither waits nor returns")
	}
	return w
}

// End returns when the Acquire has.
func (w *Waiting) End(tb testing.TB) {
	tb.Helper()
	select {
	case <-w.Done:
	case <-time.After(Patience):
		require.FailNow(tb, "Acquire does not return")
	}
}

// Granted returns what the Acquire was granted.
func (w *Waiting) Granted(tb testing.TB) lock.Grant {
	tb.Helper()
	w.End(tb)
	require.NoError(tb, w.Err)
	return w.Grant
}

// Receive returns the next value of c.
func Receive[T any](tb testing.TB, c <-chan T) T {
	tb.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(Patience):
		tb.Fatal("waited in vain for a value")
		panic("unreachable")
	}
}
