package lock_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// An operator ends the first term. The second one is resigned from.
func ExampleClient_Lead() {
	client := lock.New(memory.New())
	ctx := context.Background()
	terms := 0
	err := client.Lead(ctx, "billing", func(ctx context.Context, l *lock.Lease) error {
		if terms++; terms == 2 {
			fmt.Println("resigns")
			return nil
		}
		_ = client.ForceRelease(context.Background(), l.Key(), l.Owner())
		<-ctx.Done() // the work must stop here
		fmt.Println("lost:", errors.Is(context.Cause(ctx), lock.ErrLost))
		return ctx.Err()
	})
	fmt.Println(terms, "terms, error", err)
	// Output:
	// lost: true
	// resigns
	// 2 terms, error <nil>
}
