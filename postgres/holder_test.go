package postgres_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/postgres"
)

// openHolder opens what a process of its own has, which is killed or stopped: args are the
// URL and the schema.
func openHolder(args []string) (lock.Locker, storetest.Resource, error) {
	pool, err := pgxpool.New(context.Background(), args[0])
	if err != nil {
		return nil, storetest.Resource{}, err
	}
	return postgres.New(pool, postgres.WithSchema(args[1])), resource(pool, args[1]), nil
}

// resource is a row of the table "stock" in schema.
func resource(pool *pgxpool.Pool, schema string) storetest.Resource {
	table := pgx.Identifier{schema, "stock"}.Sanitize()
	fenced := func(ctx context.Context, token lock.Token, step func(pgx.Tx) error) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if err := postgres.Fence(ctx, tx, "stock", token, postgres.WithSchema(schema)); err != nil {
				return err
			}
			return step(tx)
		})
	}
	return storetest.Resource{
		Read: func(ctx context.Context, token lock.Token) (v string, err error) {
			err = fenced(ctx, token, func(tx pgx.Tx) error {
				return tx.QueryRow(ctx, "SELECT value FROM "+table).Scan(&v)
			})
			return v, err
		},
		Write: func(ctx context.Context, token lock.Token, value string) error {
			return fenced(ctx, token, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "UPDATE "+table+" SET value = $1", value)
				return err
			})
		},
	}
}

// TestKilledHolder kills a process that holds a lock.
func TestKilledHolder(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	storetest.KilledHolder(t, w.open(t), 5*time.Second, w.url(), w.schema)
}

// TestStoppedHolder: the transaction of a process that was stopped for longer than its lease.
func TestStoppedHolder(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	_, err := w.admin.Exec(storetest.Bounded(t),
		"CREATE TABLE "+pgx.Identifier{w.schema, "stock"}.Sanitize()+" AS SELECT '' AS value")
	require.NoError(t, err)
	storetest.StoppedHolder(t, w.open(t), resource(w.admin, w.schema), 5*time.Second, w.url(), w.schema)
}

// TestBrokenConnections: no call fails since a connection did.
func TestBrokenConnections(t *testing.T) {
	t.Parallel()
	p := sharedWorld(t).open(t)
	storetest.BrokenConnections(t, p, p.net.sever)
}
