package redis_test

import (
	"context"
	"fmt"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock/redis"
)

// A step of one's own: sell one, if there is one, in one round trip.
func ExampleFence_Eval() {
	rdb := goredis.NewClient(&goredis.Options{Addr: serverAddr()})
	defer rdb.Close()
	ctx := context.Background()
	rdb.Del(ctx, "tickets", "fence:{tickets}")
	fence := redis.NewFence(rdb)
	fmt.Println(fence.Set(ctx, "tickets", 1, 1, 0))

	const sell = `
		local left = tonumber(redis.call('GET', KEYS[1]) or 0)
		if left < tonumber(ARGV[1]) then return 'sold out' end
		redis.call('DECRBY', KEYS[1], ARGV[1])
		return 'sold'`
	for range 2 {
		fmt.Println(fence.Eval(ctx, 2, sell, []string{"tickets"}, 1))
	}
	// Output:
	// <nil>
	// sold <nil>
	// sold out <nil>
}
