package postgres_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/postgres"
)

// TestMigrateMends: whatever is missing is there again, and what it cannot make is named.
func TestMigrateMends(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	broken := []string{
		"ALTER TABLE " + w.table("") + " DROP COLUMN swept",
		"ALTER TABLE " + w.table("") + " DROP COLUMN metadata, DROP COLUMN crowd",
		"DROP TABLE " + w.table("") + " CASCADE",
	}
	for _, table := range []string{"_readers", "_waiters", "_tombstones", "_marks"} {
		broken = append(broken, "DROP TABLE "+w.table(table)+" CASCADE")
	}
	for _, f := range postgres.Functions {
		broken = append(broken, "ALTER FUNCTION "+w.function(f)+" RENAME TO "+pgx.Identifier{"gone " + f}.Sanitize())
	}
	for _, f := range []string{"missing", "mint"} { // somebody else's, of the same name
		broken = append(broken, fmt.Sprintf(`DO $do$ BEGIN EXECUTE replace(
			pg_get_functiondef(%s::regproc), 'SELECT', '/* mine */ SELECT'); END $do$`,
			"'"+strings.ReplaceAll(w.function(f), "'", "''")+"'"))
	}
	for _, sql := range broken {
		w.exec(t, sql)
		require.NoError(t, postgres.Migrate(storetest.Bounded(t), w.admin, w.options...), sql)
		usable(t, w)
	}
	for _, sql := range []string{
		"ALTER TABLE " + w.table("_readers") + " DROP CONSTRAINT locks_readers_pkey",
		"ALTER TABLE " + w.table("") + " ALTER COLUMN token TYPE text",
		"ALTER TABLE " + w.table("_tombstones") + " DROP COLUMN forced",
	} {
		w.exec(t, sql)
		err := postgres.Migrate(storetest.Bounded(t), w.admin, w.options...)
		require.ErrorIs(t, err, postgres.ErrSchema, sql)
		require.ErrorContains(t, err, "lacks locks", sql)
		w.exec(t, "DROP SCHEMA "+pgx.Identifier{w.schema}.Sanitize()+" CASCADE")
		require.NoError(t, postgres.Migrate(storetest.Bounded(t), w.admin, w.options...))
	}
}

// usable takes locks, with a wait, and fences.
func usable(tb testing.TB, w world) {
	tb.Helper()
	l := w.open(tb)
	for _, shared := range []bool{false, true} {
		req := storetest.Request("k")
		req.Shared = shared
		g := storetest.Renew(tb, l, storetest.Acquire(tb, l, req))
		waiting := storetest.Waits(tb, l, storetest.Request("k"))
		storetest.Release(tb, l, g)
		g = waiting.Granted(tb)
		require.NoError(tb, w.fenced(storetest.Bounded(tb), pgx.TxOptions{}, "k", g.Token, nothing))
		require.NoError(tb, l.ForceRelease(storetest.Bounded(tb), "k", g.Owner))
		undo(tb, l, storetest.Request("k"))
	}
	require.NoError(tb, l.Close())
	l.pool.Close()
}

// TestRenamedSchema: the schema gets another name, and another program makes the old one anew.
// Each program's locks are in one place, whatever statement it comes by.
func TestRenamedSchema(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	renamed := w
	renamed.schema = strings.TrimSuffix(testserver.Prefix(), ":")
	renamed.options = []postgres.Option{postgres.WithSchema(renamed.schema)}
	usable(t, w)
	quoted := func(s string) string { return pgx.Identifier{s}.Sanitize() }
	w.exec(t, "ALTER SCHEMA "+quoted(w.schema)+" RENAME TO "+quoted(renamed.schema))
	require.NoError(t, postgres.Migrate(storetest.Bounded(t), w.admin, w.options...))
	l := renamed.open(t)
	_, err := l.Acquire(storetest.Bounded(t), storetest.Shared(storetest.Request("k")))
	require.ErrorIs(t, err, postgres.ErrSchema, "no function of the other's tables")
	require.NoError(t, postgres.Migrate(storetest.Bounded(t), w.admin, renamed.options...))
	usable(t, w)
	usable(t, renamed)
	for _, key := range []string{"k", "new"} { // by the plain statements, and by functions
		for _, contended := range []bool{false, true} {
			first := storetest.Acquire(t, l, storetest.Request(key))
			other := renamed.open(t)
			if contended {
				storetest.Refused(t, other, storetest.Request(key))
			}
			storetest.Refused(t, other, storetest.Shared(storetest.Request(key)))
			storetest.Refused(t, other, storetest.Request(key))
			storetest.Release(t, l, first)
		}
	}
	g := storetest.Acquire(t, l, storetest.Request("k"))
	storetest.Acquire(t, w.open(t), storetest.Request("k"))
	storetest.Holds(t, l, g)
}

// TestNewerSchema: an older program changes nothing, and works as long as what it needs is
// there; if not it says what to do.
func TestNewerSchema(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.exec(t, "COMMENT ON TABLE "+w.table("")+" IS 'lock/postgres 99'")
	require.NoError(t, postgres.Migrate(storetest.Bounded(t), w.admin, w.options...))
	usable(t, w)
	schema, err := postgres.Schema(w.options...)
	require.NoError(t, err)
	for name, migrate := range map[string]func() error{
		"Migrate": func() error { return postgres.Migrate(storetest.Bounded(t), w.admin, w.options...) },
		"Schema":  func() error { _, err := w.admin.Exec(storetest.Bounded(t), schema); return err },
	} {
		w.exec(t, "DROP FUNCTION IF EXISTS "+w.function("prune"))
		err := migrate()
		require.ErrorContains(t, err, "newer than version", name)
		if name == "Migrate" {
			require.ErrorIs(t, err, postgres.ErrSchema)
			require.ErrorContains(t, err, "update this program")
		}
		require.Equal(t, "lock/postgres 99", value[string](t, w, "SELECT obj_description('"+w.table("")+"'::regclass)"), name)
		require.False(t, value[bool](t, w, "SELECT to_regproc('"+w.function("prune")+"') IS NOT NULL"), name)
	}
}

