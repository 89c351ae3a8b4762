package lock_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// WithWait bounds the time in line; whoever gave up knows who was in front.
func ExampleWithWait() {
	c := lock.New(memory.New())
	ctx := context.Background()

	l, err := c.Lock(ctx, "disk", lock.WithMetadata(map[string]string{"job": "backup"}))
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = c.Lock(ctx, "disk", lock.WithWait(time.Second))
	var held *lock.HeldError
	if errors.As(err, &held) {
		fmt.Println("held for", held.Record.Holders[0].Metadata["job"])
	}
	fmt.Println("a deadline of ctx:", errors.Is(err, context.DeadlineExceeded))
	fmt.Println(l.Release(ctx))
	// Output:
	// held for backup
	// a deadline of ctx: false
	// <nil>
}
