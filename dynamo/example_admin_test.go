package dynamo_test

import (
	"context"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/dynamo"
)

// An operator looks at who holds what, and takes a lock away from a program that is stuck.
func ExampleLocker_ForceRelease() {
	client, disconnect := connect("example-locks")
	defer disconnect()
	ctx := context.Background()
	locker := dynamo.New(client, "example-locks", dynamo.WithPrefix("office:"))
	defer locker.Close()
	stuck := lock.New(locker, lock.WithMetadata(map[string]string{"host": "web-3"}))
	defer stuck.Close(ctx)
	lease, err := stuck.TryLock(ctx, "report")
	if err != nil {
		fmt.Println(err)
		return
	}

	for record, err := range locker.List(ctx, "rep") {
		if err != nil {
			fmt.Println(err)
			return
		}
		for _, h := range record.Holders {
			fmt.Println(record.Key, "is held by", h.Metadata["host"])
			fmt.Println(locker.ForceRelease(ctx, record.Key, h.Owner))
		}
	}
	fmt.Println(lease.Renew(ctx) != nil) // it is told when it renews
	// Output:
	// report is held by web-3
	// <nil>
	// true
}
