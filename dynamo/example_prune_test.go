package dynamo_test

import (
	"context"
	"fmt"
	"time"

	"github.com/seed-215fdefa/lock/dynamo"
)

// A nightly job deletes the items of locks that nobody has used for a month.
func ExampleLocker_Prune() {
	client, disconnect := connect("example-locks")
	defer disconnect()
	locker := dynamo.New(client, "example-locks")
	defer locker.Close()

	deleted, err := locker.Prune(context.Background(), "", 30*24*time.Hour)
	fmt.Println(deleted, err)
	// Output:
	// 0 <nil>
}
