package etcd_test

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
)

// The fence is a comparison in a transaction of one's own, beside other conditions. Raise
// must be among what is done, so that older tokens are refused from then on.
func ExampleFence_Fresh() {
	cli := dial()
	defer cli.Close()
	ctx := context.Background()
	fence := etcd.NewFence(cli)
	elect := func(token lock.Token, name string) {
		resp, err := cli.Txn(ctx).
			If(fence.Fresh("config", token)).
			Then(append(fence.Raise("config", token), clientv3.OpPut("config/leader", name))...).
			Commit()
		fmt.Println(name, err == nil && resp.Succeeded)
	}
	elect(7, "a")
	elect(8, "b")
	elect(7, "a, which does not know")
	// Output:
	// a true
	// b true
	// a, which does not know false
}
