package locktest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// Explore runs random work against the store for d, and checks the results against the contract
// of [lock.Locker]:
//
//   - exclusion, by the times in which owners may trust their grants
//   - tokens, in the order of the grants
//   - one grant for each owner
//   - TTLs and Starts
//   - losses and their reasons
//   - what Inspect shows
//   - the order in line, while there are no faults
//   - that nothing is left in the end
//
// Each round has some owners in two to four processes. They try, wait, cancel, renew, release,
// undo and die, with mixed TTLs and modes, on one key or two. Operators inspect and force. The
// faults of the harness happen one at a time, even those that the store does not declare to
// survive. Rounds begin until d is over, at least one, each on a keyspace of its own. Round n
// has the seed seed + n, which alone determines its plan. How the store and the machine carry
// the plan out differs between runs, least in fake time.
//
// In some rounds the processes also have a [lock.Client] and a [semaphore.Semaphore], on the
// same keys. They call Do, TryDo and DoAll, with two or three keys in any order, and take
// permits of all weights, some with a head start. Their calls get canceled, forced, or crash.
// Explore checks what the Clients send like any other request. It also checks that a function
// runs with all its leases, that its ctx ends when one of them is lost, that no more than n
// permits are in use, that callers get permits in their turn, that nobody waits for ever, and
// that nothing is left when a call has returned.
//
// The first round that finds something ends Explore and fails t, with the seed and the history,
// a line for each call. In fake time Explore first shrinks the plan to the steps that are
// needed, by running it again without the others. Explore(t, h, thatSeed, 0) runs one round.
//
// A store that keeps the contract never fails. Explore ignores Harness.Skips. Harness.Around
// must call f before it returns, so it must not call t.Parallel.
func Explore(t *testing.T, h Harness, seed uint64, d time.Duration) {
	t.Helper()
	if err := h.check(); err != nil {
		t.Fatal(err)
	}
	begun, next := time.Now(), seed
	for next == seed || time.Since(begun) < d {
		hist := h.round(t, newPlan(next, h.ttl()))
		if t.Failed() {
			t.Fatalf("Explore: the harness failed, in the round with seed %d", next)
		}
		if len(hist.flaws) > 0 {
			t.Fatal(h.shrink(t, hist, 20*time.Second).report())
		}
		next++
	}
	t.Logf("Explore: nothing found in %d rounds, from seed %d on", next-seed, seed)
}

// shrinker looks for a smaller plan that breaks the same promise.
type shrinker struct {
	h       Harness
	t       *testing.T
	best    *history // of the smallest plan so far
	promise string
	key     int
	until   time.Time
}

// shrink returns hist, or that of a plan with fewer steps and acts which breaks the same
// promise. It takes hardly longer than limit. On a real clock it returns hist: what
// happened once would take many more rounds to happen again.
func (h Harness) shrink(t *testing.T, hist *history, limit time.Duration) *history {
	if !hist.fake {
		return hist
	}
	v := hist.flaws[0]
	s := &shrinker{h: h, t: t, best: hist, promise: v.promise, key: v.key, until: time.Now().Add(limit)}
	s.steps()
	s.acts()
	return s.best
}

// try runs pl, and takes it if it breaks the promise too.
func (s *shrinker) try(pl plan) bool {
	if time.Now().After(s.until) {
		return false
	}
	hist := s.h.round(s.t, pl)
	i := slices.IndexFunc(hist.flaws, func(v violation) bool { return v.promise == s.promise })
	if i < 0 {
		return false
	}
	hist.flaws = hist.flaws[i:]
	s.best = hist
	return true
}

// steps takes out what is about another key, then many steps at once, then fewer.
func (s *shrinker) steps() {
	s.try(s.best.plan.without(func(st step) bool { return st.kind != befalls && s.key >= 0 && st.key != s.key }))
	for n := len(s.best.plan.steps); n > 0; n /= 2 {
		for i := 0; i < len(s.best.plan.steps); {
			drop := s.best.plan.steps[i:min(i+n, len(s.best.plan.steps))]
			same := func(st step) bool {
				return slices.ContainsFunc(drop, func(d step) bool { return d.id == st.id })
			}
			if !s.try(s.best.plan.without(same)) {
				i += n
			}
		}
	}
}

// acts takes out what owners do, one by one. What comes after stays at its time.
func (s *shrinker) acts() {
	for i := range s.best.plan.steps {
		for j := len(s.best.plan.steps[i].acts) - 1; j >= 0; j-- {
			pl := s.best.plan.without(func(step) bool { return false })
			acts := slices.Clone(pl.steps[i].acts)
			if j+1 < len(acts) {
				acts[j+1].pause += acts[j].pause
			}
			pl.steps[i].acts = slices.Delete(acts, j, j+1)
			s.try(pl)
		}
	}
}

// report says what was found, for people.
func (h *history) report() string {
	v, b := h.flaws[0], new(strings.Builder)
	fmt.Fprintf(b, "Explore: store %s broke its contract in the round with seed %d\n", h.caps.Store, h.plan.seed)
	fmt.Fprintf(b, "the contract says: %s\n\twanted: %s\n\tseen:   %s\n", v.promise, v.wanted, v.seen)
	fmt.Fprintf(b, "what happened, in milliseconds since the round began; the Harness.TTL is %v:\n", h.ttl)
	h.write(b, v)
	return b.String()
}
