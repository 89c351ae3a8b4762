package dynamo_test

import (
	"context"
	"flag"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

func TestMain(m *testing.M) {
	storetest.HolderMain(openHolder)
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = flag.Set("test.parallel", "12") // cases mostly wait
	}
	if testing.Short() { // examples cannot skip themselves
		_ = flag.Set("test.skip", "^Example")
	}
	testserver.VerifyTestMain(m)
}

// TestSuite gives each case a prefix of its own on one server, and each Locker a way of its
// own there. Cases that restart the server get one of their own.
func TestSuite(t *testing.T) {
	testserver.NeedServer(t)
	sharedTable(t)
	locktest.Run(t, suite(0))
}

// TestSuiteFarAway is TestSuite on a network with a round trip of 200 ms.
func TestSuiteFarAway(t *testing.T) { storetest.FarAway(t, suite) }

// TestClientSuite tries a Client over this store.
func TestClientSuite(t *testing.T) {
	testserver.NeedServer(t)
	sharedTable(t)
	locktest.RunClient(t, suite(0))
}

// suite is the harness of processes which are oneWay from their server.
func suite(oneWay time.Duration) locktest.Harness {
	var own sync.Map // of the worlds of cases that restart the server, by name
	var restarting sync.Mutex
	return locktest.Harness{
		New: func(tb testing.TB) func() lock.Locker {
			var w world
			if its, ok := own.Load(tb.Name()); ok {
				w = its.(world)
			} else {
				w = sharedWorld(tb)
			}
			w.oneWay = oneWay
			return func() lock.Locker { return w.open(tb) }
		},
		Around: func(t *testing.T, f func(*testing.T)) {
			t.Parallel()
			if strings.HasSuffix(strings.Split(t.Name(), "/")[2], "Restart") {
				restarting.Lock() // a busy machine is slow to start one of them
				defer restarting.Unlock()
				own.Store(t.Name(), ownWorld(t)) // before the case's time begins
			}
			f(t)
		},
		TTL:      2 * time.Second, // the server's garbage collector takes its time
		LosePart: losePart,
		Faults:   faults(),
		Proxy:    way,
	}
}

func way(l lock.Locker) *faultproxy.Proxy { return l.(*process).net }

// losePart deletes the item of a lock, the only one that there is of it.
func losePart(tb testing.TB, l lock.Locker, key string, k int) bool {
	tb.Helper()
	w := l.(*process).world
	if _, there := w.items(tb)[key]; !there || k > 0 {
		return false
	}
	ctx, cancel := background()
	defer cancel()
	_, err := w.db.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: &w.table, Key: w.primary(key)})
	require.NoError(tb, err)
	time.Sleep(uncertain)
	return true
}

// uncertain is longer than DynamoDB's time is uncertain: tokens survive a loss that takes as long.
// See the package documentation.
const uncertain = 2200 * time.Millisecond

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
	w := ownWorld(t)
	storetest.Explore(t, locktest.Harness{
		New: func(tb testing.TB) func() lock.Locker {
			w.prefix = testserver.Prefix()
			return func() lock.Locker { return w.open(tb) }
		},
		TTL:    2 * time.Second,
		Faults: faults(),
		Proxy:  way,
	})
}

// faults has no LoseWakeup: the server sends nothing on its own. It has no Failover: one
// node of DynamoDB stands in for another where no client can see or bring it about.
func faults() map[locktest.Fault]func(testing.TB, lock.Locker) func() {
	return map[locktest.Fault]func(testing.TB, lock.Locker) func(){
		locktest.LoseRecord: func(tb testing.TB, l lock.Locker) func() {
			l.(*process).world.deleteAll(tb)
			time.Sleep(uncertain)
			return nil
		},
		locktest.Restart: func(_ testing.TB, l lock.Locker) func() {
			s := l.(*process).world.server
			s.Kill()
			s.Start()
			return nil
		},
	}
}

func background() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), storetest.Patience)
}
