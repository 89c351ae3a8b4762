package storetest

import (
	"cmp"
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
// meanwhile, and all are served with rising tokens, some who have come after the others after those. With
// LOCK_TEST_MANY=1 they are 3,000.
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
	var mu sync.Mutex // guards last, served and errs
	last, served, errs := holder.Token(), 0, []error(nil)
	begun := time.Now()
	lineUp := func(n, least int) { // n more, each to be served after so many
		t.Helper()
		all := lined.Load() + int64(n)
		for range n {
			wg.Go(func() {
				req := Lasting(Request("crowd"), 30*time.Second)
				req.Wait, req.Waiting = true, func(lock.Record) { lined.Add(1) }
				g, err := l.Acquire(ctx, req)
				mu.Lock()
				switch {
				case err != nil:
				case g.Token <= last:
					err = fmt.Errorf("token %d after %d", g.Token, last)
				case served < least:
					err = fmt.Errorf("one of the last was served after %d of %d", served, waiters)
				}
				last = max(last, g.Token)
				served++
				mu.Unlock()
				if g.Token != 0 {
					err = cmp.Or(err, l.Release(ctx, g))
				}
				if err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			})
		}
		for lined.Load() < all && ctx.Err() == nil {
			mu.Lock()
			early := errs
			mu.Unlock()
			require.Empty(t, early)
			time.Sleep(10 * time.Millisecond)
		}
	}
	const late = 8
	lineUp(waiters, 0)
	t.Logf("%d lined up in %v", waiters, time.Since(begun))
	lineUp(late, waiters-waiters/10) // on a starved machine some lose their places
	Eventually(t, "all to be in line", func() bool { return Inspect(t, l, "crowd").WaiterCount == waiters+late })
	require.NoError(t, holder.Renew(ctx))
	begun = time.Now()
	require.NoError(t, holder.Release(ctx))
	wg.Wait()
	t.Logf("served in %v", time.Since(begun))
	require.Empty(t, errs)
	require.NoError(t, c.Close(ctx))
}
