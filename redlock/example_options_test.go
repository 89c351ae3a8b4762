package redlock_test

import (
	"context"
	"fmt"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/redlock"
)

// Short leases let a node that was restarted vote again sooner.
func ExampleWithMaxTTL() {
	nodes, closeAll := connect()
	defer closeAll()
	locker := redlock.New(nodes, redlock.WithPrefix("short:"), redlock.WithMaxTTL(10*time.Second))
	defer locker.Close()
	client := lock.New(locker, lock.WithTTL(5*time.Second))
	defer client.Close(context.Background())

	lease, err := client.TryLock(context.Background(), "k", lock.WithTTL(time.Minute))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("granted for no longer:", time.Until(lease.Deadline()) <= 10*time.Second)
	// Output: granted for no longer: true
}
