package locktest

import (
	"regexp"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"

	lock "github.com/seed-215fdefa/lock"
)

// TestInspectThatCannotBeBelieved: only Inspect is wrong. Every other group passes, or says that
// Inspect cannot be believed.
func TestInspectThatCannotBeBelieved(t *testing.T) {
	t.Parallel()
	for name, after := range map[string]func(*refClient, *lock.Record, *error){
		"nothing":    func(_ *refClient, rec *lock.Record, _ *error) { *rec = lock.Record{Key: rec.Key} },
		"no token":   func(_ *refClient, rec *lock.Record, _ *error) { rec.Holders = zeroTokens(rec.Holders) },
		"no waiters": func(_ *refClient, rec *lock.Record, _ *error) { rec.Waiters, rec.WaiterCount = nil, 0 },
		"errors":     func(_ *refClient, _ *lock.Record, err *error) { *err = lock.ErrUnsupported },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, h, skips := new(suite), refHarness(flaws{}, inspecting(after)), 0
			failedInspect := false
			for _, c := range allCases() {
				r := recordIn(t, s, h, c)
				inspects := strings.HasPrefix(c.path, "Inspect/")
				failedInspect = failedInspect || inspects && len(r.failures) > 0
				if !inspects {
					assert.Empty(t, r.failures, c.path)
				}
				if strings.HasPrefix(r.skipped, "Inspect cannot be believed: Inspect/CanBeBelieved/") {
					skips++
				}
			}
			assert.True(t, failedInspect)
			assert.Greater(t, skips, 20)
			assert.Less(t, skips, len(allCases())*3/4, "the others are tried")
		})
	}
}

func zeroTokens(hs []lock.Holder) []lock.Holder {
	for i := range hs {
		hs[i].Token = 0
	}
	return hs
}

// TestFaultsThatMiss: a case whose fault does not bite is skipped and says so.
func TestFaultsThatMiss(t *testing.T) {
	t.Parallel()
	harmless := refHarness(flaws{}, nil)
	harmless.Faults[LoseReply] = func(testing.TB, lock.Locker) func() { return nil }
	twoTrips := soundStores()["two round trips"]
	twoTrips.Strike = nil
	noStrike := refHarness(flaws{}, nil)
	noStrike.Strike = func(testing.TB, lock.Locker, Strike) (func() bool, func()) {
		return func() bool { return false }, nil
	}
	for _, c := range allCases() {
		late := strings.HasSuffix(c.name, "LateReply") || strings.HasSuffix(c.name, "LateRenewal") || c.name == "AfterALostReply"
		each := strings.HasPrefix(c.name, "EachMessage")
		if !late && !each {
			continue
		}
		for name, h := range map[string]Harness{"harmless": harmless, "two trips": twoTrips, "no strike": noStrike} {
			if name == "harmless" {
				h.Strike = nil
			}
			r := record(t, h, c)
			assert.Empty(t, r.failures, "%s, %s", name, c.path)
			switch {
			case each && name != "no strike":
				assert.Equal(t, "Harness has no Strike and no Proxy", r.skipped, "%s, %s", name, c.path)
			case name == "two trips" && (c.name != "LateReply" || strings.HasPrefix(c.path, "TokensRise/") || strings.HasPrefix(c.path, "CancelIsPrompt/")):
				assert.Empty(t, r.skipped, "%s, %s: one round trip, or a fault that need not bite deep", name, c.path)
			case each:
				assert.Contains(t, r.skipped, "no strike befell a message", "%s, %s", name, c.path)
			default:
				assert.Contains(t, r.skipped, "the fault did not bite", "%s, %s", name, c.path)
			}
		}
	}
}

