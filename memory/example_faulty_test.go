package memory_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// Tests of one's own function under a loss, a contention and an outage.
func ExampleFaulty() {
	store := memory.NewFaulty()
	client := lock.New(store)
	ctx := context.Background()

	// nightly is what is to be tested.
	nightly := func(work func(context.Context) error) string {
		err := client.TryDo(ctx, "nightly", func(ctx context.Context, _ *lock.Lease) error { return work(ctx) })
		switch {
		case lock.Refused(err, "nightly"):
			return "another replica is at it"
		case errors.Is(err, lock.ErrLost):
			return "lost: to be checked by hand"
		case errors.Is(err, lock.ErrUnavailable):
			return "no lock, no work"
		}
		return fmt.Sprint("done: ", err)
	}

	fmt.Println(nightly(func(context.Context) error { return nil }))
	fmt.Println(nightly(func(ctx context.Context) error {
		store.Lose("nightly")
		return ctx.Err()
	}))
	free, _ := store.Occupy("nightly")
	fmt.Println(nightly(func(context.Context) error { return nil }))
	free()
	store.Fail(errors.New("connection refused"))
	fmt.Println(nightly(func(context.Context) error { return nil }))
	store.Heal()

	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	fmt.Println(client.Close(ctx))
	// Output:
	// done: <nil>
	// lost: to be checked by hand
	// another replica is at it
	// no lock, no work
	// <nil>
}
