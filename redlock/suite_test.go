package redlock_test

import (
	"context"
	"flag"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

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
	goleak.VerifyTestMain(testserver.Main{M: m})
}

// silent drops what the client would say about the faults that the tests make.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// TestSuite: most cases share five servers. Those that break servers have their own.
func TestSuite(t *testing.T) {
	testserver.NeedServer(t)
	locktest.Run(t, suite())
}

// TestClientSuite tries a Client over this store.
func TestClientSuite(t *testing.T) {
	testserver.NeedServer(t)
	locktest.RunClient(t, suite())
}

func suite() locktest.Harness {
	return locktest.Harness{
		New: func(tb testing.TB) func() lock.Locker {
			w := sharedWorld(tb)
			for _, breaks := range []string{"Freeze", "Restart", "Failover"} {
				if strings.Contains(tb.Name(), breaks) {
					w = ownWorld(tb)
				}
			}
			return func() lock.Locker { return w.open(tb) }
		},
		Around: func(t *testing.T, f func(*testing.T)) {
			t.Parallel()
			f(t)
		},
		Faults: faults(),
	}
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
		// The nodes send nothing on their own that could get lost.
		locktest.LoseWakeup: func(testing.TB, lock.Locker) func() { return nil },
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
