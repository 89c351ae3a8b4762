package locktest_test

import (
	"testing"
	"testing/synctest"
	"time"

	lock "github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/locktest"
	"github.com/seed-215fdefa/lock/memory"
)

func newMemory(tb testing.TB) func() lock.Locker {
	store := memory.New()
	return func() lock.Locker {
		l := store.Open()
		tb.Cleanup(func() { _ = l.Close() })
		return l
	}
}

// TestMemoryInFakeTime is the suite as most stores that need no server run it.
func TestMemoryInFakeTime(t *testing.T) {
	locktest.Run(t, locktest.Harness{New: newMemory, Around: synctest.Test})
}

// TestMemoryOnTheRealClock is the suite as it runs on a server.
func TestMemoryOnTheRealClock(t *testing.T) {
	t.Parallel() // with tests that leave it little of the machine
	locktest.Run(t, locktest.Harness{New: newMemory, TTL: 200 * time.Millisecond, Around: func(t *testing.T, f func(*testing.T)) {
		t.Parallel() // since cases mostly wait
		f(t)
	}})
}

func BenchmarkMemory(b *testing.B) {
	locktest.RunBenchmarks(b, locktest.Harness{New: newMemory})
}
