package postgres_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/postgres"
)

type (
	pgconnConn   = pgconn.PgConn
	notification = pgconn.Notification
)

func poolWith(tb testing.TB, config *pgxpool.Config) *pgxpool.Pool {
	tb.Helper()
	p, err := pgxpool.NewWithConfig(context.Background(), config)
	require.NoError(tb, err)
	tb.Cleanup(p.Close)
	return p
}

// everyCall has a call of each method of a Locker, for keys that nobody holds but g's.
func everyCall(l *postgres.Locker, g lock.Grant) map[string]func(context.Context) error {
	return storetest.EveryCall(l, g, map[string]func(context.Context) error{
		"Prune": func(ctx context.Context) error { _, err := l.Prune(ctx, time.Hour); return err },
	})
}

func someGrant() lock.Grant {
	return lock.Grant{Key: "k", Owner: "o", Token: 1, TTL: time.Second, Start: time.Now()}
}

// nowhere is a pool that must not connect.
func nowhere(tb testing.TB) *pgxpool.Pool {
	config, err := pgxpool.ParseConfig("postgres://127.0.0.1:1/none")
	require.NoError(tb, err)
	config.BeforeConnect = func(context.Context, *pgx.ConnConfig) error {
		tb.Error("something was sent")
		return context.Canceled
	}
	return poolWith(tb, config)
}

// TestBadSetUp: New does no I/O and tells by every call what is wrong; so do Migrate, Schema
// and Fence.
func TestBadSetUp(t *testing.T) {
	p := nowhere(t)
	for name, c := range map[string]struct {
		pool *pgxpool.Pool
		opt  postgres.Option
		says string
	}{
		"nil pool":    {nil, postgres.WithSchema("s"), "pool is nil"},
		"nil option":  {p, nil, "option is nil"},
		"no schema":   {p, postgres.WithSchema(""), "1 to 63"},
		"long schema": {p, postgres.WithSchema(strings.Repeat("s", 64)), "1 to 63"},
		"no table":    {p, postgres.WithTable(""), "1 to 40"},
		"long table":  {p, postgres.WithTable(strings.Repeat("t", 41)), "1 to 40"},
		"NUL":         {p, postgres.WithTable("a\x00b"), "NUL"},
		"body quote":  {p, postgres.WithTable("a$lock_body$b"), "$lock_body$"},
		"nil config":  {p, postgres.WithListenConfig(nil), "listen config is nil"},
		"polling":     {p, postgres.WithPolling(time.Microsecond), "1ms"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			l := postgres.New(c.pool, c.opt)
			for method, call := range everyCall(l, someGrant()) {
				err := call(ctx)
				require.ErrorIs(t, err, lock.ErrInvalid, method)
				require.ErrorContains(t, err, c.says, method)
			}
			require.NoError(t, l.Close())
			require.ErrorIs(t, postgres.Migrate(ctx, c.pool, c.opt), lock.ErrInvalid)
			if c.pool != nil {
				_, err := postgres.Schema(c.opt)
				require.ErrorIs(t, err, lock.ErrInvalid)
				require.ErrorIs(t, postgres.Fence(ctx, nil, "k", 1, c.opt), lock.ErrInvalid)
			}
		})
	}
}

