package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

// FrozenServer freezes the store right after an acquire. The lease must end before the
// store's own expiry, which is a TTL after it got the request: later than the look at the
// clock before Lock. After the thaw another gets the lock with a greater token, and the
// first holder's late calls change nothing.
func FrozenServer(t *testing.T, holder, rival lock.Locker, ttl time.Duration, freeze, thaw func()) {
	t.Helper()
	const key = "frozen server"
	ctx := Bounded(t)
	c := lock.New(holder, lock.WithTTL(ttl), lock.WithDrift(ttl/4)) // more than a busy machine's timers are late
	asked := time.Now()
	lease, err := c.Lock(ctx, key)
	require.NoError(t, err)
	owner := Inspect(t, holder, key).Holders[0].Owner

	freeze()
	ended := make(chan time.Time, 1)
	context.AfterFunc(lease.Context(), func() { ended <- time.Now() })
	select {
	case at := <-ended:
		require.Less(t, at.Sub(asked), ttl, "the lease outlived its key")
	case <-time.After(ttl + Patience):
		thaw()
		require.FailNow(t, "the lease does not end while the server is frozen")
	}
	require.Equal(t, lock.Unreachable, Lost(t, lease.Err()))
	require.Equal(t, lease.Err(), context.Cause(lease.Context()))
	thaw()

	next := Await(t, rival, Lasting(Request(key), time.Minute))
	require.Greater(t, next.Token, lease.Token())
	Lost(t, lease.Release(ctx))
	stale := lock.Grant{Key: key, Owner: owner, Token: lease.Token(), TTL: ttl, Start: time.Now()}
	Lost(t, holder.Release(ctx, stale))
	_, err = holder.Renew(ctx, stale)
	Lost(t, err)
	Holds(t, rival, next)
	Release(t, rival, next)
	require.NoError(t, c.Close(ctx))
}

// Await acquires, standing in line if it must.
func Await(tb testing.TB, l lock.Locker, req lock.Request) lock.Grant {
	tb.Helper()
	req.Wait = true
	return Acquire(tb, l, req)
}
