package redlock_test

import (
	"context"
	"errors"
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

	_, err := client.TryLock(context.Background(), "k", lock.WithTTL(time.Minute))
	fmt.Println(errors.Is(err, lock.ErrInvalid))
	_, err = client.TryLock(context.Background(), "k")
	fmt.Println(err)
	// Output:
	// true
	// <nil>
}
