package bench

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/redis"
	"github.com/seed-215fdefa/lock/semaphore"
)

// TestRedisSemaphore compares the hand-overs of one key with those of each permit of a
// semaphore, 64 callers at either, whose functions do nothing.
func TestRedisSemaphore(t *testing.T) {
	const permits, callers = 8, 64
	s := scales()
	rdb, first := connect(t)
	clients := []*lock.Client{first}
	for range 3 { // as other processes would
		l := redis.New(rdb)
		c := lock.New(l)
		t.Cleanup(func() {
			require.NoError(t, c.Close(context.Background()))
			require.NoError(t, l.Close())
		})
		clients = append(clients, c)
	}
	ctx := context.Background()
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	out := table{title: "Redis, a semaphore of 8, 64 callers", head: []string{"their", "permits per second, of each of 8", "hand-overs of one key per second", "ratio"}}
	for _, processes := range []int{1, 4} {
		var sems []*semaphore.Semaphore
		for _, c := range clients[:processes] {
			sems = append(sems, semaphore.New(c, "api", permits))
		}
		a, b, ratio := pairs(s, callers,
			func(caller, _ int) {
				must(sems[caller%processes].Do(ctx, 1, func(context.Context, []semaphore.Permit) error { return nil }))
			},
			func(caller, _ int) {
				must(clients[caller%processes].Do(ctx, "one", func(context.Context, *lock.Lease) error { return nil }))
			})
		out.add(fmt.Sprintf("processes: %d", processes), fmt.Sprintf("%.0f", a/permits), fmt.Sprintf("%.0f", b), fmt.Sprintf("%.2f", ratio/permits))
	}
	out.print()
}
