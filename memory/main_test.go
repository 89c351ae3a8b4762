package memory_test

import (
	"context"
	"crypto/rand"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ttl = 10 * time.Second

// request is one of a new owner.
func request(key string, change ...func(*lock.Request)) lock.Request {
	req := lock.Request{Key: key, Owner: rand.Text(), TTL: ttl}
	for _, f := range change {
		f(&req)
	}
	return req
}

func shared(r *lock.Request)  { r.Shared = true }
func waiting(r *lock.Request) { r.Wait = true }

func withTTL(d time.Duration) func(*lock.Request) {
	return func(r *lock.Request) { r.TTL = d }
}

func onLost(f func(lock.LostReason)) func(*lock.Request) {
	return func(r *lock.Request) { r.Lost = f }
}

// acquire must succeed.
func acquire(t *testing.T, l lock.Locker, req lock.Request) lock.Grant {
	t.Helper()
	g, err := l.Acquire(t.Context(), req)
	require.NoError(t, err)
	return g
}

func release(t *testing.T, l lock.Locker, g lock.Grant) {
	t.Helper()
	require.NoError(t, l.Release(context.WithoutCancel(t.Context()), g))
}

// refused must be, as the key is held, and returns what was told of it.
func refused(t *testing.T, l lock.Locker, req lock.Request) lock.Record {
	t.Helper()
	_, err := l.Acquire(t.Context(), req)
	require.ErrorIs(t, err, lock.ErrHeld)
	var held *lock.HeldError
	require.ErrorAs(t, err, &held)
	return held.Record
}

// gone checks that err is a loss for that reason.
func gone(t *testing.T, why lock.LostReason, err error) {
	t.Helper()
	var lost *lock.LostError
	require.ErrorAs(t, err, &lost)
	require.ErrorIs(t, err, lock.ErrLost)
	require.Equal(t, why.String(), lost.Reason.String())
}

// outcome of an Acquire in a goroutine of its own.
type outcome struct {
	grant lock.Grant
	err   error
}

// start makes req wait in the background and returns when it stands in line. Only in a
// bubble.
func start(ctx context.Context, l lock.Locker, req lock.Request) <-chan outcome {
	c := make(chan outcome, 1)
	req.Wait = true
	go func() {
		g, err := l.Acquire(ctx, req)
		c <- outcome{g, err}
	}()
	synctest.Wait()
	return c
}

// pending checks that nothing has come.
func pending(t *testing.T, c <-chan outcome) {
	t.Helper()
	synctest.Wait()
	select {
	case o := <-c:
		require.Failf(t, "came too early", "%+v", o)
	default:
	}
}

// granted checks that the grant has come, without any time to pass for it.
func granted(t *testing.T, c <-chan outcome) lock.Grant {
	t.Helper()
	synctest.Wait()
	select {
	case o := <-c:
		require.NoError(t, o.err)
		return o.grant
	default:
		require.Fail(t, "not granted")
		return lock.Grant{}
	}
}

// grantedAfter checks that the grant comes when just d has passed.
func grantedAfter(t *testing.T, d time.Duration, c <-chan outcome) lock.Grant {
	t.Helper()
	begin := time.Now()
	o := <-c
	require.NoError(t, o.err)
	require.Equal(t, d, time.Since(begin))
	return o.grant
}

// empty checks that the store has nothing left.
func empty(t *testing.T, l *memory.Locker) {
	t.Helper()
	keys, marks, waiters := memory.Size(l)
	require.Zero(t, keys, "keys")
	require.Zero(t, marks, "marks")
	require.Zero(t, waiters, "waiters")
}

// bubble runs f in fake time on a store of its own, and checks that it leaves nothing.
func bubble(t *testing.T, f func(*testing.T, *memory.Locker)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := memory.New()
		f(t, l)
		synctest.Wait()
		empty(t, l)
	})
}
