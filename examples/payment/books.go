package main

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/postgres"
)

// books are what the cashiers share: an invoice, and the payments of it. Nothing in the
// tables themselves keeps an invoice from being paid twice.
type books struct {
	pool     *pgxpool.Pool
	invoice  string
	unfenced bool
}

// open begins anew with one open invoice.
func (b *books) open(ctx context.Context) error {
	return pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `
			SELECT pg_advisory_xact_lock(7);
			CREATE TABLE IF NOT EXISTS payment_example (invoice text NOT NULL, cashier text NOT NULL)`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `DELETE FROM payment_example WHERE invoice = $1`, b.invoice)
		return err
	})
}

// pay books the payment, unless one is booked already, in one transaction. before is called in
// between.
func (b *books) pay(ctx context.Context, t lock.Token, cashier string, before func() error) (paid bool, err error) {
	err = b.fenced(ctx, t, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM payment_example WHERE invoice = $1)`, b.invoice).Scan(&paid)
		if err != nil || paid {
			return err
		}
		if err := before(); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO payment_example (invoice, cashier) VALUES ($1, $2)`, b.invoice, cashier)
		return err
	})
	return paid, err
}

// fenced runs a transaction that the fence heads. The fence refuses it when a newer holder has
// been here, lets no newer one in before it ends, and has the server end it if it is idle for
// longer than the lease lasts.
func (b *books) fenced(ctx context.Context, t lock.Token, work func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) error {
		if !b.unfenced {
			if err := postgres.Fence(ctx, tx, b.invoice, t); err != nil {
				return err // and the transaction is rolled back
			}
		}
		return work(tx)
	})
}

// payments lists who has booked one.
func (b *books) payments(ctx context.Context) ([]string, error) {
	rows, err := b.pool.Query(ctx, `SELECT cashier FROM payment_example WHERE invoice = $1`, b.invoice)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
