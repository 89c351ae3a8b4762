package lock_test

import (
	"context"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// A follower finds the leader by the metadata of its lock.
func ExampleClient_Watch() {
	store := memory.New()
	follower, leader := lock.New(store), lock.New(store.Open())
	ctx := context.Background()
	for record, err := range follower.Watch(ctx, "billing") {
		if err != nil {
			fmt.Println(err)
			return
		}
		if len(record.Holders) > 0 {
			fmt.Println("the leader is at", record.Holders[0].Metadata["address"])
			break // or go on, to hear of the next one
		}
		fmt.Println("nobody leads")
		address := map[string]string{"address": "10.0.0.7:80"}
		if _, err := leader.TryLock(ctx, "billing", lock.WithMetadata(address)); err != nil {
			fmt.Println(err)
			return
		}
	}
	// Output:
	// nobody leads
	// the leader is at 10.0.0.7:80
}
