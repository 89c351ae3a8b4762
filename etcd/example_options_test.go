package etcd_test

import (
	"context"
	"fmt"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
)

// Environments that share a cluster are kept apart by prefixes. A short longest TTL bounds
// how long a dead holder may block when the leader changes.
func ExampleWithMaxTTL() {
	cli := dial()
	defer cli.Close()
	locker := etcd.New(cli, etcd.WithPrefix("staging/lock/"), etcd.WithMaxTTL(10*time.Second))
	defer locker.Close()
	client := lock.New(locker, lock.WithTTL(10*time.Second))
	defer client.Close(context.Background())

	l, err := client.TryLock(context.Background(), "report", lock.WithTTL(time.Minute))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(time.Until(l.Deadline()) > 10*time.Second)
	fmt.Println(locker.Capabilities().ExpirySlack)
	// Output:
	// false
	// 13.5s
}
