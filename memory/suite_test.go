package memory_test

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/faulty"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/locktest"
	"github.com/seed-215fdefa/lock/memory"
)

// harness has all faults but two: a hand-over is the reply itself, so there is no
// wake-up to lose, and there is no other server to fail over to.
func harness() locktest.Harness {
	faults := faulty.Faults()
	faults[locktest.LoseRecord], faults[locktest.Restart] = forget, forget
	return locktest.Harness{
		New: func(tb testing.TB) func() lock.Locker {
			store := memory.New()
			return func() lock.Locker {
				inner := store.Open()
				f := faulty.New(inner)
				tb.Cleanup(func() {
					f.Sever()
					_ = inner.Close()
				})
				return f
			}
		},
		Faults: faults,
	}
}

// forget is a loss of everything. It takes a millisecond, as it would take longer on any
// store: tokens rise beyond it by the clock.
func forget(_ testing.TB, l lock.Locker) (heal func()) {
	memory.Forget(l.(*faulty.Locker).Unwrap().(*memory.Locker))
	time.Sleep(time.Millisecond)
	return nil
}

func TestSuite(t *testing.T) {
	h := harness()
	h.TTL = time.Second
	h.Around = synctest.Test
	locktest.Run(t, h)
}

// TestClientSuite tries a Client over this store.
func TestClientSuite(t *testing.T) {
	h := harness()
	h.TTL = time.Second
	h.Around = synctest.Test
	locktest.RunClient(t, h)
}

func TestSuiteInRealTime(t *testing.T) {
	h := harness()
	h.TTL = 200 * time.Millisecond
	h.Around = func(t *testing.T, f func(*testing.T)) {
		t.Parallel()
		f(t)
	}
	locktest.Run(t, h)
}

// TestHerd has many callers contend for one key.
func TestHerd(t *testing.T) {
	store := memory.New()
	storetest.Herd(t, func() lock.Locker { return store.Open() })
}

func TestExplore(t *testing.T) {
	h := harness()
	h.Around = synctest.Test
	locktest.Explore(t, h, 1, exploreFor())
}

func TestExploreInRealTime(t *testing.T) {
	t.Parallel()
	h := harness()
	h.TTL = 100 * time.Millisecond
	locktest.Explore(t, h, rand.Uint64(), exploreFor())
}

// exploreFor is a second here, where time is fake or a round short, if it is not said.
func exploreFor() time.Duration { return max(*storetest.ExploreFor, time.Second) }
