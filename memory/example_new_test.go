package memory_test

import (
	"context"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// Goroutines of one process take turns.
func ExampleNew() {
	client := lock.New(memory.New())

	balance, done := 0, make(chan error)
	for range 10 {
		go func() {
			done <- client.Do(context.Background(), "account:42", func(context.Context, *lock.Lease) error {
				balance++
				return nil
			})
		}()
	}
	for range 10 {
		if err := <-done; err != nil {
			fmt.Println(err)
		}
	}
	fmt.Println("balance:", balance)
	// Output: balance: 10
}
