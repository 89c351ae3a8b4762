package redis_test

import (
	"context"
	"fmt"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/redis"
)

// An operator looks at who holds what, and takes a lock away from a program that is stuck.
func ExampleLocker_ForceRelease() {
	rdb := goredis.NewClient(&goredis.Options{Addr: serverAddr()})
	defer rdb.Close()
	locker := redis.New(rdb, redis.WithPrefix("office:"))
	defer locker.Close()
	ctx := context.Background()
	stuck := lock.New(locker, lock.WithMetadata(map[string]string{"host": "web-3"}))
	defer stuck.Close(ctx)
	lease, err := stuck.TryLock(ctx, "report")
	if err != nil {
		fmt.Println(err)
		return
	}

	for record, err := range locker.List(ctx, "rep") {
		if err != nil {
			fmt.Println(err)
			return
		}
		for _, h := range record.Holders {
			fmt.Println(record.Key, "is held by", h.Metadata["host"])
			fmt.Println(locker.ForceRelease(ctx, record.Key, h.Owner))
		}
	}
	<-lease.Context().Done() // it is told at once
	fmt.Println(lease.Renew(ctx) != nil)
	// Output:
	// report is held by web-3
	// <nil>
	// true
}
