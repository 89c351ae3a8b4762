package etcd_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// TestCrowd: thousands of one process wait for one key. All are in line within seconds, the holder
// keeps its lock meanwhile, and all are served in order.
func TestCrowd(t *testing.T) {
	const waiters = 3000
	l := openOn(t, testserver.Prefix(), []string{testserver.Etcd(t).Addr()})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	c := lock.New(l, lock.WithTTL(10*time.Second))
	holder, err := c.Lock(ctx, "k")
	require.NoError(t, err)

	var lined, served atomic.Int64
	var wg sync.WaitGroup
	var mu sync.Mutex // guards last and errs
	last, errs := holder.Token(), []error(nil)
	begun := time.Now()
	for range waiters {
		wg.Go(func() {
			req := storetest.Lasting(storetest.Request("k"), 10*time.Second)
			req.Wait, req.Waiting = true, func(lock.Record) { lined.Add(1) }
			g, err := l.Acquire(ctx, req)
			mu.Lock()
			switch {
			case err != nil:
				errs = append(errs, err)
			case g.Token <= last:
				errs = append(errs, fmt.Errorf("token %d after %d", g.Token, last))
			}
			last = max(last, g.Token)
			mu.Unlock()
			if err == nil {
				served.Add(1)
				_ = l.Release(ctx, g)
			}
		})
	}
	for lined.Load() < waiters && ctx.Err() == nil {
		mu.Lock()
		require.Empty(t, errs)
		mu.Unlock()
		time.Sleep(10 * time.Millisecond)
	}
	t.Logf("%d lined up in %v", waiters, time.Since(begun))
	require.Equal(t, waiters, storetest.Inspect(t, l, "k").WaiterCount)
	require.NoError(t, holder.Renew(ctx))
	begun = time.Now()
	require.NoError(t, holder.Release(ctx))
	wg.Wait()
	t.Logf("served in %v", time.Since(begun))
	require.Empty(t, errs)
	require.EqualValues(t, waiters, served.Load())
	require.NoError(t, c.Close(ctx))
}
