package dynamo_test

import (
	"context"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/dynamo"
)

func ExampleNew() {
	client, disconnect := connect("example-locks") // dynamodb.NewFromConfig(cfg)
	defer disconnect()
	ctx := context.Background()
	locker := dynamo.New(client, "example-locks")
	defer locker.Close()
	locks := lock.New(locker)
	defer locks.Close(ctx)

	err := locks.Do(ctx, "order:123", func(_ context.Context, l *lock.Lease) error {
		_, err := locks.TryLock(ctx, "order:123")
		fmt.Println(err != nil, l.Token() > 0)
		return nil
	})
	fmt.Println(err)
	// Output:
	// true true
	// <nil>
}
