package postgres

import (
	"context"
	"fmt"
	"hash/fnv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-215fdefa/lock"
)

// Migrate makes the schema, tables and functions that a [Locker] and [Fence] with the same
// options need, or brings them up to date. If they are, it changes nothing and needs no
// rights to. Any number of programs may run it at once, also while locks are in use.
//
// Where a schema is changed by other tools, give them the text that [Schema] returns.
func Migrate(ctx context.Context, pool *pgxpool.Pool, opts ...Option) error {
	s, err := newSettings(opts)
	if err != nil {
		return err
	}
	if pool == nil {
		return fmt.Errorf("%w: postgres: pool is nil", lock.ErrInvalid)
	}
	d := db{pool: pool}
	_, err = d.repeat(ctx, func(c conn) error {
		return pgx.BeginTxFunc(ctx, c, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, s.names.migrate(ctx))
	})
	return err
}

// currentSQL tells whether the schema is what this package makes.
const currentSQL = `SELECT EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = $1::text AND p.proname = $2::text AND obj_description(p.oid, 'pg_proc') = $3::text)`

func (n names) migrate(ctx context.Context) func(pgx.Tx) error {
	return func(tx pgx.Tx) error {
		current := false
		look := func() error {
			return tx.QueryRow(ctx, currentSQL, n.schema, n.table+"_acquire"+version, digest()).Scan(&current)
		}
		if err := look(); err != nil || current {
			return err
		}
		// One at a time, and the others find it done: CREATE … IF NOT EXISTS alone fails now and
		// then when two of them meet.
		h := fnv.New64a()
		_, _ = h.Write([]byte("lock/postgres " + n.String()))
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1::bigint)", int64(h.Sum64())); err != nil {
			return err
		}
		if err := look(); err != nil || current {
			return err
		}
		exists := false
		if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1::text)", n.schema).Scan(&exists); err != nil {
			return err
		}
		if !exists { // who may not make schemas may be given one
			if _, err := tx.Exec(ctx, n.fill("CREATE SCHEMA {schema}")); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, n.fill(schemaSQL), pgx.QueryExecModeSimpleProtocol)
		return err
	}
}

// Schema returns what [Migrate] runs, for tools that change schemas. It may be run again. It
// does not make the schema itself.
func Schema(opts ...Option) (string, error) {
	s, err := newSettings(opts)
	if err != nil {
		return "", err
	}
	return s.names.fill(schemaSQL), nil
}