// TestSchemaVersion: whoever changes the schema gives it a new version, since programs of one
// version must agree on it.
func TestSchemaVersion(t *testing.T) {
	b, err := os.ReadFile("sql/schema.sql")
	require.NoError(t, err)
	sum := sha256.Sum256(b)
	digests := map[int]string{3: "3980c24e1b50c879"}
	require.Equal(t, digests[postgres.Version], hex.EncodeToString(sum[:8]),
		"raise the version in keys.go, unless the one that is there was never released, and put the digest here")
}

// TestSearchPath: whoever may make things in a schema on the path has some that fit better than those of
// pg_catalog. None of it runs.
func TestSearchPath(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	w.exec(t, `DROP SCHEMA "`+w.schema+`" CASCADE`)
	w.exec(t, `CREATE FUNCTION trap() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
		CREATE FUNCTION times(float8, int) RETURNS float8 LANGUAGE sql AS 'SELECT trap()::float8';
		CREATE OPERATOR * (FUNCTION = times, LEFTARG = float8, RIGHTARG = int);
		CREATE FUNCTION times(int, float8) RETURNS float8 LANGUAGE sql AS 'SELECT trap()::float8';
		CREATE OPERATOR * (FUNCTION = times, LEFTARG = int, RIGHTARG = float8);
		CREATE FUNCTION join(text[], text) RETURNS text[] LANGUAGE sql AS 'SELECT ARRAY[trap()]';
		CREATE OPERATOR || (FUNCTION = join, LEFTARG = text[], RIGHTARG = text);
		CREATE FUNCTION join(float8, text) RETURNS text LANGUAGE sql AS 'SELECT trap()';
		CREATE OPERATOR || (FUNCTION = join, LEFTARG = float8, RIGHTARG = text);
		CREATE FUNCTION join(name, text) RETURNS text LANGUAGE sql AS 'SELECT trap()';
		CREATE OPERATOR || (FUNCTION = join, LEFTARG = name, RIGHTARG = text);
		CREATE FUNCTION array_append(text[], text) RETURNS text[] LANGUAGE sql AS 'SELECT ARRAY[trap()]';
		CREATE FUNCTION json_build_object(text, text, text, bigint) RETURNS json LANGUAGE sql AS 'SELECT trap()::json';
		CREATE FUNCTION json_build_object(text, text[]) RETURNS json LANGUAGE sql AS 'SELECT trap()::json';
		CREATE FUNCTION json_trap(json, json) RETURNS json LANGUAGE sql AS 'SELECT trap()::json';
		CREATE AGGREGATE json_agg(json) (SFUNC = json_trap, STYPE = json)`)
	require.NoError(t, postgres.Migrate(storetest.Bounded(t), w.admin, w.options...))
	usable(t, w)
	l := w.open(t)
	g := storetest.Acquire(t, l, storetest.Shared(storetest.Request("k")))
	waiting := storetest.Waits(t, w.open(t), storetest.Request("k"))
	require.Len(t, storetest.Inspect(t, l, "k").Waiters, 1)
	storetest.Release(t, l, g)
	waiting.Granted(t)
	_, err := l.Prune(storetest.Bounded(t), time.Second)
	require.NoError(t, err)
}

// TestMigrateBesideAReader: a transaction has read the tables and stays open. What needs them to itself
// waits, and lets the holders renew meanwhile; the rest does not wait.
func TestMigrateBesideAReader(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		broken func(world) string
		waits  bool
	}{
		"function": {func(w world) string { return "DROP FUNCTION " + w.function("prune") }, false},
		"column":   {func(w world) string { return "ALTER TABLE " + w.table("") + " DROP COLUMN swept" }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := sharedWorld(t)
			l := w.open(t)
			g := storetest.Acquire(t, l, storetest.Request("k"))
			w.exec(t, c.broken(w))
			tx := begin(t, w, pgx.TxOptions{})
			require.NoError(t, postgres.Fence(storetest.Bounded(t), tx, "k", g.Token, w.options...))
			ctx, migrated := storetest.Bounded(t), make(chan error, 1)
			p := pool(t, w.url())
			go func() { migrated <- postgres.Migrate(ctx, p, w.options...) }()
			if c.waits {
				for range 5 {
					storetest.Eventually(t, "a statement to wait for the table", func() bool {
						return value[bool](t, w, `SELECT EXISTS (SELECT FROM pg_locks k JOIN pg_class c ON c.oid = k.relation
							JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT k.granted AND n.nspname = $1)`, w.schema)
					})
					bounded, cancel := context.WithTimeout(ctx, g.TTL/6)
					_, err := l.Renew(bounded, g)
					cancel()
					require.NoError(t, err)
				}
				require.Empty(t, migrated)
				require.NoError(t, tx.Commit(ctx))
			}
			require.NoError(t, storetest.Receive(t, migrated))
			storetest.Renew(t, l, g)
		})
	}
}
