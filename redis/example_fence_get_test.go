package redis_test

import (
	"context"
	"errors"
	"fmt"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/redis"
)

// A value that is not there is goredis.Nil, as of the client itself.
func ExampleFence_Get() {
	rdb := goredis.NewClient(&goredis.Options{Addr: serverAddr()})
	defer rdb.Close()
	ctx := context.Background()
	fence := redis.NewFence(rdb)
	locker := redis.New(rdb)
	defer locker.Close()
	client := lock.New(locker)
	defer client.Close(ctx)

	err := client.Do(ctx, "profile:7", func(ctx context.Context, l *lock.Lease) error {
		name, err := fence.Get(ctx, "profile:7:name", l.Token())
		if errors.Is(err, goredis.Nil) {
			name, err = "nobody", nil
		}
		fmt.Println(name)
		return err
	})
	fmt.Println(err)
	// Output:
	// nobody
	// <nil>
}
