package etcd_test

import (
	"context"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
)

// A Locker makes a Client, with which all the rest is done.
func ExampleNew() {
	cli := dial() // clientv3.New with Endpoints, DialKeepAliveTime and DialKeepAliveTimeout
	defer cli.Close()
	locker := etcd.New(cli)
	defer locker.Close()
	client := lock.New(locker)
	defer client.Close(context.Background())

	err := client.Do(context.Background(), "order:123", func(_ context.Context, l *lock.Lease) error {
		fmt.Println("only one of us does this, with a token:", l.Token() > 0)
		return nil
	})
	fmt.Println(err)
	// Output:
	// only one of us does this, with a token: true
	// <nil>
}
