package locktest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// Explore runs random work against the store for d, and checks what its callers were told
// against the contract of [lock.Locker]: exclusion by the times in which owners may trust
// their grants, tokens in the order of the grants, one grant for an owner, TTLs and Starts,
// losses and their reasons, what Inspect shows, the order in line while there are no
// faults, and that nothing is left in the end.
//
// A round is some owners, in two to four processes, who try, wait, cancel, renew, release,
// undo and die, with mixed TTLs and modes, on one key or two; with operators who inspect
// and force, and with the faults that the harness has, one at a time, Faults that break
// what the store does not declare to survive included. Rounds begin until d is over, one
// at least, each on a keyspace of its own. Round n has the seed seed + n, and its plan
// comes from that alone. What the store and the machine make of the plan differs, least so
// in fake time.
//
// The first round that finds something ends Explore and fails t, with the seed and the
// history, a line for each call. In fake time the plan is cut down first to the steps
// that are needed, by running it again without the others. Explore(t, h, thatSeed, 0)
// runs one round.
//
// A sound store is never blamed, as by [Run]; Harness.Skips is of no account.
// Harness.Around must call f before it returns, so it must not call t.Parallel.
func Explore(t *testing.T, h Harness, seed uint64, d time.Duration) {
	t.Helper()
	if err := h.check(); err != nil {
		t.Fatal(err)
	}
	for begun, n := time.Now(), uint64(0); n == 0 || time.Since(begun) < d; n++ {
		hist := h.round(t, newPlan(seed+n, h.ttl()))
		if t.Failed() {
			t.Fatalf("Explore: the harness failed, in the round with seed %d", seed+n)
		}
		if len(hist.flaws) > 0 {
			t.Fatal(h.shrink(t, hist, 20*time.Second).report())
		}
		if time.Since(begun) >= d {
			t.Logf("Explore: nothing found with seeds %d to %d", seed, seed+n)
		}
	}
}

// shrink returns hist, or that of a plan with fewer steps and acts which breaks the same
// promise. It takes no longer than limit. On a real clock it returns hist.
func (h Harness) shrink(t *testing.T, hist *history, limit time.Duration) *history {
	begun := time.Now()
	first := hist.flaws[0]
	try := func(pl plan) bool {
		if !hist.fake || time.Since(begun) > limit {
			return false
		}
		again := h.round(t, pl)
		i := slices.IndexFunc(again.flaws, func(v violation) bool { return v.promise == first.promise })
		if i < 0 {
			return false
		}
		again.flaws = again.flaws[i:]
		hist = again
		return true
	}
	try(hist.plan.without(func(s step) bool { return s.kind != befalls && first.key >= 0 && s.key != first.key }))
	for n := len(hist.plan.steps); n > 0; n /= 2 {
		for i := 0; i < len(hist.plan.steps); {
			dropped := hist.plan.steps[i:min(i+n, len(hist.plan.steps))]
			ids := make([]int, 0, n)
			for _, s := range dropped {
				ids = append(ids, s.id)
			}
			if !try(hist.plan.without(func(s step) bool { return slices.Contains(ids, s.id) })) {
				i += n
			}
		}
	}
	for i := range hist.plan.steps {
		for j := len(hist.plan.steps[i].acts) - 1; j >= 0; j-- {
			pl := hist.plan.without(func(step) bool { return false })
			// What comes after stays when it was.
			acts := slices.Clone(pl.steps[i].acts)
			if j+1 < len(acts) {
				acts[j+1].pause += acts[j].pause
			}
			pl.steps[i].acts = slices.Delete(acts, j, j+1)
			try(pl)
		}
	}
	return hist
}

// report says what was found, for people.
func (h *history) report() string {
	v, b := h.flaws[0], new(strings.Builder)
	fmt.Fprintf(b, "Explore: store %s broke its contract in the round with seed %d\n", h.caps.Store, h.plan.seed)
	fmt.Fprintf(b, "the contract says: %s\n\twanted: %s\n\tseen:   %s\n", v.promise, v.wanted, v.seen)
	fmt.Fprintf(b, "what happened, in milliseconds since the round began; the Harness.TTL is %v:\n", h.ttl)
	h.write(b, v.key)
	return b.String()
}
