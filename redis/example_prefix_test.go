package redis_test

import (
	"context"
	"errors"
	"fmt"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/redis"
)

// Two applications on one server keep their locks apart by a prefix.
func ExampleWithPrefix() {
	rdb := goredis.NewClient(&goredis.Options{Addr: serverAddr()})
	defer rdb.Close()
	shop, blog := redis.New(rdb, redis.WithPrefix("shop:")), redis.New(rdb, redis.WithPrefix("blog:"))
	defer shop.Close()
	defer blog.Close()
	ctx := context.Background()
	try := func(l *redis.Locker) error {
		client := lock.New(l)
		defer client.Close(ctx) // releases what is left
		_, err := client.TryLock(ctx, "nightly")
		return err
	}

	held := lock.New(shop)
	defer held.Close(ctx)
	if _, err := held.TryLock(ctx, "nightly"); err != nil {
		fmt.Println(err)
	}
	fmt.Println("shop:", errors.Is(try(shop), lock.ErrHeld))
	fmt.Println("blog:", try(blog))
	// Output:
	// shop: true
	// blog: <nil>
}
