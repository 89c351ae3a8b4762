package lock_test

import (
	"context"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// Of many replicas that want to do the same thing now, one does it.
func ExampleTryDo() {
	lock.SetDefault(lock.New(memory.New()))
	defer lock.SetDefault(nil)
	ctx := context.Background()

	report := func(context.Context, *lock.Lease) error {
		fmt.Println("one replica writes the report")
		err := lock.TryDo(ctx, "report:2026-11", func(context.Context, *lock.Lease) error {
			fmt.Println("so does another")
			return nil
		})
		fmt.Println("another leaves it alone:", lock.Refused(err, "report:2026-11"))
		return nil
	}
	if err := lock.TryDo(ctx, "report:2026-11", report); err != nil {
		fmt.Println(err)
	}
	// Output:
	// one replica writes the report
	// another leaves it alone: true
}
