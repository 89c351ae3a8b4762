package dynamo_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/dynamo"
)

// A program may make its table when it starts: that it is there already is no error.
func ExampleCreateTable() {
	client, disconnect := connect("example-locks")
	defer disconnect()
	ctx := context.Background()
	fmt.Println(dynamo.CreateTable(ctx, client, "example-locks"))

	err := dynamo.CreateTable(ctx, client, "no table")
	fmt.Println(errors.Is(err, lock.ErrInvalid))
	// Output:
	// <nil>
	// true
}
