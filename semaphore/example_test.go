package semaphore_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
	"github.com/seed-215fdefa/lock/semaphore"
)

// An API allows four calls at once, from all processes together.
func ExampleSemaphore_Do() {
	client := lock.New(memory.New()) // as all processes have, on a store that they share
	api := semaphore.New(client, "api", 4)

	ctx := context.Background()
	err := api.Do(ctx, 1, func(_ context.Context, permits []semaphore.Permit) error {
		fmt.Println("calls, with slot", permits[0].Slot)
		return nil
	})
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// calls, with slot 0
}

// A migration takes all permits, so that no other process calls meanwhile.
func ExampleSemaphore_TryDo() {
	store := memory.New()
	here := semaphore.New(lock.New(store), "api", 4)
	there := semaphore.New(lock.New(store.Open()), "api", 4)

	ctx := context.Background()
	err := here.Do(ctx, 4, func(context.Context, []semaphore.Permit) error {
		err := there.TryDo(ctx, 1, func(context.Context, []semaphore.Permit) error { return nil })
		fmt.Println("refused:", errors.Is(err, lock.ErrHeld))
		return nil
	})
	fmt.Println(err)
	// Output:
	// refused: true
	// <nil>
}
