package lock_test

import (
	"context"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// A critical section is a function. The token of each hold is greater than the last.
func ExampleDo() {
	lock.SetDefault(lock.New(memory.New()))
	defer lock.SetDefault(nil)

	var last lock.Token
	for range 2 {
		err := lock.Do(context.Background(), "order:123", func(ctx context.Context, l *lock.Lease) error {
			fmt.Println("saving", l.Key(), "with a newer token:", l.Token() > last)
			last = l.Token()
			return ctx.Err()
		})
		if err != nil {
			fmt.Println(err)
		}
	}
	// Output:
	// saving order:123 with a newer token: true
	// saving order:123 with a newer token: true
}
