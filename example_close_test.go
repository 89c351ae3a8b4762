package lock_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// At shutdown the functions of Do are told to stop, and what is held is released at once,
// so that others need not wait for the TTL.
func ExampleClient_Close() {
	store := memory.New()
	c := lock.New(store)
	working, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Do(context.Background(), "job", func(ctx context.Context, _ *lock.Lease) error {
			close(working)
			<-ctx.Done()
			fmt.Println("stopping:", errors.Is(context.Cause(ctx), lock.ErrClosed))
			return ctx.Err()
		})
	}()
	<-working

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	fmt.Println("closed:", c.Close(ctx))
	<-done
	_, err := lock.New(store).TryLock(ctx, "job")
	fmt.Println("the next holder:", err)
	// Output:
	// stopping: true
	// closed: <nil>
	// the next holder: <nil>
}