// TestBadRequest: nothing is sent, and the error names the value.
func TestBadRequest(t *testing.T) {
	l := postgres.New(nowhere(t))
	defer func() { require.NoError(t, l.Close()) }()
	ctx := context.Background()
	for want, change := range map[string]func(*lock.Request){
		"key is empty": func(r *lock.Request) { r.Key = "" },
		"513 bytes":    func(r *lock.Request) { r.Key = strings.Repeat("k", 513) },
		`"a:b"`:        func(r *lock.Request) { r.Owner = "a:b" },
		"TTL 0s":       func(r *lock.Request) { r.TTL = 0 },
		"TTL 9ms":      func(r *lock.Request) { r.TTL = 9 * time.Millisecond },
		"4097 bytes":   func(r *lock.Request) { r.Metadata = map[string]string{"m": strings.Repeat("v", 4096)} },
	} {
		req := storetest.Request("k")
		change(&req)
		_, err := l.Acquire(ctx, req)
		require.ErrorIs(t, err, lock.ErrInvalid, want)
		require.ErrorContains(t, err, want)
	}
	for _, key := range []string{"", "\xff", strings.Repeat("k", 513)} {
		g := someGrant()
		g.Key = key
		_, err := l.Renew(ctx, g)
		require.ErrorIs(t, err, lock.ErrInvalid)
		require.ErrorIs(t, l.Release(ctx, g), lock.ErrInvalid)
		_, err = l.Inspect(ctx, key)
		require.ErrorIs(t, err, lock.ErrInvalid)
		require.ErrorIs(t, l.ForceRelease(ctx, key, "o"), lock.ErrInvalid)
	}
	_, err := l.Renew(ctx, lock.Grant{Key: "k", Owner: "o", Token: 1})
	require.ErrorContains(t, err, "TTL 0s")
	require.ErrorIs(t, l.Release(ctx, lock.Grant{Key: "k"}), lock.ErrInvalid)
	_, err = l.Prune(ctx, -1)
	require.ErrorIs(t, err, lock.ErrInvalid)
}

// TestClosed: of the Locker and of its pool.
func TestClosed(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	g := storetest.Acquire(t, l, storetest.Request("k"))
	waiting := storetest.Waits(t, l, storetest.Request("k"))
	require.NoError(t, l.Close())
	require.NoError(t, l.Close())
	waiting.End(t)
	require.ErrorIs(t, waiting.Err, lock.ErrClosed)
	for method, call := range everyCall(l.Locker, g) {
		require.ErrorIs(t, call(storetest.Bounded(t)), lock.ErrClosed, method)
	}
	require.NoError(t, l.pool.Ping(storetest.Bounded(t)), "the pool is the user's")

	p := pool(t, w.url())
	other := postgres.New(p, w.options...)
	p.Close()
	began := time.Now()
	for method, call := range everyCall(other, g) {
		require.ErrorContains(t, call(storetest.Bounded(t)), "lock: postgres: ", method)
	}
	require.Less(t, time.Since(began), storetest.Patience)
	require.NoError(t, other.Close())
}

// TestMissingSchema: every call says what to do.
func TestMissingSchema(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	drop := func(sql string) func() { return func() { w.exec(t, strings.ReplaceAll(sql, "{schema}", w.schema)) } }
	for name, breaks := range map[string]func(){
		"an old version": func() { w.exec(t, "ALTER FUNCTION "+w.function("acquire")+" RENAME TO old") },
		"no tables":      drop(`DROP TABLE IF EXISTS "{schema}"."locks" CASCADE`),
		"no schema":      drop(`DROP SCHEMA IF EXISTS "{schema}" CASCADE`),
	} {
		require.NoError(t, postgres.Migrate(storetest.Bounded(t), w.admin, w.options...))
		breaks()
		l := w.open(t)
		for method, call := range everyCall(l.Locker, someGrant()) {
			if name == "an old version" && method != "Acquire Shared" {
				continue
			}
			err := call(storetest.Bounded(t))
			require.ErrorIs(t, err, postgres.ErrSchema, "%s: %s", name, method)
			require.ErrorContains(t, err, "postgres.Migrate")
		}
		if name == "no schema" {
			tx := begin(t, w, pgx.TxOptions{})
			require.ErrorIs(t, postgres.Fence(storetest.Bounded(t), tx, "k", 1, w.options...), postgres.ErrSchema)
		}
	}
}

