package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
)

// A holder froze between its read and its write, and lost the lock meanwhile. Its successor
// has read, so its write is refused.
func ExampleNewFence() {
	cli := dial()
	defer cli.Close()
	ctx := context.Background()
	fence := etcd.NewFence(cli)
	const frozen, successor lock.Token = 33, 34 // Lease.Token of one and of the other
	if err := fence.Put(ctx, "stock", frozen, "10"); err != nil {
		fmt.Println(err)
	}

	s, _, _ := fence.Get(ctx, "stock", successor)
	n, _ := strconv.Atoi(s)
	err := fence.Put(ctx, "stock", frozen, "9")
	fmt.Println(errors.Is(err, lock.ErrStale), err)
	fmt.Println(fence.Put(ctx, "stock", successor, strconv.Itoa(n-1)))
	// Output:
	// true lock: stale token 33 for "stock": 34 has been seen
	// <nil>
}
