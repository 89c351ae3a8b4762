package postgres_test

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
	"github.com/seed-215fdefa/lock/postgres"
)

func TestMain(m *testing.M) {
	storetest.HolderMain(openHolder)
	flag.Parse()
	if testing.Short() { // examples cannot skip themselves
		_ = flag.Set("test.skip", "^Example")
	}
	parallel := false
	flag.Visit(func(f *flag.Flag) { parallel = parallel || f.Name == "test.parallel" })
	if !parallel { // tests wait more than they work
		_ = flag.Set("test.parallel", "12")
	}
	testserver.VerifyTestMain(m,
		// Some versions of pgx leak it with a connection that breaks: https://github.com/jackc/pgx/issues/1999.
		goleak.IgnoreAnyFunction("github.com/jackc/pgx/v5/pgconn/internal/ctxwatch.(*ContextWatcher).Watch.func1"))
}

// TestSuite gives each case a schema to itself on the shared server, and a server of its own
// where that is to be killed.
func TestSuite(t *testing.T) { runSuite(t, reused(t, sharedWorld), nil) }

// TestSuiteFarAway is TestSuite on a network with a round trip of 200 ms.
func TestSuiteFarAway(t *testing.T) {
	storetest.FarAway(t, func(oneWay time.Duration) locktest.Harness { return suite(sharedWorld, oneWay, nil) })
}

// TestSuiteBehindPgBouncer is the suite for Lockers that do not listen, and whose statements
// go through a pooler in transaction mode.
func TestSuiteBehindPgBouncer(t *testing.T) {
	testserver.NeedServer(t)
	bouncer := testserver.PgBouncer(t, testserver.SharedPostgres(t))
	runSuite(t, reused(t, func(tb testing.TB) world {
		w := sharedWorld(tb)
		w.bouncer = bouncer
		w.options = append(w.options, postgres.WithPolling(20*time.Millisecond))
		return w
	}), map[string]string{
		"Exclusion/Restart":        own,
		"Exclusion/Failover":       own,
		"TokensRise/AfterRestart":  own,
		"TokensRise/AfterFailover": own,
	})
}

const own = "it has servers of its own, without a pooler: see TestSuite"

func runSuite(t *testing.T, usual func(testing.TB) world, skips map[string]string) {
	testserver.NeedServer(t)
	t.Parallel()
	locktest.Run(t, suite(usual, 0, skips))
}

// TestClientSuite tries a Client over this store.
func TestClientSuite(t *testing.T) {
	testserver.NeedServer(t)
	t.Parallel()
	locktest.RunClient(t, suite(reused(t, sharedWorld), 0, nil))
}

// suite is the harness of processes which are oneWay from their servers.
func suite(usual func(testing.TB) world, oneWay time.Duration, skips map[string]string) locktest.Harness {
	return locktest.Harness{
		New: func(tb testing.TB) func() lock.Locker {
			var w world
			switch {
			case strings.Contains(tb.Name(), "Restart"):
				w = ownWorld(tb)
			case strings.Contains(tb.Name(), "Failover"):
				w = pairWorld(tb)
			default:
				w = usual(tb)
			}
			w.oneWay = oneWay
			return func() lock.Locker { return w.open(tb) }
		},
		Around: func(t *testing.T, f func(*testing.T)) {
			if !strings.Contains(t.Name(), "Crowd") { // it is enough for the machine by itself
				t.Parallel()
			}
			f(t)
		},
		LosePart: losePart,
		Faults:   faults(),
		Proxy:    func(l lock.Locker) *faultproxy.Proxy { return l.(*process).proxy() },
		Skips:    skips,
	}
}

// TestHerd has many callers contend for one key.
func TestHerd(t *testing.T) {
	testserver.NeedServer(t)
	t.Parallel()
	w := sharedWorld(t)
	storetest.Herd(t, func() lock.Locker { return w.open(t) })
}

func TestExplore(t *testing.T) {
	testserver.NeedServer(t)
	t.Parallel()
	server := testserver.Postgres(t)
	storetest.Explore(t, locktest.Harness{
		New: func(tb testing.TB) func() lock.Locker {
			w := newWorld(tb, server)
			return func() lock.Locker { return w.open(tb) }
		},
		TTL:    500 * time.Millisecond,
		Faults: faults(),
	})
}

func faults() map[locktest.Fault]func(testing.TB, lock.Locker) func() {
	return map[locktest.Fault]func(testing.TB, lock.Locker) func(){
		locktest.Sever:     func(_ testing.TB, l lock.Locker) func() { return l.(*process).net.cut() },
		locktest.Freeze:    func(_ testing.TB, l lock.Locker) func() { return l.(*process).net.freeze() },
		locktest.LoseReply: func(tb testing.TB, l lock.Locker) func() { return l.(*process).loseReplies(tb) },
		locktest.LoseWakeup: func(_ testing.TB, l lock.Locker) func() {
			return l.(*process).net.deafen()
		},
		locktest.LoseRecord: func(tb testing.TB, l lock.Locker) func() {
			w, all := l.(*process).world, ""
			for _, table := range []string{"", "_readers", "_waiters", "_tombstones"} {
				all += fmt.Sprintf(`DELETE FROM %q."locks%s";`, w.schema, table)
			}
			w.exec(tb, all) // at once: a reader may be granted the lock between two
			return nil
		},
		locktest.Restart: func(_ testing.TB, l lock.Locker) func() {
			l.(*process).world.server.Kill()
			l.(*process).world.server.Start()
			return nil
		},
		locktest.Failover: func(tb testing.TB, l lock.Locker) func() {
			w := l.(*process).world
			require.NotNil(tb, w.pair)
			w.pair.CatchUp() // what it has not, tokens need not
			w.pair.Primary.Kill()
			w.pair.Promote()
			return nil
		},
	}
}

// losePart deletes a row of key's: that of the lock, or a reader's or a waiter's.
func losePart(tb testing.TB, l lock.Locker, key string, k int) bool {
	tb.Helper()
	w := l.(*process).world
	for _, table := range []string{"", "_readers", "_waiters"} {
		name := fmt.Sprintf(`%q."locks%s"`, w.schema, table)
		n := value[int](tb, w, "SELECT count(*) FROM "+name+" WHERE key = $1", []byte(key))
		if k < n {
			w.exec(tb, "DELETE FROM "+name+" WHERE key = $1 AND owner IS NOT DISTINCT FROM (SELECT owner FROM "+
				name+" WHERE key = $1 ORDER BY owner OFFSET $2 LIMIT 1)", []byte(key), k)
			return true
		}
		k -= n
	}
	return false
}
