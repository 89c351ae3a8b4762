package lock_test

import (
	"context"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// Both accounts are locked, in one order whichever way the money goes. The leases come as the
// keys were given.
func ExampleClient_DoAll() {
	client := lock.New(memory.New())

	from, to := "account:9", "account:7"
	err := client.DoAll(context.Background(), []string{from, to}, func(ctx context.Context, leases []*lock.Lease) error {
		fmt.Println("from", leases[0].Key(), "to", leases[1].Key())
		return ctx.Err()
	})
	if err != nil {
		fmt.Println(err)
	}
	// Output: from account:9 to account:7
}
