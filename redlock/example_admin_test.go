package redlock_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/redlock"
)

// An operator looks at who holds what, and takes a lock away from a program that is stuck.
func ExampleLocker_ForceRelease() {
	nodes, closeAll := connect()
	defer closeAll()
	locker := redlock.New(nodes, redlock.WithPrefix("office:"))
	defer locker.Close()
	ctx := context.Background()
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
	fmt.Println(errors.Is(lease.Renew(ctx), lock.ErrLost)) // or when it is renewed next
	// Output:
	// report is held by web-3
	// <nil>
	// true
}
