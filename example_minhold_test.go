package lock_test

import (
	"context"
	"fmt"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// Two replicas come to the same tick, the second when the job is over.
func ExampleWithMinHold() {
	store := memory.New()
	for _, replica := range []string{"first", "second"} {
		client := lock.New(store)
		err := client.TryDo(context.Background(), "cron:report", func(context.Context, *lock.Lease) error {
			fmt.Println("the", replica, "runs it")
			return nil
		}, lock.WithMinHold(10*time.Second))
		if lock.Refused(err, "cron:report") {
			fmt.Println("the", replica, "does not")
		}
	}
	// Output:
	// the first runs it
	// the second does not
}
