package storetest

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

// Crowd has many of one process wait for one key. All get into line, the holder keeps its lock
// meanwhile, and all are served in order. With LOCK_TEST_MANY=1 they are 3,000.
func Crowd(t *testing.T, l interface {
	lock.Locker
	lock.Admin
}, waiters int,
) {
	t.Helper()
	if os.Getenv("LOCK_TEST_MANY") != "" {
		waiters = 3000
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	c := lock.New(l, lock.WithTTL(30*time.Second)) // a starved machine may renew late
	holder, err := c.Lock(ctx, "crowd")
	require.NoError(t, err)

	var lined atomic.Int64
	var wg sync.WaitGroup
	var mu sync.Mutex // guards last and errs
	last, errs := holder.Token(), []error(nil)
	begun := time.Now()
	for range waiters {
		wg.Go(func() {
			req := Lasting(Request("crowd"), 30*time.Second)
			req.Wait, req.Waiting = true, func(lock.Record) { lined.Add(1) }
			g, err := l.Acquire(ctx, req)
			mu.Lock()
			if err == nil && g.Token <= last {
				err = fmt.Errorf("token %d after %d", g.Token, last)
			}
			last = max(last, g.Token)
			mu.Unlock()
			if err == nil {
				err = l.Release(ctx, g)
			}
			if err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	for lined.Load() < int64(waiters) && ctx.Err() == nil {
		mu.Lock()
		early := errs
		mu.Unlock()
		require.Empty(t, early)
		time.Sleep(10 * time.Millisecond)
	}
	t.Logf("%d lined up in %v", waiters, time.Since(begun))
	require.Equal(t, waiters, Inspect(t, l, "crowd").WaiterCount)
	require.NoError(t, holder.Renew(ctx))
	begun = time.Now()
	require.NoError(t, holder.Release(ctx))
	wg.Wait()
	t.Logf("served in %v", time.Since(begun))
	require.Empty(t, errs)
	require.NoError(t, c.Close(ctx))
}
