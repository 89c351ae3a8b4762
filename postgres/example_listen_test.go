package postgres_test

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-215fdefa/lock/postgres"
)

// The pool leads to a PgBouncer in transaction mode, which does not pass notifications on:
// the Locker listens on a connection that leads past it.
func ExampleWithListenConfig() {
	poolerURL, serverURL := databaseURL(), databaseURL()
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, poolerURL+"&default_query_exec_mode=exec")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer pool.Close()
	direct, err := pgx.ParseConfig(serverURL)
	if err != nil {
		fmt.Println(err)
		return
	}
	locker := postgres.New(pool, postgres.WithListenConfig(direct))
	defer locker.Close()
	fmt.Println("waiters are woken:", locker.Capabilities().Push)
	// Output: waiters are woken: true
}

// Where nothing leads past the pooler, waiters look now and then.
func ExampleWithPolling() {
	pool, err := pgxpool.New(context.Background(), databaseURL()+"&default_query_exec_mode=exec")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer pool.Close()
	locker := postgres.New(pool, postgres.WithPolling(50*time.Millisecond))
	defer locker.Close()
	fmt.Println("waiters are woken:", locker.Capabilities().Push)
	// Output: waiters are woken: false
}
