package redis_test

import (
	"context"
	"flag"
	"slices"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
	"github.com/seed-215fdefa/lock/redis"
)

func TestMain(m *testing.M) {
	storetest.HolderMain(openHolder)
	goredis.SetLogger(silent{})
	flag.Parse()
	if testing.Short() { // examples cannot skip themselves
		_ = flag.Set("test.skip", "^Example")
	}
	testserver.VerifyTestMain(m)
}

// silent drops what the client would say about the faults that the tests make.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// TestSuite gives each case a server of its own, which knows no script yet, so that they
// can run side by side.
func TestSuite(t *testing.T) {
	testserver.NeedServer(t)
	locktest.Run(t, harness(0))
}

// TestClientSuite tries a Client over this store.
func TestClientSuite(t *testing.T) {
	testserver.NeedServer(t)
	locktest.RunClient(t, harness(0))
}

// TestSuiteFarAway is TestSuite on a network with a round trip of 200 ms.
func TestSuiteFarAway(t *testing.T) { storetest.FarAway(t, harness) }

// harness is that of processes which are oneWay from their server.
func harness(oneWay time.Duration) locktest.Harness {
	return locktest.Harness{
		New: func(tb testing.TB) func() lock.Locker {
			server, prefix := testserver.Redis(tb), redis.WithPrefix(testserver.Prefix())
			return func() lock.Locker {
				proxy := faultproxy.New(tb, server.Addr())
				proxy.Delay(faultproxy.All(), oneWay)
				p := openAt(tb, server, proxy.Addr(), prefix)
				p.proxy = proxy
				return p
			}
		},
		Around: func(t *testing.T, f func(*testing.T)) {
			t.Parallel()
			f(t)
		},
		LosePart: losePart,
		Faults:   faults(),
		Proxy:    func(l lock.Locker) *faultproxy.Proxy { return l.(*process).proxy },
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
	server := testserver.Redis(t)
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
		locktest.Sever: func(_ testing.TB, l lock.Locker) func() {
			l.(*process).net.sever()
			return nil
		},
		locktest.Freeze: func(_ testing.TB, l lock.Locker) func() {
			server := l.(*process).server
			server.Pause()
			return server.Resume
		},
		locktest.LoseReply: func(_ testing.TB, l lock.Locker) func() {
			n := l.(*process).net
			return n.set(&n.mute)
		},
		locktest.LoseWakeup: func(_ testing.TB, l lock.Locker) func() {
			n := l.(*process).net
			return n.set(&n.deaf)
		},
		locktest.LoseRecord: func(tb testing.TB, l lock.Locker) func() {
			flush(tb, l.(*process).server)
			return nil
		},
		locktest.Restart: func(_ testing.TB, l lock.Locker) func() {
			server := l.(*process).server
			server.Kill()
			server.Start()
			return nil
		},
	}
}

func flush(tb testing.TB, server *testserver.Server) {
	tb.Helper()
	direct(tb, server, func(ctx context.Context, rdb *goredis.Client) error { return rdb.FlushAll(ctx).Err() })
}

func preload(tb testing.TB, server *testserver.Server) {
	tb.Helper()
	direct(tb, server, func(ctx context.Context, rdb *goredis.Client) error { return redis.Preload(ctx, rdb) })
}

// direct does something to the server beside all Lockers.
func direct(tb testing.TB, server *testserver.Server, do func(context.Context, *goredis.Client) error) {
	tb.Helper()
	rdb := goredis.NewClient(&goredis.Options{Addr: server.Addr()})
	defer func() { _ = rdb.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(tb, do(ctx, rdb))
}

// losePart deletes one of the Redis keys of a lock.
func losePart(tb testing.TB, l lock.Locker, key string, k int) (lost bool) {
	tb.Helper()
	direct(tb, l.(*process).server, func(ctx context.Context, rdb *goredis.Client) error {
		names, err := rdb.Keys(ctx, "*{"+key+"}*").Result()
		if err != nil || k >= len(names) {
			return err
		}
		slices.Sort(names)
		lost = true
		return rdb.Del(ctx, names[k]).Err()
	})
	return lost
}
