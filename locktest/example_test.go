package locktest_test

import (
	"testing"
	"testing/synctest"

	lock "github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/locktest"
	"github.com/seed-215fdefa/lock/memory"
)

// A store in its test file: TestConformance runs the suite in fake time, since this
// store needs no server. Without Around it would run on the real clock.
func ExampleRun() {
	TestConformance := func(t *testing.T) {
		locktest.Run(t, locktest.Harness{
			New: func(testing.TB) func() lock.Locker {
				store := memory.New() // a clean keyspace
				return func() lock.Locker { return store.Open() }
			},
			Around: synctest.Test,
		})
	}
	_ = TestConformance
}

// A fault is a function that does it to one Locker, and returns what ends it.
func ExampleFault() {
	type process struct {
		lock.Locker
		partition func(on bool) // of its connection
	}
	faults := map[locktest.Fault]func(testing.TB, lock.Locker) func(){
		locktest.Freeze: func(_ testing.TB, l lock.Locker) func() {
			p := l.(*process)
			p.partition(true)
			return func() { p.partition(false) }
		},
	}
	_ = locktest.Harness{Faults: faults}
}

// The same harness serves the benchmarks.
func ExampleRunBenchmarks() {
	BenchmarkStore := func(b *testing.B) {
		locktest.RunBenchmarks(b, locktest.Harness{
			New: func(testing.TB) func() lock.Locker {
				store := memory.New()
				return func() lock.Locker { return store.Open() }
			},
		})
	}
	_ = BenchmarkStore
}