// TestMigrateTogether: many at once, while locks are in use, and again.
func TestMigrateTogether(t *testing.T) {
	t.Parallel()
	server := testserver.SharedPostgres(t)
	p := pool(t, testserver.PostgresURL(server.Addr())+"&pool_max_conns=16")
	opts := []postgres.Option{postgres.WithSchema("together " + testserver.Prefix())}
	migrate := func() {
		var all sync.WaitGroup
		errs := make(chan error, 16)
		for range 16 {
			all.Go(func() { errs <- postgres.Migrate(storetest.Bounded(t), p, opts...) })
		}
		all.Wait()
		close(errs)
		for err := range errs {
			require.NoError(t, err)
		}
	}
	migrate()
	l := postgres.New(p, opts...)
	defer func() { require.NoError(t, l.Close()) }()
	g := storetest.Acquire(t, l, storetest.Request("k"))
	migrate()
	sql, err := postgres.Schema(opts...)
	require.NoError(t, err)
	_, err = p.Exec(storetest.Bounded(t), sql) // it may be run again
	require.NoError(t, err)
	storetest.Holds(t, l, g)
	storetest.Release(t, l, g)
}

// TestMigrateWithoutRights: where it is done already it needs none.
func TestMigrateWithoutRights(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	role := pgx.Identifier{"user " + w.schema}.Sanitize()
	w.exec(t, "CREATE ROLE "+role+" LOGIN")
	w.exec(t, strings.NewReplacer("{schema}", pgx.Identifier{w.schema}.Sanitize(), "{role}", role).Replace(
		`GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}`))
	t.Cleanup(func() { w.exec(t, "DROP OWNED BY "+role+"; DROP ROLE "+role) })
	config, err := pgxpool.ParseConfig(w.url())
	require.NoError(t, err)
	config.ConnConfig.User = "user " + w.schema
	p := poolWith(t, config)
	t.Cleanup(p.Close)
	require.NoError(t, postgres.Migrate(storetest.Bounded(t), p, w.options...))
	require.ErrorContains(t, postgres.Migrate(storetest.Bounded(t), p, postgres.WithSchema("not for "+w.schema)), "permission denied")
	l := postgres.New(p, w.options...)
	defer func() { require.NoError(t, l.Close()) }()
	g := storetest.Acquire(t, l, storetest.Request("k"))
	waiting := storetest.Waits(t, l, storetest.Request("k"))
	storetest.Release(t, l, g)
	storetest.Release(t, l, waiting.Granted(t))
}

// TestOddNames: quotes, spaces, Unicode, reserved words, braces, as long as may be.
func TestOddNames(t *testing.T) {
	t.Parallel()
	server := testserver.SharedPostgres(t)
	p := pool(t, testserver.PostgresURL(server.Addr()))
	unique := testserver.Prefix()
	for _, n := range []struct{ schema, table string }{
		{`"quoted" ` + unique, `a"b`},
		{`it's ` + unique, `'; DROP TABLE x; --`},
		{"select", "table"},
		{"Größe 鍵 " + unique, "schlüssel 🔒"},
		{"{locks} " + unique, "{acquire}"},
		{"$$ " + unique, "$1 %s \\ "},
		{unique + strings.Repeat("s", 63-len(unique)), strings.Repeat("t", 40)},
		{"public", unique},
	} {
		opts := []postgres.Option{postgres.WithSchema(n.schema), postgres.WithTable(n.table)}
		require.NoError(t, postgres.Migrate(storetest.Bounded(t), p, opts...), n)
		require.NoError(t, postgres.Migrate(storetest.Bounded(t), p, opts...), n)
		l := postgres.New(p, opts...)
		g := storetest.Renew(t, l, storetest.Acquire(t, l, storetest.Request("k")))
		waiting := storetest.Waits(t, l, storetest.Request("k"))
		require.Len(t, storetest.Inspect(t, l, "k").Waiters, 1)
		storetest.Release(t, l, g)
		g = waiting.Granted(t)
		require.NoError(t, l.ForceRelease(storetest.Bounded(t), "k", g.Owner))
		undo(t, l, storetest.Request("k"))
		_, err := l.Prune(storetest.Bounded(t), 0)
		require.NoError(t, err)
		tx, err := p.Begin(storetest.Bounded(t))
		require.NoError(t, err)
		require.NoError(t, postgres.Fence(storetest.Bounded(t), tx, "k", g.Token, opts...))
		require.NoError(t, tx.Rollback(storetest.Bounded(t)))
		require.NoError(t, l.Close())
		if n.schema != "public" {
			_, err = p.Exec(storetest.Bounded(t), "DROP SCHEMA "+pgx.Identifier{n.schema}.Sanitize()+" CASCADE")
			require.NoError(t, err)
		}
	}
}

