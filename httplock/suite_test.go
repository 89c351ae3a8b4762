package httplock_test

import (
	"testing"

	"github.com/seed-215fdefa/lock/locktest"
)

var underRace bool

// alone skips a suite beside those of all stores with the race detector: each call goes through three
// processes' worth of goroutines, and TTLs of a second run out. make test runs it without, by itself.
func alone(t *testing.T) {
	t.Helper()
	if underRace {
		t.Skip("it runs without the race detector")
	}
}

func TestSuiteOverMemory(t *testing.T) {
	alone(t)
	t.Parallel()
	locktest.Run(t, protocol().Harness(onMemory))
}

func TestClientSuiteOverMemory(t *testing.T) {
	alone(t)
	t.Parallel()
	locktest.RunClient(t, protocol().Harness(onMemory))
}
