package bench

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/redis"
)

// compareAndDelete is the well-known release of a bare SET NX lock.
var compareAndDelete = goredis.NewScript(
	`if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("DEL", KEYS[1]) end return 0`)

func connect(t *testing.T) (*goredis.Client, *lock.Client) {
	t.Helper()
	rdb := goredis.NewClient(&goredis.Options{Addr: testserver.Redis(t).Addr(), PoolSize: 600})
	l := redis.New(rdb)
	c := lock.New(l)
	t.Cleanup(func() {
		require.NoError(t, c.Close(context.Background()))
		require.NoError(t, l.Close())
		require.NoError(t, rdb.Close())
	})
	require.NoError(t, c.Err())
	return rdb, c
}

// TestRedisUncontended compares Do with SET NX PX and a compare-and-delete script, each
// caller on a key of its own.
func TestRedisUncontended(t *testing.T) {
	s := scales()
	rdb, c := connect(t)
	ctx := context.Background()
	ours := func(caller, _ int) {
		err := c.Do(ctx, "ours:"+strconv.Itoa(caller), func(context.Context, *lock.Lease) error { return nil })
		if err != nil {
			panic(err)
		}
	}
	bare := func(caller, n int) {
		key, value := "bare:"+strconv.Itoa(caller), strconv.Itoa(n)
		ok, err := rdb.SetNX(ctx, key, value, 15*time.Second).Result()
		if err == nil {
			err = compareAndDelete.Run(ctx, rdb, []string{key}, value).Err()
		}
		if err != nil || !ok {
			panic(fmt.Sprint(ok, err))
		}
	}
	out := table{title: "Redis, uncontended: acquire and release per second", head: []string{"callers", "`Do`", "bare `SET NX` + script", "ratio"}}
	for _, callers := range []int{1, 16, 128, 512} {
		a, b, ratio := pairs(s, callers, ours, bare)
		out.add(strconv.Itoa(callers), fmt.Sprintf("%.0f", a), fmt.Sprintf("%.0f", b), fmt.Sprintf("%.2f", ratio))
	}
	allocations := func(f func(int, int)) string {
		return fmt.Sprintf("%.0f", testing.AllocsPerRun(1000, func() { f(0, 0) }))
	}
	out.add("allocations of one", allocations(ours), allocations(bare), "")
	out.print()
}

// TestRedisContended lets 64 callers fight for one key.
func TestRedisContended(t *testing.T) {
	s := scales()
	rdb, c := connect(t)
	ctx := context.Background()
	ping := func(int, int) {
		if err := rdb.Ping(ctx).Err(); err != nil {
			panic(err)
		}
	}
	const callers = 64
	served := make([]int, callers)
	waits := make([][]time.Duration, callers)
	before := rate(1, s.ping, ping)
	handovers := rate(callers, s.contended, func(caller, _ int) {
		start := time.Now()
		l, err := c.Lock(ctx, "one")
		if err != nil {
			panic(err)
		}
		served[caller]++
		waits[caller] = append(waits[caller], time.Since(start))
		if err := l.Release(ctx); err != nil {
			panic(err)
		}
	})
	pings := (before + rate(1, s.ping, ping)) / 2

	all := slices.Concat(waits...)
	slices.Sort(all)
	var sum time.Duration
	for _, w := range all {
		sum += w
	}
	mean, p99 := sum/time.Duration(len(all)), all[len(all)*99/100]
	least, most := slices.Min(served), slices.Max(served)
	out := table{title: "Redis, 64 callers on one key", head: []string{"what", "measured", "ratio"}}
	out.add("hand-overs per second, to 1/(two PING round trips)", fmt.Sprintf("%.0f, PING %.0f µs", handovers, 1e6/pings), fmt.Sprintf("%.2f", handovers/(pings/2)))
	out.add("least served, to the most served", fmt.Sprintf("%d, %d", least, most), fmt.Sprintf("%.2f", float64(least)/float64(most)))
	out.add("p99 wait, to the mean wait", fmt.Sprintf("%v, %v", p99.Round(10*time.Microsecond), mean.Round(10*time.Microsecond)), fmt.Sprintf("%.2f", float64(p99)/float64(mean)))
	out.print()
}
