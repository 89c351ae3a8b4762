package locktest

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	lock "github.com/seed-215fdefa/lock"
)

var (
	exploreFor  = flag.Duration("explore.for", time.Second, "how long TestExploreSoundStore goes on")
	exploreSeed = flag.Uint64("explore.seed", 1, "the first seed of TestExploreSoundStore")
)

func TestExploreSoundStore(t *testing.T) {
	t.Parallel()
	Explore(t, refHarness(flaws{}, nil), *exploreSeed, *exploreFor)
}

// explored are faults that Explore must find.
func explored() []broken {
	replied := acquiring(func(_ lock.Request, _ time.Time, g *lock.Grant, _ *error) { g.Start = time.Now() })
	return []broken{
		{what: "an expired reader's renewal shortens the record", flaws: flaws{lateRenewalShortens: true}},
		{what: "a hand-over with the releaser's TTL", flaws: flaws{handsOverTTL: true}},
		{what: "a Start taken from the reply", wrap: replied},
		{what: "a grant survives its owner's undo", flaws: flaws{undoLeavesGrant: true}},
		{what: "a token goes back after an expiry", flaws: flaws{resetByExpiry: true}},

		{what: "no exclusion", flaws: flaws{noExclusion: true}},
		{what: "a writer beside readers", flaws: flaws{exclusiveBesideShared: true}},
		{what: "grants gone after a failover, though declared", flaws: flaws{failoverDropsHolds: true}},
		{what: "a reader's token is the last writer's", flaws: flaws{sharedTokenRepeats: true}},
		{what: "a token taken in a step after the grant", flaws: flaws{mintsLater: true}},
		{what: "a request sent again makes a second grant", flaws: flaws{retryCreates: true}},
		{what: "renew re-creates", flaws: flaws{renewCreates: true}},
		{what: "renew fails after one whose reply was lost", flaws: flaws{versioned: true}},
		{what: "one reader keeps another's lease alive", flaws: flaws{readersLiveTogether: true}},
		{what: "a reader's release ends all readers", flaws: flaws{releaseOfReaders: true}},
		{what: "a dead process keeps what it holds", flaws: flaws{deadProcessKeeps: true}},
		{what: "dead waiters block the line", flaws: flaws{deadWaitersStay: true}},
		{what: "a late request makes a grant for ever", flaws: flaws{lateRequests: true}},
		{what: "nobody is woken, nor looks again", flaws: flaws{neverWakes: true, noRecheck: true}},
		{what: "last come, first served", flaws: flaws{servesLast: true}},
		{what: "readers overtake a waiting writer", flaws: flaws{readersOvertake: true}},
		{what: "calls do not care for ctx", flaws: flaws{deafToCtx: true}},
		{what: "Lost never called, though declared", flaws: flaws{forcesSilently: true}},
		{what: "Lost called twice", flaws: flaws{tellsTwice: true}},
		{what: "ForceRelease ends all readers", flaws: flaws{forcesAll: true}},
	}
}

// TestExploreFinds shows that Explore is not blind, in a number of seeds that does not
// depend on the machine.
func TestExploreFinds(t *testing.T) {
	t.Parallel()
	const most = 2000
	for _, b := range explored() {
		t.Run(b.what, func(t *testing.T) {
			t.Parallel()
			h := refHarness(b.flaws, b.wrap)
			for seed := uint64(1); seed <= most; seed++ {
				hist := h.round(t, newPlan(seed, h.ttl()))
				if len(hist.flaws) == 0 {
					continue
				}
				report := h.shrink(t, hist, time.Minute).report()
				t.Logf("after %d seeds\n%s", seed, report)
				assert.Contains(t, report, fmt.Sprintf("round with seed %d\n", seed))
				assert.Less(t, strings.Count(report, "\n"), 25, "lines that a person has to read")
				return
			}
			t.Errorf("not found with %d seeds", most)
		})
	}
}

// TestPlanComesFromItsSeed: a seed is of no use if its plan is another the next time.
func TestPlanComesFromItsSeed(t *testing.T) {
	t.Parallel()
	for seed := range uint64(100) {
		require.Equal(t, newPlan(seed, time.Second), newPlan(seed, time.Second))
	}
	require.NotEqual(t, newPlan(1, time.Second).steps, newPlan(2, time.Second).steps)
}
