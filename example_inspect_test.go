package lock_test

import (
	"context"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// Metadata says who holds a lock and why, to whoever asks.
func ExampleClient_Inspect() {
	c := lock.New(memory.New())
	ctx := context.Background()

	err := c.Do(ctx, "invoice:7", func(ctx context.Context, l *lock.Lease) error {
		r, err := c.Inspect(ctx, "invoice:7")
		if err != nil {
			return err
		}
		h := r.Holders[0]
		fmt.Println(h.Metadata["host"], h.Metadata["why"], h.Token == l.Token())
		return nil
	}, lock.WithMetadata(map[string]string{"host": "web-1", "why": "refund"}))
	fmt.Println(err)
	// Output:
	// web-1 refund true
	// <nil>
}