// TestPrune: what is idle goes, what is held, waited for or marked stays, tokens rise.
func TestPrune(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	ctx := storetest.Bounded(t)
	idle := storetest.Acquire(t, l, storetest.Request("idle"))
	storetest.Release(t, l, idle)
	held := storetest.Acquire(t, l, storetest.Request("held"))
	read := storetest.Acquire(t, l, storetest.Shared(storetest.Request("read")))
	late := storetest.Request("undone")
	undo(t, l, late)
	short := storetest.Acquire(t, l, storetest.Lasting(storetest.Request("expired"), 10*time.Millisecond))
	storetest.Eventually(t, "the end of a grant", func() bool { return len(storetest.Inspect(t, l, "expired").Holders) == 0 })
	n, err := l.Prune(ctx, time.Hour)
	require.NoError(t, err)
	require.Zero(t, n)
	w.age(t)
	n, err = l.Prune(ctx, 0)
	require.NoError(t, err)
	require.Equal(t, 2, n, "idle and expired")
	storetest.Holds(t, l, held)
	storetest.Holds(t, l, read)
	_, err = l.Acquire(ctx, late)
	require.ErrorIs(t, err, lock.ErrReleased)
	require.Greater(t, storetest.Acquire(t, l, storetest.Request("idle")).Token, idle.Token)
	require.Greater(t, storetest.Acquire(t, l, storetest.Request("expired")).Token, short.Token)
}

// TestTokensWithClockSetBack: the row's counter goes on where the clock does not.
func TestTokensWithClockSetBack(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("k")))
	const future = lock.MaxToken / 2
	w.exec(t, "UPDATE "+w.table("")+" SET token = $1", int64(future))
	g := storetest.Acquire(t, l, storetest.Request("k"))
	require.Equal(t, future+1, g.Token)
	next := storetest.Waits(t, l, storetest.Request("k"))
	storetest.Release(t, l, g)
	g = next.Granted(t)
	require.Equal(t, future+2, g.Token)
	require.Zero(t, storetest.Inspect(t, l, "k").Holders[0].Held)
	storetest.Release(t, l, g)
	g = storetest.Acquire(t, l, storetest.Shared(storetest.Request("k")))
	require.Equal(t, future+3, g.Token)
	storetest.Release(t, l, g)
	require.Equal(t, future+4, storetest.Acquire(t, l, storetest.Request("k")).Token)
}

// TestLongestTTL: to the microsecond, and no longer.
func TestLongestTTL(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	for _, mode := range []string{"cache_statement", "exec", "simple_protocol"} {
		l := w.open(t, "default_query_exec_mode="+mode)
		for _, shared := range []bool{false, true} {
			req := storetest.Lasting(storetest.Request("k"), lock.MaxTTL)
			req.Shared = shared
			g := storetest.Acquire(t, l, req)
			require.Equal(t, lock.MaxTTL, g.TTL)
			storetest.Holds(t, l, g)
			g = storetest.Renew(t, l, g)
			g.TTL++
			_, err := l.Renew(storetest.Bounded(t), g)
			require.ErrorIs(t, err, lock.ErrInvalid)
			storetest.Release(t, l, g)
			req.TTL++
			_, err = l.Acquire(storetest.Bounded(t), req)
			require.ErrorIs(t, err, lock.ErrInvalid)
		}
	}
}

func TestClientClosedFirst(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	storetest.ClientClosedFirst(t, l, w.open(t), l.pool.Close)
}
