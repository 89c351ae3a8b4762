package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-215fdefa/lock"
)

// Migrate makes the schema, tables and functions that a [Locker] and [Fence] with the same
// options need. It adds what is missing, and replaces functions that differ. If nothing is to
// do, it changes nothing and needs no rights to. What it cannot mend, such as a table without
// its primary key, it names in an error that is [ErrSchema]. Any number of programs may run it
// at once, even while locks are in use. While an open transaction, such as a fenced one or that of
// pg_dump, keeps it from a change of a table, it tries again until ctx ends; lock operations go on.
//
// Functions have the schema's version in their names, so programs of two versions can work side
// by side. A program of an older version changes nothing in the schema of a newer one. If that
// lacks what the program needs, the error says to update the program.
//
// If other tools change your schema, give them the text that [Schema] returns.
func Migrate(ctx context.Context, pool *pgxpool.Pool, opts ...Option) error {
	s, err := newSettings(opts)
	if err != nil {
		return err
	}
	if pool == nil {
		return fmt.Errorf("%w: postgres: pool is nil", lock.ErrInvalid)
	}
	d := db{pool: pool, names: s.names}
	for {
		_, err = d.repeat(ctx, 0, func(ctx context.Context, c *pgx.Conn) error {
			return pgx.BeginTxFunc(ctx, c, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, s.names.migrate(ctx))
		})
		if state(err) != lockTimeout || ctx.Err() != nil {
			return err
		}
	}
}

func (n names) migrate(ctx context.Context) func(pgx.Tx) error {
	return func(tx pgx.Tx) error {
		// Else who may make operators in a schema on the path could have them run as whoever migrates.
		if _, err := tx.Exec(ctx, "SET LOCAL search_path = pg_catalog, pg_temp"); err != nil {
			return err
		}
		if missing, err := n.missing(ctx, tx); err != nil || len(missing) == 0 {
			return err
		}
		// One at a time, and the others find it done: CREATE … IF NOT EXISTS alone fails now and
		// then when two of them meet.
		h := fnv.New64a()
		_, _ = h.Write([]byte("lock/postgres " + n.quoted(n.table)))
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1::bigint)", int64(h.Sum64())); err != nil {
			return err
		}
		missing, err := n.missing(ctx, tx)
		if err != nil || len(missing) == 0 {
			return err
		}
		if err = n.create(ctx, tx, missing); err == nil {
			if missing, err = n.missing(ctx, tx); err != nil {
				return err
			}
		}
		switch {
		case state(err) == newerSchema:
			return fmt.Errorf("%w: update this program: %w", ErrSchema, err)
		case err != nil:
			return fmt.Errorf("%w: schema %q lacks %s, …: %w", ErrSchema, n.schema, missing[0], err)
		case len(missing) > 0:
			return fmt.Errorf("%w: schema %q lacks %s", ErrSchema, n.schema, strings.Join(missing, "; "))
		}
		return nil
	}
}

// create makes what is missing. ALTER TABLE needs a table to itself: it waits for whoever reads it, and
// every lock operation waits behind it. So it is left out where nothing is missing, and it gives up
// soon, for others to get through, and is sent again.
func (n names) create(ctx context.Context, tx pgx.Tx, missing []string) error {
	sql := schemaSQL
	for _, t := range tables {
		if !slices.ContainsFunc(missing, func(m string) bool { return strings.HasPrefix(m, n.relation(t)+": ") }) {
			sql = regexp.MustCompile(`(?s)ALTER TABLE {`+t+`}.*?;\n`).ReplaceAllString(sql, "")
		}
	}
	exists := false
	_, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '100ms'")
	if err == nil {
		err = tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1::text)", n.schema).Scan(&exists)
	}
	if err == nil && !exists { // who may not make schemas may be given one
		_, err = tx.Exec(ctx, n.fill("CREATE SCHEMA {schema}"))
	}
	if err == nil {
		_, err = tx.Exec(ctx, n.fill(sql), pgx.QueryExecModeSimpleProtocol)
	}
	return err
}

// columns are what each table must have, as the catalogs put it.
var columns = map[string]string{
	"locks": "key bytea; token bigint; owner text; expires timestamp with time zone; process text; metadata text; " +
		"crowd boolean; line integer; swept timestamp with time zone; PRIMARY KEY (key)",
	"readers": "key bytea; owner text; token bigint; expires timestamp with time zone; process text; metadata text; " +
		"PRIMARY KEY (key, owner)",
	"waiters": "key bytea; owner text; ticket bigint; shared boolean; ttl interval; arrived timestamp with time zone; " +
		"deadline timestamp with time zone; process text; listens boolean; metadata text; PRIMARY KEY (key, owner); UNIQUE (key, ticket)",
	"tombstones": "key bytea; owner text; forced boolean; expires timestamp with time zone; PRIMARY KEY (key, owner)",
	"marks":      "key bytea; token bigint; PRIMARY KEY (key)",
}

// catalogSQL says what is there of the tables and functions of those names.
const catalogSQL = `SELECT c.relname || ': ' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
	|| CASE WHEN a.attidentity <> '' THEN ' identity' ELSE '' END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
WHERE n.nspname = $1::text AND c.relname = ANY ($2::text[]) AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL SELECT c.relname || ': ' || pg_get_constraintdef(k.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_constraint k ON k.conrelid = c.oid
WHERE n.nspname = $1::text AND c.relname = ANY ($2::text[])
UNION ALL SELECT p.proname || ': ' || encode(sha256(convert_to(p.prosrc, 'UTF8')), 'hex')
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = $1::text AND p.proname = ANY ($3::text[])`

// missing names what is not there of all that must be.
func (n names) missing(ctx context.Context, tx pgx.Tx) ([]string, error) {
	var relations, procedures, want []string
	for _, t := range tables {
		relations = append(relations, n.relation(t))
		for _, column := range strings.Split(columns[t], "; ") {
			want = append(want, n.relation(t)+": "+column)
		}
	}
	for _, f := range functionPattern.FindAllStringSubmatch(schemaSQL, -1) {
		procedures = append(procedures, n.function(f[1]))
		sum := sha256.Sum256([]byte(n.fill(f[2])))
		want = append(want, n.function(f[1])+": "+hex.EncodeToString(sum[:]))
	}
	rows, err := tx.Query(ctx, catalogSQL, n.schema, relations, procedures)
	if err != nil {
		return nil, err
	}
	have, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(want, func(s string) bool { return slices.Contains(have, s) }), nil
}

var functionPattern = regexp.MustCompile(`(?s)CREATE OR REPLACE FUNCTION {(\w+)}.*?{body}(.*?){body};`)

// Schema returns the SQL that [Migrate] runs, for tools that change schemas. It may run
// repeatedly. It does not create the schema itself, and fails in a schema of a newer version. Set
// lock_timeout for it: its ALTER TABLE waits for open transactions that have read the tables, and every
// lock operation waits behind it.
func Schema(opts ...Option) (string, error) {
	s, err := newSettings(opts)
	if err != nil {
		return "", err
	}
	return s.names.fill(schemaSQL), nil
}
