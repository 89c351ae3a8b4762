package lock_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// Readers hold a key beside one another, writers alone.
func ExampleWithShared() {
	c := lock.New(memory.New())
	ctx := context.Background()

	err := c.Do(ctx, "catalog", func(context.Context, *lock.Lease) error {
		_, err := c.TryLock(ctx, "catalog")
		fmt.Println("a writer is refused:", errors.Is(err, lock.ErrHeld))
		return c.TryDo(ctx, "catalog", func(context.Context, *lock.Lease) error {
			fmt.Println("a second reader is not")
			return nil
		}, lock.WithShared())
	}, lock.WithShared())
	fmt.Println(err)
	// Output:
	// a writer is refused: true
	// a second reader is not
	// <nil>
}
