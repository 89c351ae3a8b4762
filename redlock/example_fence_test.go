package redlock_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/redlock"
)

// A holder froze between its read and its write, and lost the lock meanwhile. Its successor
// has read, so its write is refused.
func ExampleNewFence() {
	nodes, closeAll := connect()
	defer closeAll()
	locker := redlock.New(nodes, redlock.WithPrefix("shop:"))
	defer locker.Close()
	client := lock.New(locker)
	ctx := context.Background()
	defer client.Close(ctx)
	nodes[0].Del(ctx, "stock", "fence:{stock}")
	fence := redlock.NewFence(nodes[0])

	frozen, err := client.TryLock(ctx, "stock")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(fence.Set(ctx, "stock", frozen.Token(), 10, 0))
	old := frozen.Token()
	_ = frozen.Release(ctx) // in truth it has expired

	fmt.Println(client.Do(ctx, "stock", func(ctx context.Context, l *lock.Lease) error {
		s, err := fence.Get(ctx, "stock", l.Token())
		if err != nil {
			return err
		}
		n, _ := strconv.Atoi(s)
		fmt.Println(errors.Is(fence.Set(ctx, "stock", old, 9, 0), lock.ErrStale))
		return fence.Set(ctx, "stock", l.Token(), n-1, 0)
	}))
	// Output:
	// <nil>
	// true
	// <nil>
}
