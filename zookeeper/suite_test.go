package zookeeper_test

import (
	"errors"
	"flag"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

func TestMain(m *testing.M) {
	storetest.HolderMain(openHolder)
	flag.Parse()
	if testing.Short() { // examples cannot skip themselves
		_ = flag.Set("test.skip", "^Example")
	}
	// Tests wait for sessions to end, and for little else.
	parallel := false
	flag.Visit(func(f *flag.Flag) { parallel = parallel || f.Name == "test.parallel" })
	if !parallel {
		_ = flag.Set("test.parallel", "12")
	}
	// Of a request that comes as zk.Conn is being closed, and cannot be written any more, it
	// tells the outcome three times, to a channel that takes two.
	testserver.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/go-zookeeper/zk.(*Conn).flushRequests"))
}

// TestSuite has a root and sessions for each case. The cases share a server, except those that
// restart it.
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

// suite is the harness of processes which are oneWay from their server.
func suite(oneWay time.Duration) locktest.Harness {
	return locktest.Harness{
		TTL: time.Second,
		New: func(tb testing.TB) func() lock.Locker {
			w := worldFor(tb)
			if oneWay > 0 {
				w.oneWay, w.timeout = oneWay, max(w.timeout, distant)
			}
			return func() lock.Locker { return w.open(tb) }
		},
		Around: func(t *testing.T, f func(*testing.T)) {
			t.Parallel()
			f(t)
		},
		LosePart: losePart,
		Faults:   faults(),
		Proxy:    way,
	}
}

func way(l lock.Locker) *faultproxy.Proxy { return l.(*process).proxy }

// losePart deletes one of the nodes of a lock, the last of them with the lock's own.
func losePart(tb testing.TB, l lock.Locker, key string, k int) bool {
	tb.Helper()
	p := l.(*process)
	conn, path := dial(tb, timeout, p.world.server.Addr()), p.world.root+"/"+key
	all := names(tb, conn, path)
	if k < len(all) {
		require.NoError(tb, conn.Delete(path+"/"+all[k], -1))
		return true
	}
	if k > len(all) {
		return false
	}
	deleteBelow(tb, conn, path)
	err := conn.Delete(path, -1)
	require.True(tb, err == nil || errors.Is(err, zk.ErrNotEmpty) || errors.Is(err, zk.ErrNoNode), "%v", err)
	return true
}

// worldFor has grants last, whatever else the machine does, but where a case waits for sessions
// to end.
func worldFor(tb testing.TB) world {
	tb.Helper()
	is := func(part string) bool { return strings.Contains(tb.Name(), part) }
	switch {
	case is("Restart"):
		return ownWorld(tb).lasting()
	case slices.ContainsFunc([]string{"Dead", "Kill", "Sever", "Expired", "Living", "NoLossAfter"}, is):
		return sharedWorld(tb)
	}
	return sharedWorld(tb).lasting()
}

// TestHerd has many callers contend for one key.
func TestHerd(t *testing.T) {
	testserver.NeedServer(t)
	t.Parallel()
	w := sharedWorld(t).lasting()
	storetest.Herd(t, func() lock.Locker { return w.open(t) })
}

func TestExplore(t *testing.T) {
	testserver.NeedServer(t)
	t.Parallel()
	takeTurns(t)
	server := testserver.ZooKeeper(t)
	storetest.Explore(t, locktest.Harness{
		New: func(tb testing.TB) func() lock.Locker {
			w := newWorld(tb, server)
			return func() lock.Locker { return w.open(tb) }
		},
		TTL:    time.Second,
		Faults: faults(),
		Proxy:  way,
	})
}

func faults() map[locktest.Fault]func(testing.TB, lock.Locker) func() {
	return map[locktest.Fault]func(testing.TB, lock.Locker) func(){
		locktest.LoseWakeup: func(_ testing.TB, l lock.Locker) func() {
			return l.(*process).proxy.Drop(faultproxy.Replies().Matching(isEvent)).Heal
		},
		locktest.LoseRecord: func(tb testing.TB, l lock.Locker) func() {
			p := l.(*process)
			deleteBelow(tb, dial(tb, timeout, p.world.server.Addr()), p.world.root)
			return nil
		},
		locktest.Restart: func(_ testing.TB, l lock.Locker) func() {
			w := l.(*process).world
			w.server.Kill()
			w.server.Start()
			w.all.reconnect()
			return nil
		},
	}
}
