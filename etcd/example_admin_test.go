package etcd_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
)

// An operator looks who holds what, and ends a grant. Its holder knows at once.
func ExampleLocker_ForceRelease() {
	cli := dial()
	defer cli.Close()
	locker := etcd.New(cli, etcd.WithPrefix("example/"))
	defer locker.Close()
	client := lock.New(locker)
	defer client.Close(context.Background())
	ctx := context.Background()
	lease, err := client.Lock(ctx, "job:7", lock.WithMetadata(map[string]string{"host": "a"}))
	if err != nil {
		fmt.Println(err)
		return
	}

	for rec, err := range locker.List(ctx, "job:") {
		if err != nil {
			fmt.Println(err)
			return
		}
		holder := rec.Holders[0]
		fmt.Println(rec.Key, holder.Metadata)
		fmt.Println(locker.ForceRelease(ctx, rec.Key, holder.Owner))
	}
	<-lease.Context().Done()
	fmt.Println(errors.Is(lease.Err(), lock.ErrLost))
	// Output:
	// job:7 map[host:a]
	// <nil>
	// true
}
