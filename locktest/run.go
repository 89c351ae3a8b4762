package locktest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Run checks that the store keeps the contract of [lock.Locker], in a group of subtests for each
// of its sentences (Exclusion, TokensRise, OneOwnerOneGrant, RenewNeverCreates,
// ReleaseIsYoursAlone, FailureLeavesNothing, DeadHoldersPass, DeadWaitersAreSkipped,
// WakeupsAreHints, CancelIsPrompt, ExpiryIsTheStores, KeysAreOpaque, PartialLossIsLoss,
// NobodyPassesAWaitingWriter, AHeadStartIsAPlaceInLine, AWaitOutlivesTheStoresTrouble,
// AReasonIsAFact, RecordsAreBounded, DurationsAreBounded). Other groups test what the contract
// says elsewhere (StartIsEarly, Capabilities, Inspect, Admin, BadInput). Inspect comes first: if
// it is wrong, cases that rely on it are skipped.
//
// A case is skipped by name if the store does not declare its capability, if the harness lacks
// its fault, or if the fault did not take effect. The end of the log says how many cases passed,
// failed and were skipped, and why. Each case may take 10 min and 20 TTLs, more on a slow network,
// but no longer than the test program's own timeout. A case that takes longer ends the program
// with a dump of all goroutines. Run fails at once if the harness itself is wrong.
func Run(t *testing.T, h Harness) {
	t.Helper()
	h.runGroups(t, groups(), func(g group) bool { return g.name == inspect().name })
}

// runGroups runs the cases of gs: those of a group that is alone are over before the next
// group begins. Those of other groups may go on side by side, since a test around each group
// would end with its slowest case before the next began.
func (h Harness) runGroups(t *testing.T, gs []group, alone func(group) bool) {
	t.Helper()
	if err := h.check(); err != nil {
		t.Fatal(err)
	}
	s := &suite{groups: gs}
	t.Cleanup(func() { t.Log(s.summary(h)) })
	for _, g := range gs {
		if alone(g) {
			t.Run(g.name, func(t *testing.T) {
				for _, c := range g.cases() {
					t.Run(strings.TrimPrefix(c.path, g.name+"/"), func(t *testing.T) { s.run(t, h, c) })
				}
			})
			continue
		}
		for _, c := range g.cases() {
			t.Run(c.path, func(t *testing.T) { s.run(t, h, c) })
		}
	}
}

// suite is one call of Run or RunClient: what its cases know of each other.
type suite struct {
	groups []group

	mu       sync.Mutex // guards all below
	distrust string     // why Inspect is not to be believed, if that is known
	pace     time.Duration
	results  []result
}

// result is what came of a case.
type result struct {
	testCase
	outcome outcome
	reason  string // of a skip
}

type outcome int

const (
	passed outcome = iota
	failed
	skipped
)

// run runs c as t, unless it is to be skipped, under a watchdog.
func (s *suite) run(t *testing.T, h Harness, c testCase) {
	reason, ran := "", false
	t.Cleanup(func() { s.record(t, c, reason) })
	if why, ok := h.skips(c.path); ok {
		reason = "Harness.Skips: " + why
		t.Skip(reason)
	}
	limit, end := h.limit(t)
	dog := watch(limit, c.path, panics)
	dog.end = end
	t.Cleanup(dog.stop) // after what Around and the case clean up
	defer func() {
		if reason != "" {
			t.Log(reason)
		}
	}()
	h.around(t, func(t *testing.T) {
		ran = true
		defer func() {
			if t.Skipped() && reason == "" {
				reason = "the harness skipped it"
			}
		}()
		dog.arm()
		e := newEnv(t, t, h, c)
		e.suite = s
		e.onPace = func(pace time.Duration) { dog.extend(600 * pace) }
		e.onSkip = func(why string) { reason = why }
		e.run()
	})
	if reason != "" { // a bubble does not pass a skip on to the test around it
		t.SkipNow()
	}
	if !ran {
		t.Fatal("Harness.Around returned without having called f: nothing was tested")
	}
}

func (h Harness) around(t *testing.T, f func(*testing.T)) {
	if h.Around == nil {
		f(t)
		return
	}
	h.Around(t, f)
}

func (s *suite) record(t *testing.T, c testCase, reason string) {
	r := result{testCase: c, reason: reason}
	switch {
	case t.Failed():
		r.outcome = failed
	case t.Skipped():
		r.outcome = skipped
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.results = append(s.results, r)
}

// summary says what the run was worth.
func (s *suite) summary(h Harness) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	total := tally(s.results)
	fmt.Fprintf(&b, "locktest: %s of %d cases", total, len(s.results))
	if n := total[skipped]; n > 0 && len(h.Faults) == 0 && h.Proxy == nil && h.Strike == nil && h.LosePart == nil {
		fmt.Fprintf(&b, "\nTHE HARNESS HAS NO FAULTS: %d of %d cases were skipped, and nothing that happens to processes, connections or servers was tried", n, len(s.results))
	}
	for _, g := range s.groups {
		var of []result
		for _, r := range s.results {
			if strings.HasPrefix(r.path, g.name+"/") {
				of = append(of, r)
			}
		}
		if len(of) > 0 {
			fmt.Fprintf(&b, "\n\t%-24s%s", g.name, tally(of))
		}
	}
	b.WriteString(s.list(failed, "failed, since the contract says", func(r result) string { return r.sentence }))
	b.WriteString(s.list(skipped, "skipped", func(r result) string { return r.reason }))
	return b.String()
}

// list has the cases that came out so, by why.
func (s *suite) list(o outcome, what string, why func(result) string) string {
	paths := map[string][]string{}
	for _, r := range s.results {
		if r.outcome == o {
			paths[why(r)] = append(paths[why(r)], r.path)
		}
	}
	var reasons []string
	for reason := range paths {
		reasons = append(reasons, reason)
	}
	slices.Sort(reasons)
	var b strings.Builder
	for _, reason := range reasons {
		slices.Sort(paths[reason])
		fmt.Fprintf(&b, "\n%s: %s\n\t%s", what, reason, strings.Join(paths[reason], "\n\t"))
	}
	return b.String()
}

type counts [3]int

func tally(rs []result) (n counts) {
	for _, r := range rs {
		n[r.outcome]++
	}
	return n
}

func (n counts) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", n[passed], n[failed], n[skipped])
}
