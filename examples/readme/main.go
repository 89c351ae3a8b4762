// Readme is the first program of the README. The fragments of README and guides are in the tests.
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
		// Nobody else holds order:123 now. ctx ends if we lose it,
		// and l.Token() lets the storage refuse us if we do not notice.
		fmt.Println("shipping", l.Key())
		return ctx.Err()
	})
	if err != nil {
		log.Fatal(err)
	}
}
