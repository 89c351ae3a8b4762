package lock_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// The function's ctx ends when the lock is lost, and Do says so, whatever the function
// returns. Here an operator takes the lock away.
func ExampleClient_Do() {
	store := memory.New()
	c := lock.New(store)
	ctx := context.Background()

	err := c.Do(ctx, "migration", func(ctx context.Context, _ *lock.Lease) error {
		if err := takeAway(store, "migration"); err != nil {
			return err
		}
		<-ctx.Done()
		fmt.Println("stopping:", errors.Is(context.Cause(ctx), lock.ErrLost))
		return nil
	})
	var lost *lock.LostError
	if errors.As(err, &lost) {
		fmt.Println("lost:", lost.Reason)
	}
	// Output:
	// stopping: true
	// lost: forced
}

func takeAway(store lock.Locker, key string) error {
	ctx := context.Background()
	admin, ok := lock.As[lock.Admin](store)
	if !ok {
		return lock.ErrUnsupported
	}
	r, err := store.Inspect(ctx, key)
	if err != nil {
		return err
	}
	return admin.ForceRelease(ctx, key, r.Holders[0].Owner)
}
