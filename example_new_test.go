package lock_test

import (
	"context"
	"fmt"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// Options given to New are defaults; a call overrides them. What breaks a rule is told
// before anything is sent.
func ExampleNew() {
	c := lock.New(memory.New(),
		lock.WithTTL(30*time.Second),
		lock.WithDrift(time.Second),
		lock.WithBackoff(100*time.Millisecond, 2*time.Second),
	)
	fmt.Println(c.Err())

	ctx := context.Background()
	l, err := c.Lock(ctx, "k", lock.WithTTL(time.Minute))
	if err != nil {
		fmt.Println(err)
		return
	}
	left := time.Until(l.Deadline())
	fmt.Println("exclusive for almost 59 s:", left > 50*time.Second && left <= 59*time.Second)

	_, err = c.Lock(ctx, "k", lock.WithTTL(500*time.Millisecond))
	fmt.Println(err)
	fmt.Println(c.Close(ctx))
	// Output:
	// <nil>
	// exclusive for almost 59 s: true
	// lock: lock "k": invalid: drift 1s with TTL 500ms: drift must be less than the TTL
	// <nil>
}
