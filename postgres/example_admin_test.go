package postgres_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/postgres"
)

// An operator looks at who holds what, and takes a lock away from a program that is stuck.
func ExampleLocker_ForceRelease() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, databaseURL())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer pool.Close()
	locker := postgres.New(pool)
	defer locker.Close()
	stuck := lock.New(locker, lock.WithMetadata(map[string]string{"host": "web-3"}))
	defer stuck.Close(ctx)
	lease, err := stuck.TryLock(ctx, "report")
	if err != nil {
		fmt.Println(err)
		return
	}

	for record, err := range locker.List(ctx, "rep") {
		if err != nil {
			fmt.Println(err)
			return
		}
		for _, h := range record.Holders {
			fmt.Println(record.Key, "is held by", h.Metadata["host"])
			fmt.Println(locker.ForceRelease(ctx, record.Key, h.Owner))
		}
	}
	<-lease.Context().Done() // it is told at once
	fmt.Println(errors.Is(lease.Err(), lock.ErrLost))
	// Output:
	// report is held by web-3
	// <nil>
	// true
}
