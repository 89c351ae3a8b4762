package zookeeper_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/zookeeper"
)

// A holder froze between its read and its write, and lost the lock meanwhile. Its successor
// has read, so its write is refused, in the transaction in which it would have been done.
func ExampleFence_Multi() {
	conn, _, err := zk.Connect(servers(), 10*time.Second, zk.WithLogInfo(false))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	ctx := context.Background()
	fence := zookeeper.NewFence(conn)
	const frozen, successor lock.Token = 33, 34 // Lease.Token of one and of the other
	_, err = fence.Multi(ctx, "leader", frozen, &zk.CreateRequest{
		Path: "/leader", Data: []byte("web-3"), Acl: zk.WorldACL(zk.PermAll), Flags: zk.FlagEphemeral,
	})
	fmt.Println(err)

	_, stat, err := fence.Get(ctx, "leader", successor, "/leader")
	fmt.Println(err)
	_, err = fence.Multi(ctx, "leader", frozen, &zk.SetDataRequest{Path: "/leader", Data: []byte("web-3 again"), Version: -1})
	fmt.Println(errors.Is(err, lock.ErrStale), err)
	_, err = fence.Multi(ctx, "leader", successor, &zk.SetDataRequest{Path: "/leader", Data: []byte("web-4"), Version: stat.Version})
	fmt.Println(err)
	// Output:
	// <nil>
	// <nil>
	// true lock: stale token 33 for "leader": 34 has been seen
	// <nil>
}
