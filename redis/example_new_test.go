package redis_test

import (
	"context"
	"fmt"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/redis"
)

// A Locker makes a Client, with which all the rest is done. Any client of go-redis will do
// that has one server, Sentinel or a Cluster behind it.
func ExampleNew() {
	rdb := goredis.NewUniversalClient(&goredis.UniversalOptions{Addrs: []string{serverAddr()}})
	defer rdb.Close()
	locker := redis.New(rdb)
	defer locker.Close()
	client := lock.New(locker)
	defer client.Close(context.Background())

	err := client.Do(context.Background(), "order:123", func(_ context.Context, l *lock.Lease) error {
		fmt.Println("only one of us does this, with a token:", l.Token() > 0)
		return nil
	})
	fmt.Println(err)
	// Output:
	// only one of us does this, with a token: true
	// <nil>
}
