package storetest

import (
	"flag"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/seed-215fdefa/lock/locktest"
)

var (
	// ExploreFor is how long random work goes on.
	ExploreFor  = flag.Duration("explore.for", 0, "how long TestExplore goes on with random seeds; 0 is not at all")
	exploreSeed = flag.Uint64("explore.seed", 1, "the fixed seed of TestExplore")
)

// Explore runs random histories against h: a round with a seed that is the same each time,
// and with -explore.for rounds with seeds that are not. It has no Failover, which most
// servers stand once.
func Explore(t *testing.T, h locktest.Harness) {
	t.Helper()
	h.Faults = maps.Clone(h.Faults)
	delete(h.Faults, locktest.Failover)
	locktest.Explore(t, h, *exploreSeed, 0)
	if *ExploreFor == 0 {
		return
	}
	seed := rand.Uint64()
	t.Logf("random seeds from %d, for %v", seed, *ExploreFor)
	locktest.Explore(t, h, seed, *ExploreFor)
}
