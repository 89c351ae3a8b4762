package memory_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// Two clients compete as two processes on one server would: for tests of an application.
func ExampleLocker_Open() {
	store := memory.New()
	here, there := lock.New(store), lock.New(store.Open())

	ctx := context.Background()
	lease, err := here.TryLock(ctx, "report")
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = there.TryLock(ctx, "report")
	fmt.Println("taken:", errors.Is(err, lock.ErrHeld))

	if err := lease.Release(ctx); err != nil {
		fmt.Println(err)
	}
	lease, err = there.TryLock(ctx, "report")
	fmt.Println("then:", err)
	if err := lease.Release(ctx); err != nil {
		fmt.Println(err)
	}
	// Output:
	// taken: true
	// then: <nil>
}
