package storetest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

// FrozenServer freezes the store right after an acquire. The lease must end before the
// store's own expiry, which is a TTL after it got the request: later than the look at the
// clock before that was made. After the thaw another gets the lock with a greater token, and the
// first holder's late calls change nothing.
func FrozenServer(t *testing.T, holder, rival lock.Locker, ttl time.Duration, freeze, thaw func()) {
	t.Helper()
	const key = "frozen server"
	ctx := Bounded(t)
	basis := &basis{Locker: holder}
	c := lock.New(basis, lock.WithTTL(ttl), lock.WithDrift(ttl/4)) // more than a busy machine's timers are late
	lease, err := c.Lock(ctx, key)
	require.NoError(t, err)

	freeze()
	ended, rang := make(chan time.Time, 1), make(chan time.Time, 1)
	context.AfterFunc(lease.Context(), func() { ended <- time.Now() })
	alarm := time.AfterFunc(time.Until(basis.since().Add(ttl-ttl/8)), func() { rang <- time.Now() })
	defer alarm.Stop()
	select {
	case at := <-ended:
		if late := at.Sub(basis.since()) - ttl; late >= 0 { // unless a timer of our own was late too
			require.GreaterOrEqual(t, (<-rang).Sub(basis.since()), ttl, "the lease outlived its key by %v", late)
		}
	case <-time.After(ttl + Patience):
		thaw()
		require.FailNow(t, "the lease does not end while the server is frozen")
	}
	if reason := Lost(t, lease.Err()); basis.isAsking() { // a starved machine may have begun no renewal
		require.Equal(t, lock.ReasonUnreachable, reason)
	}
	require.Equal(t, lease.Err(), context.Cause(lease.Context()))
	thaw()

	next := Await(t, rival, Lasting(Request(key), time.Minute))
	require.Greater(t, next.Token, lease.Token())
	Lost(t, lease.Release(ctx))
	require.NoError(t, c.Close(ctx)) // its own release may be under way, and then another is no loss
	stale := basis.g
	stale.Start = time.Now()
	Lost(t, holder.Release(ctx, stale))
	_, err = holder.Renew(ctx, stale)
	Lost(t, err)
	Holds(t, rival, next)
	Release(t, rival, next)
}

// basis is a Locker that notes what the one lease of its Client rests on.
type basis struct {
	lock.Locker
	mu     sync.Mutex // guards the rest
	g      lock.Grant
	asked  time.Time // before the call that brought g
	asking bool      // a renewal has begun, and has not succeeded
}

func (b *basis) since() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked
}

func (b *basis) isAsking() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asking
}

func (b *basis) note(asked time.Time, g lock.Grant, err error) (lock.Grant, error) {
	if err == nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.g, b.asked, b.asking = g, asked, false
	}
	return g, err
}

func (b *basis) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	asked := time.Now()
	g, err := b.Locker.Acquire(ctx, req)
	return b.note(asked, g, err)
}

func (b *basis) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	b.mu.Lock()
	b.asking = true
	b.mu.Unlock()
	asked := time.Now()
	g, err := b.Locker.Renew(ctx, g)
	return b.note(asked, g, err)
}

// Await acquires, standing in line if it must.
func Await(tb testing.TB, l lock.Locker, req lock.Request) lock.Grant {
	tb.Helper()
	req.Wait = true
	return Acquire(tb, l, req)
}
