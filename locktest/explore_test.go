package locktest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
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
		{what: "head starts are ignored", flaws: flaws{subtle: subtle{noHeadStart: true}}},
		{what: "any head start passes everybody without", flaws: flaws{subtle: subtle{strictPriority: true}}},
		{what: "a request that is sent again has no head start", flaws: flaws{subtle: subtle{headStartOnce: true}}},
		{what: "readers overtake a waiting writer", flaws: flaws{readersOvertake: true}},
		{what: "calls do not care for ctx", flaws: flaws{deafToCtx: true}},
		{what: "Lost never called, though declared", flaws: flaws{forcesSilently: true}},
		{what: "Lost called twice", flaws: flaws{tellsTwice: true}},
		{what: "ForceRelease ends all readers", flaws: flaws{forcesAll: true}},
		{what: "List fails", wrap: listing(func(_ context.Context, _ *refClient, _ string, yield func(lock.Record, error) bool) {
			yield(lock.Record{}, errWork)
		})},
		{what: "the end of a deadline is told as a cancel", wrap: acquiring(func(_ lock.Request, _ time.Time, _ *lock.Grant, err *error) {
			var held *lock.HeldError
			switch {
			case !errors.Is(*err, context.DeadlineExceeded):
			case errors.As(*err, &held):
				*err = &lock.HeldError{Record: held.Record, Err: context.Canceled}
			default:
				*err = context.Canceled
			}
		})},
		{what: "ErrHeld is lost when ctx ends", wrap: acquiring(func(_ lock.Request, _ time.Time, _ *lock.Grant, err *error) {
			var held *lock.HeldError
			if errors.As(*err, &held) && held.Err != nil {
				*err = held.Err
			}
		})},
	}
}

// TestExploreFinds shows that Explore is not blind, in a number of seeds that does not
// depend on the machine.
func TestExploreFinds(t *testing.T) {
	skipUnderRace(t)
	t.Parallel()
	const most = 4000
	harnesses := map[string]Harness{}
	for _, b := range explored() {
		harnesses[b.what] = refHarness(b.flaws, b.wrap)
	}
	for _, b := range brokenClients() {
		if b.explored {
			h := refHarness(flaws{}, nil)
			h.newClient, h.newSemaphore = b.make, b.permits
			harnesses[b.what] = h
		}
	}
	for what, h := range harnesses {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= most; seed++ {
				hist := h.round(t, newPlan(seed, h.ttl()))
				if len(hist.flaws) == 0 {
					continue
				}
				report := h.shrink(t, hist, time.Minute).report()
				t.Logf("after %d seeds\n%s", seed, report)
				assert.Contains(t, report, fmt.Sprintf("round with seed %d\n", seed))
				most := 25
				if len(hist.jobs) > 0 { // a line for each key of a call
					most = 150
				}
				assert.Less(t, strings.Count(report, "\n"), most, "lines that a person has to read")
				return
			}
			t.Errorf("not found with %d seeds", most)
		})
	}
}

// TestGrantedAgain: a grant whose reply is held back is ended by force, and the request is sent
// again. An owner is not spent by that, so the lock is granted anew, with another token than
// Inspect has shown. Where nobody has ended the first grant, the second is one too many.
func TestGrantedAgain(t *testing.T) {
	t.Parallel()
	acquires := step{id: 1, kind: acquires, at: time.Millisecond, ttl: time.Second, limit: time.Second}
	inspects := step{id: 2, kind: inspects, at: 20 * time.Millisecond, proc: 1}
	forces := step{id: 3, kind: forces, at: 50 * time.Millisecond, proc: 1, target: 1}
	loses := step{id: 4, kind: befalls, fault: LoseReply, lasts: resend + 2*time.Millisecond}
	again := func(f flaws, steps ...step) *history {
		h := refHarness(f, nil)
		return h.round(t, plan{procs: 2, keys: 1, steps: append(steps, loses)})
	}
	hist := again(flaws{}, acquires, inspects, forces)
	require.Empty(t, hist.flaws)
	granted := hist.lives[0].acquire.grant.Token
	i := slices.IndexFunc(hist.calls, func(c *call) bool { return c.op == "inspect" })
	require.Less(t, hist.calls[i].recs[0].Holders[0].Token, granted, "the plan does not come to that any more")

	acquires.shared = true
	hist = again(flaws{retryCreates: true}, acquires, inspects)
	require.NotEmpty(t, hist.flaws)
	require.Equal(t, ofInspect, hist.flaws[0].promise)
}

// TestForcedAndRenewed: a ForceRelease that ended nothing shows by the next renewal.
func TestForcedAndRenewed(t *testing.T) {
	t.Parallel()
	acquires := step{id: 1, kind: acquires, ttl: time.Second, limit: time.Second}
	acquires.acts = []act{{kind: renews, pause: 100 * time.Millisecond, limit: time.Second}}
	forces := step{id: 2, kind: forces, at: 50 * time.Millisecond, proc: 1, target: 1}
	h := refHarness(flaws{forceWarnsOnly: true, forcesSilently: true}, declaring(func(c *lock.Capabilities) { c.EarlyLoss = false }))
	hist := h.round(t, plan{procs: 2, keys: 1, steps: []step{acquires, forces}})
	require.NotEmpty(t, hist.flaws)
	require.Equal(t, ofForces, hist.flaws[0].promise)
}

// TestStallOfAnExploredClient: whoever does not get to undo a canceled request before its TTL is
// over has done nothing wrong, and whoever renews a lease after the call has.
func TestStallOfAnExploredClient(t *testing.T) {
	t.Parallel()
	w := &worker{ctx: context.Background()}
	canceled := &job{step: step{id: 1, kind: does}, w: w, call: &call{op: "Do", key: -1, end: time.Second, over: true}}
	asks := &tenure{worker: w, job: 1, step: step{ttl: time.Second}}
	asks.acquire = &call{op: "acquire", t: asks, end: time.Second, over: true, err: context.Canceled, ended: context.Canceled}
	m := &model{&history{ttl: time.Second, begun: time.Now(), jobs: []*job{canceled}, lives: []*tenure{asks}}}
	m.givenBack(asks)
	require.Empty(t, m.flaws)

	asks.acts = []*call{{op: "undo", t: asks, begin: time.Second}} // under way
	m.givenBack(asks)
	require.Empty(t, m.flaws)

	asks.acquire.err, asks.acquire.grant.TTL = nil, time.Second
	late := time.Second + 2*m.patience()
	asks.acts = []*call{{op: "renew", t: asks, begin: late, end: late, over: true}}
	m.givenBack(asks)
	require.NotEmpty(t, m.flaws)
}

// TestPlanComesFromItsSeed: a seed is of no use if its plan is another the next time.
func TestPlanComesFromItsSeed(t *testing.T) {
	t.Parallel()
	for seed := range uint64(100) {
		require.Equal(t, newPlan(seed, time.Second), newPlan(seed, time.Second))
	}
	require.NotEqual(t, newPlan(1, time.Second).steps, newPlan(2, time.Second).steps)
}
