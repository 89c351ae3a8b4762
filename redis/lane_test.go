package redis_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

// stat reads a number of INFO stats.
func stat(tb testing.TB, rdb *goredis.Client, name string) int {
	tb.Helper()
	info, err := rdb.Info(bounded(tb), "stats").Result()
	require.NoError(tb, err)
	return storetest.RedisInfo(tb, info, name)
}

// TestSharedRoundTrips: the server reads far less often than it is asked.
func TestSharedRoundTrips(t *testing.T) {
	t.Parallel()
	const callers, rounds = 128, 20
	w := ownWorld(t)
	l := w.open(t)
	acquire(t, l, request("warm up"))
	reads, commands := stat(t, w.rdb, "total_reads_processed"), calls(t, w.rdb, "evalsha")
	var all sync.WaitGroup
	errs := make(chan error, callers)
	for i := range callers {
		all.Go(func() {
			for n := range rounds {
				req := request(fmt.Sprint(i, ":", n))
				g, err := l.Acquire(bounded(t), req)
				if err == nil {
					err = l.Release(bounded(t), g)
				}
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	reads, commands = stat(t, w.rdb, "total_reads_processed")-reads, calls(t, w.rdb, "evalsha")-commands
	require.GreaterOrEqual(t, commands, 2*callers*rounds) // a starved machine has some sent again
	require.Less(t, reads, commands/3, "reads for %d commands", commands)
}

// TestSlowFlight: the reply to one call is held back. Those that come after it go another
// way, and have their answers while it waits.
func TestSlowFlight(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	for _, alreadyFast := range []bool{false, true} {
		if alreadyFast {
			for range 2000 { // enough for any short cut
				inspect(t, l, "k")
			}
		}
		heal := l.net.stall()
		held := make(chan error, 1)
		go func() { _, err := l.Inspect(context.Background(), "k"); held <- err }()
		eventually(t, "a reply that is held back", func() bool { return l.net.stalled() == 1 })
		for i := range 20 {
			g := acquire(t, l, request(fmt.Sprint(alreadyFast, i)))
			renew(t, l, g)
			release(t, l, g)
		}
		if !alreadyFast { // a short cut gives up by itself, and asks again
			select {
			case err := <-held:
				require.FailNow(t, "the reply was not held back", "%v", err)
			default:
			}
		}
		heal()
		require.NoError(t, <-held)
	}
}

// TestSlowFlightCancel: a call whose reply is held back returns when its ctx ends.
func TestSlowFlightCancel(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	l.patient()
	inspect(t, l, "k")
	heal := l.net.stall()
	defer heal()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { _, err := l.Inspect(ctx, "k"); ended <- err }()
	eventually(t, "a reply that is held back", func() bool { return l.net.stalled() == 1 })
	cancel()
	select {
	case err := <-ended:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(patience):
		require.FailNow(t, "the call outlives its ctx")
	}
}

// TestGivenUpBeforeSent: a call that ends while it waits for others' flights has no effect.
func TestGivenUpBeforeSent(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := l.Acquire(ctx, request("k"))
	require.ErrorIs(t, err, context.Canceled)
	rec := inspect(t, other, "k")
	require.Equal(t, lock.Record{Key: "k"}, rec)
}
