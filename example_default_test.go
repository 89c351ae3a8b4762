package lock_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// A program with one store sets a default once, in main.
func ExampleSetDefault() {
	err := lock.Do(context.Background(), "k", nothing)
	fmt.Println("without:", errors.Is(err, lock.ErrNoDefault))

	c := lock.New(memory.New())
	lock.SetDefault(c)
	defer lock.SetDefault(nil)
	fmt.Println("with:", lock.Do(context.Background(), "k", nothing), lock.Default() == c)
	// Output:
	// without: true
	// with: <nil> true
}
