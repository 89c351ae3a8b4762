package tiers_test

import (
	"context"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
	"github.com/seed-215fdefa/lock/tiers"
)

// Payments are locked in a store that survives a failover, carts in a fast one.
func ExampleNew() {
	safe, fast := memory.New(), memory.New() // such as those of packages etcd and redis
	client := lock.New(tiers.New(
		tiers.Prefix("payment:", safe),
		tiers.Prefix("cart:", fast),
	))

	ctx := context.Background()
	err := client.Do(ctx, "payment:42", func(context.Context, *lock.Lease) error {
		rec, err := safe.Inspect(ctx, "payment:42")
		fmt.Println("held in the safe one:", rec.HolderCount, err)
		return nil
	})
	fmt.Println(err)
	fmt.Println(client.TryDo(ctx, "card:42", func(context.Context, *lock.Lease) error { return nil }))
	// Output:
	// held in the safe one: 1 <nil>
	// <nil>
	// lock: trydo "card:42": invalid: key "card:42" begins with none of the prefixes "cart:", "payment:"
}
