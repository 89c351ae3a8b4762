package servicetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/memory"
	"github.com/seed-215fdefa/lock/postgres"
	"github.com/seed-215fdefa/lock/redis"
)

// Store is a clean keyspace for one case.
type Store struct {
	Open     func() lock.Locker // one more process on it
	Forget   func()             // all of it; nil if it cannot
	LosePart func(key string, k int) bool
}

// OnMemory is a store in memory.
func OnMemory(testing.TB) *Store {
	m := memory.New()
	return &Store{Open: func() lock.Locker { return m.Open() }}
}

// OnRedis is one on a real Redis.
func OnRedis(tb testing.TB) *Store {
	server, prefix := testserver.SharedRedis(tb), testserver.Prefix()
	dial := func() *goredis.Client {
		rdb := goredis.NewClient(&goredis.Options{Addr: server.Addr()})
		tb.Cleanup(func() { _ = rdb.Close() })
		return rdb
	}
	rdb := dial()
	names := func(pattern string) []string {
		all, err := rdb.Keys(storetest.Bounded(tb), pattern).Result()
		require.NoError(tb, err)
		slices.Sort(all)
		return all
	}
	return &Store{
		Open: func() lock.Locker { return closing(tb, redis.New(dial(), redis.WithPrefix(prefix))) },
		Forget: func() {
			if all := names(prefix + "*"); len(all) > 0 {
				require.NoError(tb, rdb.Del(storetest.Bounded(tb), all...).Err())
			}
		},
		LosePart: func(key string, k int) bool {
			all := names(prefix + "{" + key + "}*")
			return k < len(all) && rdb.Del(storetest.Bounded(tb), all[k]).Err() == nil
		},
	}
}

// OnPostgres is one on a real PostgreSQL.
func OnPostgres(tb testing.TB) *Store {
	server, schema := testserver.SharedPostgres(tb), strings.TrimSuffix(testserver.Prefix(), ":")
	dial := func() *pgxpool.Pool {
		p, err := pgxpool.New(context.Background(), testserver.PostgresURL(server.Addr())+"&pool_max_conns=4")
		require.NoError(tb, err)
		tb.Cleanup(p.Close)
		return p
	}
	db := dial()
	require.NoError(tb, postgres.Migrate(storetest.Bounded(tb), db, postgres.WithSchema(schema)))
	return &Store{
		Open: func() lock.Locker { return closing(tb, postgres.New(dial(), postgres.WithSchema(schema))) },
		Forget: func() {
			for _, table := range []string{"", "_readers", "_waiters", "_tombstones"} {
				_, err := db.Exec(storetest.Bounded(tb), fmt.Sprintf(`DELETE FROM %q."locks%s"`, schema, table))
				require.NoError(tb, err)
			}
		},
	}
}

// closing closes l with the test.
func closing[L interface {
	lock.Locker
	Close() error
}](tb testing.TB, l L) lock.Locker {
	tb.Cleanup(func() { _ = l.Close() })
	return l
}
