package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// fenceSQL raises the mark and returns the newest token. It writes the row even when nothing
// rises, so that a transaction with an older snapshot cannot pass it unseen.
//
// It also bounds how long the transaction may be idle, to what is left of the lease or a second, once
// it has waited for the row. If this store has not granted that token, it is another's, and how long
// it lasts is not known.
const fenceSQL = `INSERT INTO {marks} AS m (key, token) VALUES ($1::bytea, $2::bigint)
ON CONFLICT (key) DO UPDATE SET token = greatest(m.token, excluded.token)
RETURNING m.token::text, (SELECT set_config('idle_in_transaction_session_timeout',
		ceil(1000::float8 * date_part('epoch', least('20 days', nullif(current_setting('idle_in_transaction_session_timeout')::interval, '0'),
			lease.remaining)))::text || 'ms', true)
	FROM {remaining}($1::bytea, $2::bigint) AS lease (remaining) WHERE lease.remaining IS NOT NULL)`

// Fence guards the transaction tx with a lease's token. If a newer token has been seen for key,
// it returns a *lock.StaleError; then roll tx back.
//
//	err := client.Do(ctx, "account:7", func(ctx context.Context, l *lock.Lease) error {
//		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
//			if err := postgres.Fence(ctx, tx, l.Key(), l.Token()); err != nil {
//				return err // BeginFunc rolls back
//			}
//			… // reads and writes
//		})
//	})
//
// Fence must be the first statement of the transaction, even of one that only reads: if a
// read-modify-write does not fence its read, it may undo what a successor wrote in between.
//
// Fenced transactions for the same key run one after another. An old holder's may run before its
// successor's, but never after. Under READ COMMITTED, the statements after Fence see what
// earlier transactions have committed. Under REPEATABLE READ and SERIALIZABLE, a transaction
// that had to wait for another fails with SQLSTATE 40001: run it again.
//
// A holder that freezes inside its transaction must not block its successor for as long as it is
// frozen. So if the lock is kept in the same database, with the same options, Fence sets
// idle_in_transaction_session_timeout for this transaction: to what is left of the lease, at
// least 1 s. The server ends the transaction if it hears nothing for that long, so keep slow
// work between two statements out of it. For leases of other stores set the timeout yourself.
//
// [Migrate] makes a table for the marks. No lock operation touches it, so a long transaction
// delays no renewal. Marks rise when the transaction commits, and never expire. Transactions
// that fence several keys should do so in the same order; otherwise they may deadlock and have
// to run again. Tokens of shared leases do not order their holders.
//
// A token out of range and a nil tx are ErrInvalid. Any other error is tx's, and has aborted it.
func Fence(ctx context.Context, tx pgx.Tx, key string, token lock.Token, opts ...Option) error {
	return fence(ctx, tx, key, token, opts, func(sql string, args []any) row { return tx.QueryRow(ctx, sql, args...) })
}

// SQLTx is a transaction of database/sql: a *sql.Tx, or a wrapper of one, such as sqlx's Tx or
// gorm's ConnPool.
type SQLTx interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// FenceSQL is [Fence] for a transaction of database/sql, with any PostgreSQL driver.
func FenceSQL(ctx context.Context, tx SQLTx, key string, token lock.Token, opts ...Option) error {
	return fence(ctx, tx, key, token, opts, func(sql string, args []any) row { return tx.QueryRowContext(ctx, sql, args...) })
}

type row interface{ Scan(dest ...any) error }

func fence(ctx context.Context, tx any, key string, token lock.Token, opts []Option, query func(string, []any) row) error {
	s, err := newSettings(opts)
	switch {
	case err != nil:
		return err
	case storekit.IsNil(tx):
		return fmt.Errorf("%w: postgres: fence: transaction is nil", lock.ErrInvalid)
	case token == 0 || token > lock.MaxToken:
		return fmt.Errorf("%w: token %d: must be from 1 to %d", lock.ErrInvalid, token, lock.MaxToken)
	}
	if err := lock.CheckKey(key); err != nil {
		return err
	}
	var newest string
	var timeout sql.NullString
	if err := query(s.names.fill(fenceSQL), []any{[]byte(key), int64(token)}).Scan(&newest, &timeout); err != nil {
		if ended := ctx.Err(); ended != nil && !errors.Is(err, ended) {
			return fmt.Errorf("%w: %w", ended, err)
		}
		return (&db{names: s.names}).explain(err)
	}
	seen, err := strconv.ParseUint(newest, 10, 64)
	if err != nil {
		return unexpected(newest)
	}
	if lock.Token(seen) > token {
		return &lock.StaleError{Key: key, Token: token, Newest: lock.Token(seen)}
	}
	return nil
}
