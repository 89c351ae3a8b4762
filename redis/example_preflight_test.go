package redis_test

import (
	"context"
	"errors"
	"fmt"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock/redis"
)

// A program that starts may refuse a server that would lose its locks, or just say so.
func ExampleLocker_Preflight() {
	rdb := goredis.NewClient(&goredis.Options{Addr: serverAddr()}) // --appendonly no --save ""
	defer rdb.Close()
	locker := redis.New(rdb)
	defer locker.Close()

	err := locker.Preflight(context.Background())
	fmt.Println(errors.Is(err, redis.ErrUnfit))
	fmt.Println(err)
	// Output:
	// true
	// lock: redis: unfit server: neither append-only file nor snapshots: a restart forgets every lock (tokens rise all the same)
}
