// Readme is the first program of the README. Its other fragments are in the tests.
package main

import (
	"context"
	"fmt"
	"log"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

func main() {
	lock.SetDefault(lock.New(memory.New())) // redis.New(rdb) for more than one process

	ctx := context.Background()
	err := lock.Do(ctx, "order:123", func(ctx context.Context, l *lock.Lease) error {
		// Nobody else is in here with order:123. ctx ends before anybody else can be,
		// and l.Token() lets the storage refuse us if we do not notice.
		fmt.Println("shipping", l.Key())
		return ctx.Err()
	})
	if err != nil {
		log.Fatal(err)
	}
}