// TestFaultsThatDoNothing: no case passes whose fault has done nothing, where that can be seen.
func TestFaultsThatDoNothing(t *testing.T) {
	t.Parallel()
	for fault, cases := range map[Fault]string{
		Freeze:     "^FailureLeavesNothing/Freeze|^CancelIsPrompt/.*Freeze|/FreezeFromTheStart|/FreezeBeforeTheWait",
		LoseReply:  "/ReleaseBeforeAWaiterOfItsOwn|/LateReplyToTheReleaser|/BetweenSteps|/AbandonedGrant",
		LoseRecord: "RecordLoss|LostRecord|LostPlace",
	} {
		h := refHarness(flaws{}, nil)
		h.Strike = nil
		h.Faults[fault] = func(testing.TB, lock.Locker) func() { return nil }
		tried := 0
		for _, c := range allCases() {
			if !regexp.MustCompile(cases).MatchString(c.path) {
				continue
			}
			tried++
			if r := record(t, h, c); len(r.failures) == 0 {
				assert.Contains(t, r.skipped, "the fault did not bite", "%v, %s", fault, c.path)
			}
		}
		assert.Greater(t, tried, 5, fault)
	}
}

// TestSkipsOfTheHarness: a case that New or a fault skips is not one that has passed, in a bubble
// neither.
func TestSkipsOfTheHarness(t *testing.T) {
	t.Parallel()
	for name, around := range map[string]func(*testing.T, func(*testing.T)){"in a bubble": synctest.Test, "on the real clock": nil} {
		h := refHarness(flaws{}, nil)
		h.Around = around
		h.Faults[LoseRecord] = func(tb testing.TB, _ lock.Locker) func() {
			tb.Skip("the store cannot forget")
			return nil
		}
		s := new(suite)
		for _, c := range allCases() {
			if c.path == "AReasonIsAFact/AfterRecordLoss/exclusive" {
				t.Run(name, func(t *testing.T) { s.run(t, h, c) })
			}
		}
		if assert.Len(t, s.results, 1, name) {
			assert.Equal(t, skipped, s.results[0].outcome, name)
			assert.Equal(t, "the harness skipped it", s.results[0].reason, name)
		}
	}
}

func TestSummary(t *testing.T) {
	t.Parallel()
	s := &suite{groups: groups()}
	for i, c := range exclusion().cases()[:5] {
		r := result{testCase: c}
		switch i {
		case 1:
			r.outcome = failed
		case 2, 3:
			r.outcome, r.reason = skipped, "Harness.Faults has no Freeze"
		}
		s.results = append(s.results, r)
	}
	assert.Equal(t, strings.Join([]string{
		"locktest: 2 passed, 1 failed, 2 skipped of 5 cases",
		"THE HARNESS HAS NO FAULTS: 2 of 5 cases were skipped, and nothing that happens to processes, connections or servers was tried",
		"\tExclusion               2 passed, 1 failed, 2 skipped",
		"failed, since the contract says: " + exclusion().rows[0].sentence,
		"\tExclusion/AmongProcesses/shared",
		"skipped: Harness.Faults has no Freeze",
		"\tExclusion/WithinOneProcess/exclusive",
		"\tExclusion/WithinOneProcess/shared",
	}, "\n"), s.summary(Harness{}))
	assert.NotContains(t, s.summary(refHarness(flaws{}, nil)), "NO FAULTS")
	assert.NotContains(t, s.summary(Harness{Strike: refHarness(flaws{}, nil).Strike}), "NO FAULTS")
}

// TestCrowdSaysWhatItMissed: the limit, and how many were served, under the sentence that
// is about that.
func TestCrowdSaysWhatItMissed(t *testing.T) {
	t.Parallel()
	for _, c := range allCases() {
		if c.path != "Exclusion/Crowd" {
			continue
		}
		r := record(t, refHarness(flaws{noRecheck: true, neverWakes: true}, nil), c)
		if assert.Len(t, r.failures, 1) {
			assert.Regexp(t, `^the contract says: Wake-ups are hints\.(.|\n)*wanted: each of 50 callers to have the key for 1 ms within \S+\n\tseen:   \d+ had it, \d+ did not; the first error: `, r.failures[0])
		}
	}
}
