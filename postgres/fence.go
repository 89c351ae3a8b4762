package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/seed-215fdefa/lock"
)

// fenceSQL raises the mark and returns the newest token. It writes the row even when nothing
// rises, so that a transaction with an older snapshot cannot pass it unseen.
const fenceSQL = `INSERT INTO {marks} AS m (key, token) VALUES ($1::bytea, $2::bigint)
ON CONFLICT (key) DO UPDATE SET token = greatest(m.token, excluded.token) RETURNING m.token`

// Fence guards the transaction tx with a lease's token: it returns a *lock.StaleError when a
// newer token has been seen for key, and tx must then be rolled back.
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
// It must be the first statement of the transaction, of those that only read too: a
// read-modify-write whose read was not fenced loses the update of a successor that read and
// wrote meanwhile. From the Fence to the transaction's end no other transaction is fenced
// for the same key: an old holder's and its successor's run one after the other, in either
// order, but never the old one's after the successor's. Under READ COMMITTED, what follows
// the Fence sees what those before it committed. Under REPEATABLE READ and SERIALIZABLE a
// transaction that had to wait for another fails with SQLSTATE 40001: run it again.
//
// The marks have a table of their own in the same database, made by [Migrate]; no lock
// operation touches them, so a long transaction holds up no renewal. They rise with the
// transaction's commit, and never expire. A transaction that fences several keys should
// always do it in the same order, or may have to be run again after a deadlock. Tokens of
// shared leases do not order their holders.
//
// A token out of range and a nil tx are ErrInvalid. Any other error is tx's, and has aborted it.
func Fence(ctx context.Context, tx pgx.Tx, key string, token lock.Token, opts ...Option) error {
	s, err := newSettings(opts)
	switch {
	case err != nil:
		return err
	case tx == nil:
		return fmt.Errorf("%w: postgres: fence: transaction is nil", lock.ErrInvalid)
	case token == 0 || token > lock.MaxToken:
		return fmt.Errorf("%w: token %d: must be from 1 to %d", lock.ErrInvalid, token, lock.MaxToken)
	}
	if err := lock.CheckKey(key); err != nil {
		return err
	}
	var newest int64
	if err := tx.QueryRow(ctx, s.names.fill(fenceSQL), []byte(key), int64(token)).Scan(&newest); err != nil {
		if ended := ctx.Err(); ended != nil && !errors.Is(err, ended) {
			return fmt.Errorf("%w: %w", ended, err)
		}
		return wrap(err)
	}
	if lock.Token(newest) > token {
		return &lock.StaleError{Key: key, Token: token, Newest: lock.Token(newest)}
	}
	return nil
}
