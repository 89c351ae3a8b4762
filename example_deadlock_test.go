package lock_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// contention is an Observer that tells when a call has to wait.
type contention chan string

func (c contention) Observe(_ context.Context, e lock.Event) {
	if e.Kind == lock.EventContended {
		c <- e.Key
	}
}

// Two callers take two accounts, each in its own order. The one that would close the cycle is
// told of it; the other goes on.
func ExampleDeadlockError() {
	waits := make(contention, 1)
	c := lock.New(memory.New(), lock.WithObserver(waits))
	move := func(context.Context, *lock.Lease) error { return nil }

	ctx, other := context.Background(), make(chan error)
	err := c.Do(ctx, "alice", func(alice context.Context, _ *lock.Lease) error {
		go func() {
			other <- c.Do(ctx, "bob", func(bob context.Context, _ *lock.Lease) error {
				return c.Do(bob, "alice", move)
			})
		}()
		fmt.Println("the other waits for", <-waits)
		return c.Do(alice, "bob", move)
	})
	var deadlock *lock.DeadlockError
	if errors.As(err, &deadlock) {
		for _, w := range deadlock.Deadlock.Cycle {
			fmt.Println("in the cycle:", w.Key)
		}
	}
	fmt.Println("the other:", <-other)
	// Output:
	// the other waits for alice
	// in the cycle: bob
	// in the cycle: alice
	// the other: <nil>
}
