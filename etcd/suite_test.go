package etcd_test

import (
	"context"
	"flag"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
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
	inParallel()
	testserver.VerifyTestMain(m)
}

// inParallel runs many tests side by side, unless the command line says how many: most of
// their time is spent waiting.
func inParallel() {
	set := false
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == "test.parallel" })
	if !set {
		_ = flag.Set("test.parallel", "12")
	}
}

// TestSuite runs on one server, except for the cases that restart theirs or need a cluster.
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
		New: func(tb testing.TB) func() lock.Locker { return keyspace(tb, oneWay) },
		TTL: suiteTTL,
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

func keyspace(tb testing.TB, oneWay time.Duration) func() lock.Locker {
	prefix := testserver.Prefix()
	is := func(part string) bool { return strings.Contains(tb.Name(), part) }
	if is("Failover") {
		cluster := testserver.NewEtcdCluster(tb)
		return func() lock.Locker {
			p := openOn(tb, prefix, cluster.Addrs(), etcd.Stable, longest)
			p.cluster = cluster
			return p
		}
	}
	server := testserver.SharedEtcd(tb)
	if is("Restart") {
		server = testserver.Etcd(tb)
	}
	return func() lock.Locker {
		p := open(tb, server, prefix, etcd.Stable, longest)
		p.proxy.Delay(faultproxy.All(), oneWay)
		return p
	}
}

// longest accepts what the contract allows: what a change of leader may add to it is left out.
var longest = etcd.WithMaxTTL(lock.MaxTTL)

// suiteTTL is above the shortest, for the sake of busy machines.
const suiteTTL = 2 * time.Second

// TestHerd has many callers contend for one key.
func TestHerd(t *testing.T) {
	testserver.NeedServer(t)
	t.Parallel()
	server, prefix := testserver.SharedEtcd(t), testserver.Prefix()
	storetest.Herd(t, func() lock.Locker { return open(t, server, prefix) })
}

func TestExplore(t *testing.T) {
	testserver.NeedServer(t)
	t.Parallel()
	server := testserver.Etcd(t)
	storetest.Explore(t, locktest.Harness{
		New: func(tb testing.TB) func() lock.Locker {
			prefix := testserver.Prefix()
			return func() lock.Locker { return open(tb, server, prefix, etcd.Stable, longest) }
		},
		TTL:    suiteTTL,
		Faults: faults(),
		Proxy:  way,
	})
}

func faults() map[locktest.Fault]func(testing.TB, lock.Locker) func() {
	return map[locktest.Fault]func(testing.TB, lock.Locker) func(){
		// A case is about the reply to what takes or keeps the lock. There is a connection, and
		// an etcd lease that must be asked for first is granted all the same: else nothing more
		// would be sent.
		locktest.LoseReply: func(tb testing.TB, l lock.Locker) func() {
			p := l.(*process)
			storetest.Inspect(tb, p, "connected")
			p.grantBy(plain(tb, p.server.Addr()))
			return p.proxy.HoldReplies()
		},
		locktest.LoseWakeup: func(_ testing.TB, l lock.Locker) func() {
			deaf := l.(*process).deaf
			deaf.set(true)
			return func() { deaf.set(false) }
		},
		locktest.LoseRecord: func(tb testing.TB, l lock.Locker) func() {
			p := l.(*process)
			_, err := plain(tb, p.server.Addr()).Delete(context.Background(), p.prefix, clientv3.WithPrefix())
			require.NoError(tb, err)
			return nil
		},
		locktest.Restart: func(_ testing.TB, l lock.Locker) func() {
			server := l.(*process).server
			server.Kill()
			server.Start()
			return nil
		},
		locktest.Failover: func(_ testing.TB, l lock.Locker) func() {
			cluster := l.(*process).cluster
			cluster.Leader().Kill()
			cluster.Leader()
			return nil
		},
	}
}

// losePart deletes one of the entries of a lock.
func losePart(tb testing.TB, l lock.Locker, key string, k int) bool {
	tb.Helper()
	p := l.(*process)
	kv := plain(tb, p.server.Addr())
	found, err := kv.Get(context.Background(), p.prefix+key+"/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	require.NoError(tb, err)
	if k >= len(found.Kvs) {
		return false
	}
	_, err = kv.Delete(context.Background(), string(found.Kvs[k].Key))
	require.NoError(tb, err)
	return true
}
