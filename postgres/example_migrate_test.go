package postgres_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/postgres"
)

// Every program may run Migrate when it starts. Without it calls say what is missing.
func ExampleMigrate() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, databaseURL())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, "DROP SCHEMA IF EXISTS accounting CASCADE"); err != nil {
		fmt.Println(err)
	}
	own := postgres.WithSchema("accounting")
	locker := postgres.New(pool, own)
	defer locker.Close()

	_, err = locker.Inspect(ctx, "month")
	fmt.Println(errors.Is(err, postgres.ErrSchema))
	fmt.Println(postgres.Migrate(ctx, pool, own))
	_, err = lock.New(locker).TryLock(ctx, "month")
	fmt.Println(err)
	// Output:
	// true
	// <nil>
	// <nil>
}
