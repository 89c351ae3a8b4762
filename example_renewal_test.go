package lock_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// Without renewal in the background the holder itself says that it is getting on: a hang
// then costs it the lock.
func ExampleWithRenewal() {
	c := lock.New(memory.New())
	ctx := context.Background()

	l, err := c.Lock(ctx, "job", lock.WithRenewal(false), lock.WithTTL(time.Second))
	if err != nil {
		fmt.Println(err)
		return
	}
	for range 3 {
		if err := l.Renew(ctx); err != nil { // after each step
			fmt.Println(err)
		}
	}
	<-l.Context().Done() // it hangs
	var lost *lock.LostError
	if errors.As(l.Err(), &lost) {
		fmt.Println("lost:", lost.Reason)
	}
	// Output:
	// lost: expired
}
