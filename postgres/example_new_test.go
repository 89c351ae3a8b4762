package postgres_test

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/postgres"
)

// A Locker makes a Client, with which all the rest is done.
func ExampleNew() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, databaseURL())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer pool.Close()
	locker := postgres.New(pool)
	defer locker.Close()
	client := lock.New(locker)
	defer client.Close(ctx)

	err = client.Do(ctx, "order:123", func(_ context.Context, l *lock.Lease) error {
		fmt.Println("only one of us does this, with a token:", l.Token() > 0)
		return nil
	})
	fmt.Println(err)
	// Output:
	// only one of us does this, with a token: true
	// <nil>
}
