package postgres_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/postgres"
)

// A holder is to book a payment. It freezes, for longer than its lease, between its look
// whether the payment has been booked and the booking. Its successor books it. When the first
// one wakes, its booking is refused, so the payment is not booked twice.
func ExampleFence() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, databaseURL())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer pool.Close()
	_, err = pool.Exec(ctx, `DROP TABLE IF EXISTS payments; CREATE TABLE payments (invoice int, cents int)`)
	if err != nil {
		fmt.Println(err)
	}

	const key = "invoice:17"
	booked := func(token lock.Token) (n int, err error) {
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if err := postgres.Fence(ctx, tx, key, token); err != nil {
				return err
			}
			return tx.QueryRow(ctx, "SELECT count(*) FROM payments WHERE invoice = 17").Scan(&n)
		})
		return n, err
	}
	book := func(token lock.Token) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if err := postgres.Fence(ctx, tx, key, token); err != nil {
				return err // and BeginFunc rolls back
			}
			_, err := tx.Exec(ctx, "INSERT INTO payments VALUES (17, 4999)")
			return err
		})
	}

	const frozen, successor lock.Token = 33, 34 // Lease.Token of one and of the other
	fmt.Println(booked(frozen))
	// … the frozen one's lease is over by now.
	fmt.Println(booked(successor))
	fmt.Println(book(successor))
	err = book(frozen)
	fmt.Println(errors.Is(err, lock.ErrStale), err)
	fmt.Println(booked(successor))
	// Output:
	// 0 <nil>
	// 0 <nil>
	// <nil>
	// true lock: stale token 33 for "invoice:17": 34 has been seen
	// 1 <nil>
}
