package lock_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

func ExampleTryLock() {
	lock.SetDefault(lock.New(memory.New()))
	defer lock.SetDefault(nil)
	ctx := context.Background()

	l, err := lock.TryLock(ctx, "printer")
	fmt.Println("first:", err)
	_, err = lock.TryLock(ctx, "printer")
	fmt.Println("second, held:", errors.Is(err, lock.ErrHeld))
	fmt.Println("release:", l.Release(ctx))
	// Output:
	// first: <nil>
	// second, held: true
	// release: <nil>
}
