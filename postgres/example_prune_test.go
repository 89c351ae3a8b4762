package postgres_test

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-215fdefa/lock/postgres"
)

// Keys that name orders, files or requests leave a row each. A job may delete those of which
// nothing was heard for long.
func ExampleLocker_Prune() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, databaseURL())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer pool.Close()
	locker := postgres.New(pool)
	defer locker.Close()

	fmt.Println(locker.Prune(ctx, 24*time.Hour))
	// Output: 0 <nil>
}
