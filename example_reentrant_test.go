package lock_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// A function that takes a lock which its caller holds already is told at once, or, if it
// allows that, runs under the same lease.
func ExampleWithReentrant() {
	c := lock.New(memory.New())

	save := func(ctx context.Context, opts ...lock.Option) error {
		return c.Do(ctx, "account:1", func(_ context.Context, l *lock.Lease) error {
			fmt.Println("saved under", l.Key())
			return nil
		}, opts...)
	}
	err := c.Do(context.Background(), "account:1", func(ctx context.Context, _ *lock.Lease) error {
		fmt.Println("deadlock:", errors.Is(save(ctx), lock.ErrDeadlock))
		return save(ctx, lock.WithReentrant(true))
	})
	fmt.Println(err)
	// Output:
	// deadlock: true
	// saved under account:1
	// <nil>
}
