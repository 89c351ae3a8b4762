package bench

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/postgres"
)

// A bare lock in PostgreSQL is an upsert and an update, without token, line or renewal.
const (
	bareTable = `CREATE TABLE bare (key bytea PRIMARY KEY, owner text, expires timestamptz) WITH (fillfactor = 50)`
	bareTake  = `INSERT INTO bare AS b (key, owner, expires) VALUES ($1, $2, clock_timestamp() + interval '15 s')
		ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, expires = clock_timestamp() + interval '15 s'
		WHERE b.owner IS NULL OR b.expires <= clock_timestamp()`
	bareDrop = `UPDATE bare SET owner = NULL WHERE key = $1 AND owner = $2`
)

func connectPostgres(t *testing.T) (*pgxpool.Pool, *lock.Client) {
	t.Helper()
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, testserver.PostgresURL(testserver.Postgres(t).Addr())+"&pool_max_conns=64")
	require.NoError(t, err)
	require.NoError(t, postgres.Migrate(ctx, pool))
	_, err = pool.Exec(ctx, bareTable)
	require.NoError(t, err)
	l := postgres.New(pool)
	c := lock.New(l)
	t.Cleanup(func() {
		require.NoError(t, c.Close(ctx))
		require.NoError(t, l.Close())
		pool.Close()
	})
	return pool, c
}

// barely takes a bare lock, polling with jitter as long as it is held, and releases it.
func barely(ctx context.Context, pool *pgxpool.Pool, key, owner string) {
	once := func(sql string) bool {
		tag, err := pool.Exec(ctx, sql, []byte(key), owner)
		if err != nil {
			panic(err)
		}
		return tag.RowsAffected() == 1
	}
	_, err := lock.Poll(ctx, lock.Request{Wait: true}, time.Millisecond, 50*time.Millisecond,
		func(context.Context) (lock.Grant, error) {
			if !once(bareTake) {
				return lock.Grant{}, lock.ErrHeld
			}
			return lock.Grant{}, nil
		})
	if err != nil || !once(bareDrop) {
		panic(fmt.Sprint("bare lock: ", err))
	}
}

// TestPostgresUncontended compares Do with the bare lock, each caller on a key of its own,
// on one pool.
func TestPostgresUncontended(t *testing.T) {
	s := scales()
	pool, c := connectPostgres(t)
	// As a program's requests have: pgx does less for a ctx that never ends.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ours := func(caller, _ int) {
		if err := c.Do(ctx, "ours:"+strconv.Itoa(caller), nothing); err != nil {
			panic(err)
		}
	}
	bare := func(caller, n int) {
		barely(ctx, pool, "bare:"+strconv.Itoa(caller), "owner-of-22-bytes-"+strconv.Itoa(1000+n%1000))
	}
	out := table{title: "PostgreSQL, uncontended: acquire and release per second", head: []string{"callers", "`Do`", "bare upsert + update", "ratio"}}
	for _, callers := range []int{1, 16, 64} {
		a, b, ratio := pairs(s, callers, ours, bare)
		out.add(strconv.Itoa(callers), fmt.Sprintf("%.0f", a), fmt.Sprintf("%.0f", b), fmt.Sprintf("%.2f", ratio))
	}
	out.print()
}

// TestPostgresContended lets 64 callers fight for one key: of one process, of four, and with
// the bare lock.
func TestPostgresContended(t *testing.T) {
	s := scales()
	pool, c := connectPostgres(t)
	ctx := context.Background()
	const callers = 64
	clients := []*lock.Client{c}
	for range 3 {
		l := postgres.New(pool)
		other := lock.New(l)
		clients = append(clients, other)
		defer func() {
			require.NoError(t, other.Close(ctx))
			require.NoError(t, l.Close())
		}()
	}
	locked := func(cs []*lock.Client, key string) func(int, int) {
		return func(caller, _ int) {
			l, err := cs[caller%len(cs)].Lock(ctx, key)
			if err == nil {
				err = l.Release(ctx)
			}
			if err != nil {
				panic(err)
			}
		}
	}
	out := table{title: "PostgreSQL, 64 callers on one key", head: []string{"lock", "hand-overs per second", "least, most served", "ratio"}}
	for _, m := range []struct {
		name string
		f    func(int, int)
	}{
		{"ours, one process", locked(clients[:1], "one")},
		{"ours, four processes", locked(clients, "four")},
		{"bare, polled", func(caller, _ int) { barely(ctx, pool, "bare", "owner-of-22-bytes-"+strconv.Itoa(1000+caller)) }},
	} {
		served := make([]int, callers)
		r := rate(callers, s.contended, func(caller, n int) { m.f(caller, n); served[caller]++ })
		least, most := slices.Min(served), slices.Max(served)
		out.add(m.name, fmt.Sprintf("%.0f", r), fmt.Sprintf("%d, %d", least, most), fmt.Sprintf("%.2f", float64(least)/float64(most)))
	}
	out.print()
}
