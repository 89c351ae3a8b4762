package main

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/postgres"
)

const opening = 1000 // the balance of each account at the beginning

var names = []string{"anna", "bert", "cleo"}

var errShort = errors.New("there is not enough in the account")

// accounts are what the tellers share. Nothing in the table keeps transfers apart.
type accounts struct {
	pool *pgxpool.Pool
	bank string
}

// key is the name of an account, and of its lock.
func (a *accounts) key(name string) string { return a.bank + ":" + name }

// open begins anew.
func (a *accounts) open(ctx context.Context) error {
	return pgx.BeginFunc(ctx, a.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `
			SELECT pg_advisory_xact_lock(8);
			CREATE TABLE IF NOT EXISTS transfer_example (account text PRIMARY KEY, balance bigint NOT NULL)`); err != nil {
			return err
		}
		for _, name := range names {
			if _, err := tx.Exec(ctx, `
				INSERT INTO transfer_example VALUES ($1, $2)
				ON CONFLICT (account) DO UPDATE SET balance = excluded.balance`, a.key(name), opening); err != nil {
				return err
			}
		}
		return nil
	})
}

// transfer moves amount in one transaction. The fences of leases head it, in the order of
// their keys: two transactions that meet there must not wait for each other.
func (a *accounts) transfer(ctx context.Context, leases []*lock.Lease, from, to string, amount int) error {
	leases = slices.SortedFunc(slices.Values(leases), func(l, m *lock.Lease) int { return cmp.Compare(l.Key(), m.Key()) })
	return pgx.BeginFunc(ctx, a.pool, func(tx pgx.Tx) error {
		for _, l := range leases {
			if err := postgres.Fence(ctx, tx, l.Key(), l.Token()); err != nil {
				return err // and the transaction is rolled back
			}
		}
		has, err := a.balance(ctx, tx, from)
		if err != nil {
			return err
		}
		gets, err := a.balance(ctx, tx, to)
		if err != nil {
			return err
		}
		if has < amount {
			return errShort
		}
		if _, err := tx.Exec(ctx, `SELECT pg_sleep(0.002)`); err != nil { // the bank thinks about it
			return err
		}
		set := map[string]int{from: has - amount, to: gets + amount}
		for _, account := range slices.Sorted(slices.Values([]string{from, to})) {
			if _, err := tx.Exec(ctx, `UPDATE transfer_example SET balance = $2 WHERE account = $1`, account, set[account]); err != nil {
				return err
			}
		}
		return nil
	})
}

func (a *accounts) balance(ctx context.Context, tx pgx.Tx, account string) (n int, err error) {
	err = tx.QueryRow(ctx, `SELECT balance FROM transfer_example WHERE account = $1`, account).Scan(&n)
	return n, err
}

// sum is what is in all accounts.
func (a *accounts) sum(ctx context.Context) (n int, err error) {
	keys := make([]string, len(names))
	for i, name := range names {
		keys[i] = a.key(name)
	}
	err = a.pool.QueryRow(ctx, `SELECT sum(balance) FROM transfer_example WHERE account = ANY ($1)`, keys).Scan(&n)
	return n, err
}
