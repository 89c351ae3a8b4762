package httplock_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest"
	"github.com/seed-215fdefa/lock/memory"
	"github.com/seed-215fdefa/lock/postgres"
	"github.com/seed-215fdefa/lock/redis"
)

func TestSuiteOverRedis(t *testing.T)    { over(t, onRedis, locktest.Run) }
func TestSuiteOverPostgres(t *testing.T) { over(t, onPostgres, locktest.Run) }

func TestClientSuiteOverRedis(t *testing.T) {
	many(t)
	over(t, onRedis, locktest.RunClient)
}

func TestClientSuiteOverPostgres(t *testing.T) {
	many(t)
	over(t, onPostgres, locktest.RunClient)
}

func over(t *testing.T, on func(testing.TB) *store, run func(*testing.T, locktest.Harness)) {
	t.Helper()
	alone(t)
	testserver.NeedServer(t)
	t.Parallel()
	run(t, harness(on))
}

// many skips what takes minutes and adds little to the suites of other stores and replicas.
func many(t *testing.T) {
	t.Helper()
	if os.Getenv("LOCK_TEST_MANY") == "" {
		t.Skip("LOCK_TEST_MANY=1 runs it: it takes minutes")
	}
}

// TestSuiteOfTwoReplicas sends each request to either of two services on one store, at random.
func TestSuiteOfTwoReplicas(t *testing.T) {
	many(t)
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		locktest.Run(t, replicated(onMemory))
	})
	t.Run("redis", func(t *testing.T) {
		testserver.NeedServer(t)
		t.Parallel()
		h := replicated(onRedis)
		h.Skips = map[string]string{
			"Admin/ForceRelease":                  "only the replica that granted hears of it, and the renewal may reach the other: the reason is unknown",
			"WakeupsAreHints/PromptForAllReaders": thrownAbout,
			"WakeupsAreHints/Prompt":              thrownAbout,
			"WakeupsAreHints/PromptAfterAnUndo":   thrownAbout,
		}
		locktest.Run(t, h)
	})
	t.Run("postgres", func(t *testing.T) {
		testserver.NeedServer(t)
		t.Parallel()
		locktest.Run(t, replicated(onPostgres))
	})
}

// thrownAbout is why some things take a recheck more. The clients of other tests keep to one replica
// while that is there.
const thrownAbout = "of the two replicas that stand in line for an owner the store wakes one, which may not be the one that is being polled"

// store is a clean keyspace for one case.
type store struct {
	open     func() lock.Locker // one more process on it
	forget   func()             // all of it; nil if it cannot
	losePart func(key string, k int) bool
}

func onMemory(testing.TB) *store {
	m := memory.New()
	return &store{open: func() lock.Locker { return m.Open() }}
}

func onRedis(tb testing.TB) *store {
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
	return &store{
		open: func() lock.Locker { return closing(tb, redis.New(dial(), redis.WithPrefix(prefix))) },
		forget: func() {
			if all := names(prefix + "*"); len(all) > 0 {
				require.NoError(tb, rdb.Del(storetest.Bounded(tb), all...).Err())
			}
		},
		losePart: func(key string, k int) bool {
			all := names(prefix + "{" + key + "}*")
			return k < len(all) && rdb.Del(storetest.Bounded(tb), all[k]).Err() == nil
		},
	}
}

func onPostgres(tb testing.TB) *store {
	server, schema := testserver.SharedPostgres(tb), strings.TrimSuffix(testserver.Prefix(), ":")
	dial := func() *pgxpool.Pool {
		p, err := pgxpool.New(context.Background(), testserver.PostgresURL(server.Addr())+"&pool_max_conns=4")
		require.NoError(tb, err)
		tb.Cleanup(p.Close)
		return p
	}
	db := dial()
	require.NoError(tb, postgres.Migrate(storetest.Bounded(tb), db, postgres.WithSchema(schema)))
	return &store{
		open: func() lock.Locker { return closing(tb, postgres.New(dial(), postgres.WithSchema(schema))) },
		forget: func() {
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

// replicated is a harness whose clients reach two replicas, at random, through a reverse proxy.
func replicated(on func(testing.TB) *store) locktest.Harness {
	h := harness(on)
	h.New = func(tb testing.TB) func() lock.Locker {
		st := on(tb)
		replicas := []*service{serve(tb, st.open), serve(tb, st.open)}
		front := httptest.NewServer(&httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) {
				r.Out.URL.Scheme, r.Out.URL.Host = "http", replicas[rand.N(2)].addr
			},
			ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
		})
		tb.Cleanup(front.Close)
		return func() lock.Locker { return connect(tb, front.Listener.Addr().String(), st, replicas[:1]) }
	}
	return h
}
