package redis_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/redis"
)

// A holder froze between its read and its write, and lost the lock meanwhile. Its successor
// has read, so its write is refused.
func ExampleNewFence() {
	rdb := goredis.NewClient(&goredis.Options{Addr: serverAddr()})
	defer rdb.Close()
	ctx := context.Background()
	rdb.Del(ctx, "stock", "fence:{stock}")
	fence := redis.NewFence(rdb)
	const frozen, successor lock.Token = 33, 34 // Lease.Token of one and of the other
	if err := fence.Set(ctx, "stock", frozen, 10, 0); err != nil {
		fmt.Println(err)
	}

	s, _ := fence.Get(ctx, "stock", successor)
	n, _ := strconv.Atoi(s)
	err := fence.Set(ctx, "stock", frozen, 9, 0)
	fmt.Println(errors.Is(err, lock.ErrStale), err)
	fmt.Println(fence.Set(ctx, "stock", successor, n-1, 0))
	// Output:
	// true lock: stale token 33 for "stock": 34 has been seen
	// <nil>
}
