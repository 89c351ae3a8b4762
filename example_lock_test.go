package lock_test

import (
	"context"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// Where a function does not fit, a Lease is released by hand.
func ExampleLock() {
	lock.SetDefault(lock.New(memory.New()))
	defer lock.SetDefault(nil)
	ctx := context.Background()

	l, err := lock.Lock(ctx, "printer")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("held:", l.Err() == nil)
	if err := l.Release(ctx); err != nil {
		fmt.Println(err)
	}
	fmt.Println("then:", l.Err())
	fmt.Println("its context ended with:", context.Cause(l.Context()))
	// Output:
	// held: true
	// then: lock: released
	// its context ended with: lock: released
}
