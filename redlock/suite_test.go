package redlock_test

import (
	"context"
	"flag"
	"slices"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest"
)

func TestMain(m *testing.M) {
	goredis.SetLogger(silent{})
	storetest.HolderMain(openHolder)
	parallel := false
	flag.Parse()
	flag.Visit(func(f *flag.Flag) { parallel = parallel || f.Name == "test.parallel" })
	if !parallel { // tests wait most of the time
		_ = flag.Set("test.parallel", "12")
	}
	if testing.Short() { // examples cannot skip themselves
		_ = flag.Set("test.skip", "^Example")
	}
	testserver.VerifyTestMain(m)
}

// silent drops what the client would say about the faults that the tests make.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// TestSuite: most cases share five servers. Those that break servers have their own.
func TestSuite(t *testing.T) {
	testserver.NeedServer(t)
	locktest.Run(t, suite(0))
}

// TestSuiteFarAway is TestSuite on a network with a round trip of 200 ms.
func TestSuiteFarAway(t *testing.T) { storetest.FarAway(t, suite) }

// TestClientSuite tries a Client over this store.
func TestClientSuite(t *testing.T) {
	testserver.NeedServer(t)
	locktest.RunClient(t, suite(0))
}

// suite is the harness of processes which are oneWay from their servers.
func suite(oneWay time.Duration) locktest.Harness {
	return locktest.Harness{
		New: func(tb testing.TB) func() lock.Locker {
			w := sharedWorld(tb)
			for _, breaks := range []string{"Freeze", "Restart", "Failover"} {
				if strings.Contains(tb.Name(), breaks) {
					w = ownWorld(tb)
				}
			}
			w.proxied, w.oneWay = true, oneWay
			return func() lock.Locker { return w.open(tb) }
		},
		Around: func(t *testing.T, f func(*testing.T)) {
			t.Parallel()
			f(t)
		},
		LosePart: losePart,
		Faults:   faults(),
		Strike:   strike,
	}
}

// strike lets s befall a majority of the nodes, each at its own K-th message. Then the others
// have done what the caller cannot think done: leftovers to undo, and grants to find again. One
// message lost of all that go to five nodes would be outvoted, and nobody would notice. Replies
// that come late do so from all nodes: there an operation is to take effect, and go on. What
// the process did before, and did not wait for, is not counted.
func strike(tb testing.TB, l lock.Locker, s locktest.Strike) (struck func() bool, heal func()) {
	tb.Helper()
	storetest.Eventually(tb, "the replies of all nodes", func() bool {
		return !slices.ContainsFunc(l.(*process).nodes, func(rdb goredis.UniversalClient) bool {
			pool := rdb.PoolStats()
			return pool.IdleConns < pool.TotalConns
		})
	})
	var hits []func() bool
	var heals []func()
	nodes := l.(*process).proxies
	if !s.Hold || !s.Reply {
		nodes = nodes[minority:]
	}
	for _, p := range nodes {
		hit, heal := s.Apply(p)
		hits, heals = append(hits, hit), append(heals, heal)
	}
	struck = func() bool { return slices.ContainsFunc(hits, func(hit func() bool) bool { return hit() }) }
	return struck, func() {
		for _, heal := range heals {
			heal()
		}
	}
}

// losePart deletes one of the keys of a lock, on all nodes, on a majority or on a minority of them.
func losePart(tb testing.TB, l lock.Locker, key string, k int) bool {
	tb.Helper()
	w, ctx := l.(*process).world, storetest.Bounded(tb)
	for _, space := range []string{"s:", "r:", "i:", "m:"} {
		for _, nodes := range []int{len(w.plain), len(w.plain) - minority, minority} {
			there := int64(0)
			for _, rdb := range w.plain[:nodes] {
				n, err := rdb.Exists(ctx, w.prefix+space+key).Result()
				require.NoError(tb, err)
				there += n
			}
			if there > 0 {
				k--
			}
			if k < 0 {
				for _, rdb := range w.plain[:nodes] {
					require.NoError(tb, rdb.Del(ctx, w.prefix+space+key).Err())
				}
				return true
			}
		}
	}
	return false
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
	servers := testserver.Redlock(t)
	storetest.Explore(t, locktest.Harness{
		New: func(tb testing.TB) func() lock.Locker {
			w := newWorld(tb, servers)
			return func() lock.Locker { return w.open(tb) }
		},
		TTL:    500 * time.Millisecond,
		Faults: faults(),
	})
}

// faults has no LoseWakeup: the nodes send nothing on their own.
func faults() map[locktest.Fault]func(testing.TB, lock.Locker) func() {
	return map[locktest.Fault]func(testing.TB, lock.Locker) func(){
		locktest.Sever: func(_ testing.TB, l lock.Locker) func() {
			for _, n := range l.(*process).nets {
				n.sever()
			}
			return nil
		},
		locktest.Freeze: func(_ testing.TB, l lock.Locker) func() {
			w := l.(*process).world
			w.pause()
			return w.resume
		},
		locktest.LoseReply: func(_ testing.TB, l lock.Locker) func() {
			nets := l.(*process).nets
			for _, n := range nets {
				n.mute(true)
			}
			return func() {
				for _, n := range nets {
					n.mute(false)
				}
			}
		},
		locktest.LoseRecord: func(tb testing.TB, l lock.Locker) func() {
			l.(*process).forget(tb)
			return nil
		},
		locktest.Restart: func(_ testing.TB, l lock.Locker) func() {
			for _, s := range l.(*process).servers[:minority] {
				s.Kill() // it has nothing on disk
				s.Start()
			}
			return nil
		},
		locktest.Failover: func(_ testing.TB, l lock.Locker) func() {
			for _, s := range l.(*process).servers[:minority] {
				s.Kill()
			}
			return nil
		},
	}
}

// TestFrozenServers: all of them.
func TestFrozenServers(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	storetest.FrozenServer(t, w.ready(t), w.ready(t), 4*time.Second, w.pause, w.resume)
}
